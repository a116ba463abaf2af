"""Calibration: gather what planning and fitting need to know from unlabelled images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from torch_separable._console.progress import progress_bar
from torch_separable._network.ambient import default_settings
from torch_separable._network.checks import as_network
from torch_separable._network.weights import check_weights, refresh_weights
from torch_separable.conversion.calibration.forward import lay_out, place_batch
from torch_separable.conversion.calibration.images import FEWEST_IMAGES, Batch, Images, first_images, split_batches
from torch_separable.conversion.calibration.moments import moment_bytes, recorded_moments
from torch_separable.conversion.calibration.outputs import Selection, as_reference
from torch_separable.conversion.calibration.recording import Recording, record
from torch_separable.conversion.calibration.replay_cache import ReplayCache
from torch_separable.conversion.calibration.statistics import LayerStatistics, Statistics, norm_affine
from torch_separable.conversion.convolutions import Conv, patch_entries, spec_of
from torch_separable.conversion.functional import count_functional_convolutions
from torch_separable.conversion.layers import ConvertibleLayers, find_convertible
from torch_separable.conversion.solvers.factorize import Moments
from torch_separable.cost import analyze
from torch_separable.errors import SeparableError

DEFAULT_MEMORY = 4 * 1024**3  # bytes

# Output pixels that are sampled of a layer. A fit of thousands of weights also fits the noise of the sample; more
# pixels reduce that. Second moments take one multiply-add for each pair of a patch's entries, so a layer of large
# patches gets fewer pixels: as many as `_QUICK_WORK` multiply-adds allow, but four for each entry of a patch.
_FEWEST_PIXELS, _USUAL_PIXELS, _MOST_PIXELS, _ENOUGH_PIXELS = 1024, 8192, 32768, 65536
_QUICK_WORK = 2**36  # multiply-adds


@default_settings()
def calibrate(
    model: nn.Module,
    images: Images,
    *,
    exclude: Sequence[str] = (),
    outputs: Selection | None = None,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> Statistics:
    """Gather second moments of each convertible convolution's input patches, ``E[x xᵀ]``, from unlabelled images.

    The network runs in evaluation mode and is not changed. Up to 65,536 output pixels of each layer are sampled over
    all images; 256 to 1,024 images suffice. Under ``torch.distributed`` (``accelerate launch``) each process passes
    images of its own, and the moments are averaged over the processes.

    Args:
        model: the trained dense network.
        images: a tensor (N, C, H, W), prepared as in training; a mapping of tensors that the network takes as keyword
            arguments, such as ``{"left": ..., "right": ...}``; or an iterable of batches of either.
        exclude: convolutions to leave dense: their names, names of modules that contain them, or patterns such as
            ``*.conv1``.
        outputs: outputs of the network that decide how much an error matters: names such as ``["logits"]`` or
            ``["0", "1.boxes"]``, or weights by such names; by default all floating-point outputs, with equal weights.
            Differences of an output are divided by its variance.
        memory: bytes that samples, moments and the replay cache may take at a time. Layers are recorded in as many
            passes as that requires; a single layer that needs more for 1,024 pixels takes more.
        progress: whether to show a progress bar on a terminal.

    Raises:
        SeparableError: there is no convolution to convert; there are too few images; the network cannot take them; the
            images, the weights or (naming the layer) an activation contain NaN or infinity; no output varies over the
            images, or an output has another size in another batch.
        SeparableValueError: ``exclude`` matches no convolution, or ``outputs`` no output.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        >>> statistics = calibrate(net, torch.randn(16, 3, 12, 12))
        >>> [(layer.name, layer.macs, layer.consumer.rectified) for layer in statistics.layers]
        [('0', 31104, True), ('2', 82944, False)]
    """
    as_network(model)
    batches = split_batches(images)
    check_weights(model)
    layers = find_convertible(model).excluding(exclude)
    require_layers(model, layers, batches)
    return gather_statistics(model, layers, batches, outputs=outputs, memory=memory, progress=progress)


def gather_statistics(
    model: nn.Module,
    layers: ConvertibleLayers,
    batches: Sequence[Batch],
    *,
    outputs: Selection | None = None,
    memory: int,
    progress: bool = True,
) -> Statistics:
    """Gather the statistics of ``layers`` over checked batches. See `calibrate`."""
    refresh_weights(model)
    batches = lay_out(model, batches)
    # A short pass finds which layers run, in which order and how often.
    sizing = dict.fromkeys(layers.convertible, 1)
    once = record(model, [first_images(batches[0], FEWEST_IMAGES)], layers.convertible, sizing)
    running = {name: layers.convertible[name] for name in once}
    if not running:
        raise SeparableError(f"no convertible convolution of {type(model).__name__} ran on the calibration images")
    idle = {name: "never ran on the calibration images" for name in layers.convertible if name not in once}

    pixels = {name: pixels_for(conv, memory, once[name].calls) for name, conv in running.items()}
    recordings, moments, returned = _record_all(model, batches, running, once, pixels, memory, progress)
    _warn_of_few_pixels(running, recordings)
    return Statistics(
        layers=tuple(
            _layer_statistics(model, name, conv, once[name], recordings[name], pixels[name], moments.get(name))
            for name, conv in running.items()
        ),
        skipped={**layers.skipped, **idle},
        batches=batches,
        outputs=as_reference(model, batches, returned, outputs),
        macs=analyze(model, first_images(place_batch(model, batches[0]), 1)).macs,
        parameters=sum(p.numel() for p in model.parameters()),
        memory=memory,
    )


def pixels_for(conv: Conv, memory: int, calls: int) -> int:
    """Return how many output pixels of a layer to sample at each call, within the memory."""
    entries = patch_entries(conv)
    quick = _QUICK_WORK // (conv.groups * entries**2)
    fitting = memory // 4 // (4 * (entries * conv.groups + 2 * conv.out_channels))
    wanted = max(min(_ENOUGH_PIXELS, quick), min(4 * entries, _MOST_PIXELS), _USUAL_PIXELS)
    return math.ceil(max(_FEWEST_PIXELS, min(wanted, fitting)) / calls)


def require_layers(model: nn.Module, layers: ConvertibleLayers, batches: Sequence[Batch]) -> None:
    """Raise an error if there is nothing to convert, with the reasons."""
    if "" in layers.convertible:
        raise SeparableError(
            "the model is a bare convolution. Wrap it in nn.Sequential so that the convolution can be replaced"
        )
    if not layers.convertible:
        reasons = [f"{name}: {reason}" for name, reason in list(layers.skipped.items())[:3]]
        functional = count_functional_convolutions(model, batches[0])
        if functional:
            reasons.append(
                f"{functional} convolution{'s are' if functional > 1 else ' is'} called as a function; a convolution "
                "must be a module to be converted"
            )
        raise SeparableError(
            f"{type(model).__name__} has no convolution to convert "
            f"({'; '.join(reasons) or 'it has no nn.Conv1d, 2d or 3d'})"
        )


def _record_all(
    model: nn.Module,
    batches: Sequence[Batch],
    running: Mapping[str, Conv],
    once: Mapping[str, Recording],
    pixels: Mapping[str, int],
    memory: int,
    progress: bool,
) -> tuple[dict[str, Recording], dict[str, tuple[Moments, ...]], list[dict[str, Tensor]]]:
    """Record all layers, group by group; return their recordings without samples, their moments, and the outputs."""
    recordings: dict[str, Recording] = {}
    moments: dict[str, tuple[Moments, ...]] = {}
    outputs: list[dict[str, Tensor]] = []
    held = 0
    groups = _group_layers(running, pixels, once, memory)
    cache = ReplayCache(memory // 8)
    steps = len(groups) * len(batches) + len(running)
    with progress_bar("calibrating", steps, shown=progress) as advance:
        for group in groups:
            last = group is groups[-1]
            recorded = record(
                model, batches, group, pixels, patches=True, advance=advance,
                stop_early=not last and all(once[name].calls == 1 for name in group),
                cache=cache if len(groups) > 1 else None, outputs=outputs if last else None,
            )  # fmt: skip
            for name, conv in group.items():
                size = moment_bytes(conv)
                if held + size <= 3 * memory // 16:
                    moments[name] = recorded_moments(conv, recorded[name])
                    held += size
                recordings[name] = _without_samples(recorded.pop(name))
                advance(name)
    return recordings, moments, outputs


def _without_samples(recording: Recording) -> Recording:
    """Return a recording that only counts its samples. A view of them would keep all of their memory."""
    return replace(recording, patches=None, outputs=torch.empty(len(recording.outputs), 0), residual=None)


def _group_layers(
    layers: Mapping[str, Conv], pixels: Mapping[str, int], once: Mapping[str, Recording], memory: int
) -> list[dict[str, Conv]]:
    """Cut the layers into groups whose recordings fit in three eighths of the memory, at least one layer each."""
    groups: list[dict[str, Conv]] = [{}]
    held = 0
    for name, conv in layers.items():
        values = patch_entries(conv) * conv.groups + 2 * conv.out_channels
        size = 4 * pixels[name] * once[name].calls * values
        if groups[-1] and held + size > 3 * memory // 8:
            groups.append({})
            held = 0
        groups[-1][name] = conv
        held += size
    return groups


def _warn_of_few_pixels(running: Mapping[str, Conv], recordings: Mapping[str, Recording]) -> None:
    few = [name for name, conv in running.items() if len(recordings[name].outputs) < patch_entries(conv)]
    if few:
        warnings.warn(
            f"{len(few)} of {len(running)} layers (the first is {few[0]}) have fewer output pixels on these images "
            "than their patches have entries. In directions that the images do not cover, the fit stays near the dense "
            "kernel. Give more images",
            stacklevel=4,
        )


def _layer_statistics(
    model: nn.Module,
    name: str,
    conv: Conv,
    once: Recording,
    recording: Recording,
    pixels: int,
    moments: tuple[Moments, ...] | None,
) -> LayerStatistics:
    # The consumer comes from the short pass: a pass that stops early does not see all uses of an output.
    scale, shift = norm_affine(model, once.consumer.norm, conv.out_channels)
    return LayerStatistics(
        name=name,
        spec=spec_of(conv),
        inputs=recording.inputs,
        input_pixels=recording.input_pixels,
        macs=recording.macs,
        parameters=sum(p.numel() for p in conv.parameters()),
        consumer=once.consumer,
        scale=scale,
        shift=shift,
        pixels=pixels,
        moments=moments,
    )
