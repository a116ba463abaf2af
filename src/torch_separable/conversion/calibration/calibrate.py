"""Calibration: what the fit has to know about a network and its inputs, from unlabelled images."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torch_separable._console.progress import progress_bar
from torch_separable._network.checks import as_network
from torch_separable._network.outputs import evaluating, logits_of
from torch_separable._network.weights import check_weights, refresh_weights
from torch_separable.conversion.calibration.observer import Batch, ConsumerPattern, Recording, placed, record, run
from torch_separable.conversion.calibration.replay_cache import ReplayCache
from torch_separable.conversion.layers import Conv, find_convertible, grouped_weight, spec_of, without
from torch_separable.conversion.solvers.factorize import Moments, dense_moments
from torch_separable.cost import analyze
from torch_separable.cost.formulas import ConvSpec
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.nn.rank_by_rank import rank_by_rank

Images = Tensor | Mapping[str, Tensor] | Iterable[Batch]

DEFAULT_MEMORY = 4 * 1024**3
# Images of a batch of up to 80x80 pixels, and fewer larger ones: maps of some tens of megabytes are allocated again and
# again, and beyond that each time page by page.
_BATCH, _LEAST_BATCH, _BATCH_PIXELS = 64, 8, 64 * 80 * 80
_FEWEST_IMAGES = 8
# Output pixels that are sampled of a layer. A fit is of thousands of weights, to noise as well as to what the layer
# does, and more pixels leave less of that. Second moments take a multiply-add for each pair of a patch's entries, so
# large layers are given fewer.
_FEWEST_PIXELS, _USUAL_PIXELS, _MOST_PIXELS, _ENOUGH_PIXELS = 1024, 8192, 32768, 65536
_QUICK_WORK = 2**36  # multiply-adds
_LARGEST = 32  # normalised pixels stay well below
_BLOCK = 512  # rows of samples that are centred, and rows of moments that are added to, at a time


@dataclass(frozen=True)
class LayerStatistics:
    """One convertible convolution, and its input over the calibration images.

    Attributes:
        name: its module name.
        spec: its shape.
        inputs: for each call the input's shape that one image makes of it, images and spatial size: (1, H, W), and
            (T, H, W) where the network folds T frames into the batch.
        input_pixels: pixels of its input for each image, over all its calls.
        macs: its multiply-accumulates for each image, over all its calls.
        parameters: its parameters as they stand (a parametrised weight has other ones than its shape says).
        flow: what becomes of its output.
        scale: factor of each output channel in the batch norm that follows (ones without), shape (M,), float64.
        shift: the batch norm's other term, shape (M,), float64.
        pixels: how many output pixels are sampled at each call.
        moments: second moments of the sampled patches with the dense output as target, one entry a group; ``None``
            where they do not fit in the memory given to `calibrate`: `moments_of` computes them when they are needed.
    """

    name: str
    spec: ConvSpec
    inputs: tuple[tuple[int, ...], ...]
    input_pixels: int
    macs: int
    parameters: int
    flow: ConsumerPattern
    scale: Tensor
    shift: Tensor
    pixels: int
    moments: tuple[Moments, ...] | None

    @property
    def calls(self) -> int:
        """How often the network calls it."""
        return len(self.inputs)


@dataclass(frozen=True)
class Statistics:
    """What calibration found; `plan` chooses by it.

    Attributes:
        layers: the convertible convolutions that ran, in the order in which they run.
        kept: why other convolutions stay, by module name.
        batches: the calibration images, channels-last where the network can take that.
        outputs: the dense network's outputs for them, flat for each image, shape (N, ...).
        classes: of the outputs; each image has one or several numbers for each class.
        macs: multiply-accumulates of the whole dense network for each image.
        parameters: of the whole dense network.
        memory: bytes that recording may take.
    """

    layers: tuple[LayerStatistics, ...]
    kept: Mapping[str, str]
    batches: tuple[Batch, ...]
    outputs: Tensor
    classes: int
    macs: int
    parameters: int
    memory: int

    def __getitem__(self, name: str) -> LayerStatistics:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)


def calibrate(
    model: nn.Module,
    images: Images,
    *,
    keep: Sequence[str] = (),
    memory: int = DEFAULT_MEMORY,
    progress: bool = False,
) -> Statistics:
    """Gather second moments of each convertible convolution's input patches, ``E[x xᵀ]``, from unlabelled images.

    The network runs in evaluation mode and is not changed. Some thousand output pixels of each layer are sampled over
    all images; 256 to 1,024 images suffice. Under ``torch.distributed`` (``accelerate launch``) the moments are
    averaged over the processes, each of which gives its own images.

    Args:
        model: the trained dense network.
        images: a tensor (N, C, H, W), prepared as in training; a mapping of tensors that the network takes as keyword
            arguments, as ``{"left": ..., "right": ...}``; or an iterable of batches of either.
        keep: convolutions that stay as they are: names, those of modules that hold them, or patterns, as ``*.conv1``.
        memory: bytes that samples, moments and what passes keep for the next may take at a time; a layer that needs
            more by itself for 1,024 output pixels takes it. The layers are recorded in as many passes as that needs.
        progress: whether a bar may appear on a terminal.

    Raises:
        SeparableError: there is nothing to convert, too few images, or images that the network cannot take; NaN or
            infinity in the images, the weights, or (naming the layer) in an activation.
        SeparableValueError: ``keep`` names nothing that could be converted.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        >>> statistics = calibrate(net, torch.randn(16, 3, 12, 12))
        >>> [(layer.name, layer.macs, layer.flow.rectified) for layer in statistics.layers]
        [('0', 31104, True), ('2', 82944, False)]
    """
    as_network(model)
    batches = batches_of(images)
    check_weights(model)
    found = without(find_convertible(model), keep)
    if not found.convertible:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(found.kept.items())[:3])
        raise SeparableError(f"{type(model).__name__} has no convolution to convert ({reasons or 'none at all'})")
    if "" in found.convertible:
        raise SeparableError("the network is a single convolution, which has no place in a network: wrap it in one")
    refresh_weights(model)
    batches = _laid_out(model, batches)
    # A first look: which layers run, in which order, and how often.
    once = record(model, [_first(batches[0], _FEWEST_IMAGES)], found.convertible, dict.fromkeys(found.convertible, 1))
    running = {name: found.convertible[name] for name in once}
    unused = {name: "never ran on the calibration images" for name in found.convertible if name not in once}
    kept = {**found.kept, **unused}
    if not running:
        raise SeparableError(f"{type(model).__name__} has convolutions, but none to convert ran on the images")

    pixels = {name: pixels_for(conv, memory, once[name].calls) for name, conv in running.items()}
    seen: dict[str, Recording] = {}
    moments: dict[str, tuple[Moments, ...]] = {}
    few: list[str] = []
    held = 0
    groups = _groups(running, pixels, once, memory)
    steps = len(groups) * len(batches) + len(running)
    cache = ReplayCache(memory // 8)
    outputs: list[Tensor] = []
    with progress_bar("calibrating", steps, shown=progress) as advance:
        for group in groups:
            last = group is groups[-1]
            recordings = record(
                model, batches, group, pixels, patches=True, advance=advance,
                stop_early=not last and all(once[name].calls == 1 for name in group),
                cache=cache if len(groups) > 1 else None, outputs=outputs if last else None,
            )  # fmt: skip
            for name, conv in group.items():
                if len(recordings[name].outputs) < conv.weight[0].numel():
                    few.append(name)
                size = _moment_bytes(conv)
                if held + size <= 3 * memory // 16:
                    moments[name] = _dense_moments(conv, recordings[name])
                    held += size
                seen[name] = replace(recordings.pop(name), patches=None, outputs=torch.empty(0), residual=None)
                advance(name)

    if few:
        warnings.warn(
            f"{len(few)} of {len(running)} layers (the first is {few[0]}) give fewer pixels for these images than "
            "their patches have entries: where the images say nothing, the kernel keeps to the dense one. "
            "Give more images",
            stacklevel=2,
        )
    known = joined(model, outputs)
    if not known.isfinite().all(0).any():
        raise SeparableError(
            f"no output of {type(model).__name__} is finite for all calibration images: nothing is left to compare"
        )
    total = analyze(model, _first(placed(model, batches[0]), 1))
    layers = []
    for name, conv in running.items():
        recording = seen[name]
        flow = once[name].flow
        scale, shift = norm_affine(model, flow.norm, conv.out_channels)
        layers.append(
            LayerStatistics(
                name=name,
                spec=spec_of(conv),
                inputs=recording.inputs,
                input_pixels=recording.input_pixels,
                macs=recording.macs,
                parameters=sum(p.numel() for p in conv.parameters()),
                flow=flow,
                scale=scale,
                shift=shift,
                pixels=pixels[name],
                moments=moments.get(name),
            )
        )
    return Statistics(
        layers=tuple(layers),
        kept=kept,
        batches=batches,
        outputs=known,
        classes=outputs[0].shape[1] if outputs[0].dim() > 1 else 1,
        macs=total.macs,
        parameters=sum(p.numel() for p in model.parameters()),
        memory=memory,
    )


def check_statistics(model: nn.Module, statistics: Statistics, found: Mapping[str, Conv]) -> None:
    """Require that the statistics are of this network.

    Args:
        model: the network.
        statistics: from `calibrate`.
        found: its convolutions that can be converted, by name.

    Raises:
        SeparableError: naming the first layer that differs.
    """
    for layer in statistics.layers:
        if layer.name not in found or spec_of(found[layer.name]) != layer.spec:
            raise SeparableError(
                f"the statistics are of another network: their layer {layer.name} is no such convolution of "
                f"{type(model).__name__}. Give what calibrate(...) returned for this network"
            )


def never_ran(name: str) -> SeparableError:
    """What is said of a layer of a plan that no calibration image reaches."""
    return SeparableError(
        f"layer {name} of the plan never ran on the calibration images: keep it, or give images that reach it"
    )


def moments_of(model: nn.Module, statistics: Statistics, name: str) -> tuple[Moments, ...]:
    """Return the moments of one layer, gathered anew where `calibrate` had no room to keep them."""
    layer = statistics[name]
    if layer.moments is not None:
        return layer.moments
    conv = find_convertible(model).convertible[name]
    once = layer.calls == 1
    recording = record(model, statistics.batches, {name: conv}, {name: layer.pixels}, patches=True, stop_early=once)
    return _dense_moments(conv, recording[name])


def sample_moments(
    patches: Tensor, target: Tensor, groups: int, known: tuple[Moments, ...] | None = None, *, single: bool = False
) -> tuple[Moments, ...]:
    """Compute centred second moments of samples, in float64, one entry a group.

    Args:
        patches: (P, C·K).
        target: (P, M).
        groups: of the convolution.
        known: moments of the same patches with another target, whose share of the work is taken over.
        single: whether the products of ``cross`` may be taken in the samples' own precision, for fits that lose more
            than `SINGLE`.
    """
    result = []
    for g, (x, t) in enumerate(zip(patches.chunk(groups, dim=1), target.chunk(groups, dim=1), strict=True)):
        count, sum_x, sum_t = over_processes(
            torch.tensor(float(len(x)), dtype=torch.float64),
            x.sum(0, dtype=torch.float64),
            t.sum(0, dtype=torch.float64),
        )
        mean_x, mean_t = sum_x / count, sum_t / count
        entries, outputs = x.shape[1], t.shape[1]
        S, T, v = (sum_x.new_zeros(shape) for shape in ((entries, entries), (outputs, entries), (outputs,)))
        # In double precision: rounded to single, S need not be positive definite by as much as the ridge.
        precision = x.dtype if single and known is not None else torch.float64
        for xb, tb in zip(x.split(_BLOCK), t.split(_BLOCK), strict=True):
            xc, tc = xb - mean_x.to(precision), tb - mean_t.to(precision)
            if known is None:
                _add_gram(S, xc)
            T += tc.T @ xc
            v += tc.square().sum(0, dtype=v.dtype)
        S, T, v = over_processes(S, T, v)
        S = (S.triu() + S.triu(1).T) / count if known is None else known[g].patches
        result.append(Moments(S, T / count, mean_x, mean_t, v / count, int(count)))
    return tuple(result)


def _add_gram(S: Tensor, samples: Tensor) -> None:
    """Add ``samplesᵀ samples`` to the upper triangle of ``S``, and to as little below it as whole blocks allow."""
    for first in range(0, len(S), _BLOCK):
        S[first : first + _BLOCK, first:] += samples[:, first : first + _BLOCK].T @ samples[:, first:]


def over_processes(*sums: Tensor) -> tuple[Tensor, ...]:
    """Add up sums over the processes of ``torch.distributed``, where there are several."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for tensor in sums:
            dist.all_reduce(tensor)
    return sums


def _dense_moments(conv: Conv, recording: Recording) -> tuple[Moments, ...]:
    assert recording.patches is not None
    gathered = sample_moments(recording.patches, recording.outputs, conv.groups)
    weights = grouped_weight(conv)
    biases = [None] * conv.groups if conv.bias is None else list(conv.bias.detach().cpu().double().chunk(conv.groups))
    return tuple(
        dense_moments(w, b, m.patches, m.patch_mean, m.count) for w, b, m in zip(weights, biases, gathered, strict=True)
    )


def batches_of(images: Images) -> tuple[Batch, ...]:
    """Check images and cut them into batches.

    Raises:
        SeparableError: none, too few, or NaN or infinity among them.
    """
    if isinstance(images, Tensor):
        if images.dim() < 3:
            raise SeparableValueError(f"images have shape {tuple(images.shape)}: expected (N, C, H, W)")
        size = max(_LEAST_BATCH, min(_BATCH, _BATCH_PIXELS // max(1, images[0, 0].numel()))) if len(images) else 1
        batches: tuple[Batch, ...] = tuple(images.split(size)) if len(images) else ()
    elif isinstance(images, Mapping):
        batches = tuple(_in_batches(images))
    elif isinstance(images, Iterable):
        batches = tuple(batch for batch in images if not _is_empty(batch))
    else:
        raise SeparableValueError(f"images are a {type(images).__name__}: expected a tensor or an iterable of batches")
    count = 0
    for i, batch in enumerate(batches):
        tensors = list(batch.values()) if isinstance(batch, Mapping) else [batch]
        if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
            raise SeparableValueError(
                f"batch {i} of the calibration images is a {type(batch).__name__}: expected a tensor (N, C, H, W), or "
                "a mapping of tensors; leave labels away"
            )
        counts = {len(tensor) if tensor.dim() else None for tensor in tensors}
        if len(counts) > 1 or None in counts:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
            raise SeparableValueError(
                f"batch {i} of the calibration images holds tensors of shapes {shapes}: all need the images as their "
                "first dimension"
            )
        for tensor in tensors:
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise SeparableError(
                    f"batch {i} of the calibration images holds NaN or infinity: leave these images out"
                )
        pixels = [tensor for tensor in tensors if tensor.is_floating_point()]
        if not pixels:
            raise SeparableValueError(
                f"batch {i} of the calibration images is of {tensors[0].dtype}: expected floating point, scaled and "
                "normalised as in training"
            )
        count += len(pixels[0])
        largest = max((float(tensor.abs().max()) for tensor in pixels if tensor.numel()), default=0.0)
        if i == 0 and largest > _LARGEST:
            warnings.warn(
                f"calibration images reach {largest:.0f}: they look unnormalised. "
                "Prepare them as in training, or the fit is for the wrong inputs",
                stacklevel=3,
            )
    if count < _FEWEST_IMAGES:
        raise SeparableError(
            f"{count} calibration images: at least {_FEWEST_IMAGES} are needed, and 256 to 1,024 recommended"
        )
    if _are_one(batches):
        raise SeparableError(
            f"all {count} calibration images are the same: nothing can be fitted to them. Look at what loads them"
        )
    return batches


def _are_one(batches: Sequence[Batch]) -> bool:
    """Whether every image is the first again."""

    def pixels(batch: Batch) -> list[Tensor]:
        return (
            [batch] if isinstance(batch, Tensor) else [value for value in batch.values() if value.is_floating_point()]
        )

    first = [tensor[:1] for tensor in pixels(batches[0])]
    return all(
        tensor.shape[1:] == one.shape[1:] and torch.equal(tensor, one.expand_as(tensor))
        for batch in batches
        for tensor, one in zip(pixels(batch), first, strict=True)
    )


def _in_batches(images: Mapping[str, Tensor]) -> Iterator[Batch]:
    """Several inputs of all images, cut into batches."""
    whole = all(isinstance(value, Tensor) and value.dim() > 0 for value in images.values())
    count = len(next(iter(images.values()))) if images and whole else 0
    if not count:
        yield images  # of which the check says what is wrong
    for first in range(0, count, _BATCH):
        yield {name: value[first : first + _BATCH] for name, value in images.items()}


def _is_empty(batch: object) -> bool:
    tensors = list(batch.values()) if isinstance(batch, Mapping) else [batch]
    return all(isinstance(tensor, Tensor) and tensor.dim() > 0 and not len(tensor) for tensor in tensors)


def _laid_out(model: nn.Module, batches: Sequence[Batch]) -> tuple[Batch, ...]:
    """Lay images of two dimensions out channels-last, unless the network needs PyTorch's usual layout.

    Convolutions keep that layout up, and a pass through a network is up to a third faster in it; but what flattens
    their outputs by ``view`` cannot take it.
    """
    try:
        with evaluating(model), torch.no_grad():
            run(model, _first(_as(torch.channels_last, batches[0]), _FEWEST_IMAGES))
    except SeparableError:  # what is wrong besides is told where all images are run
        return tuple(_as(torch.contiguous_format, batch) for batch in batches)
    return tuple(_as(torch.channels_last, batch) for batch in batches)


def _as(layout: torch.memory_format, batch: Batch) -> Batch:
    def one(value: Tensor) -> Tensor:
        images = value.dim() == 4 and value.is_floating_point()
        return value.contiguous(memory_format=layout) if images else value

    return {name: one(value) for name, value in batch.items()} if isinstance(batch, Mapping) else one(batch)


def network_outputs(model: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """Run the network in evaluation mode; return its outputs, flat for each image, in float32."""
    with evaluating(model), rank_by_rank(model), torch.no_grad():
        return joined(model, [logits_of(run(model, batch)) for batch in batches])


def joined(model: nn.Module, logits: Sequence[Tensor]) -> Tensor:
    """Logits of each batch as one tensor, flat for each image, in float32."""
    outputs = [flat(tensor) for tensor in logits]
    for i, output in enumerate(outputs):
        if output.shape[1] != outputs[0].shape[1]:
            raise SeparableError(
                f"{type(model).__name__} gives {output.shape[1]:,} outputs an image for batch {i} of the calibration "
                f"images, and {outputs[0].shape[1]:,} for the first: give images of one size"
            )
    return torch.cat(outputs)


def flat(logits: Tensor) -> Tensor:
    """A batch's logits flat for each image, (n, ...), in float32 on the CPU."""
    return logits.detach().float().cpu().reshape(len(logits) if logits.dim() else 1, -1)


def norm_affine(model: nn.Module, name: str | None, channels: int) -> tuple[Tensor, Tensor]:
    """Return scale and shift that a batch norm applies in evaluation mode, (M,) each; 1 and 0 without one."""
    scale, shift = torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    if name is None:
        return scale, shift
    norm = model.get_submodule(name)
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    if norm.running_mean is None or norm.running_var is None:
        return scale, shift
    scale = (norm.running_var.cpu().double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().cpu().double()
    if norm.bias is not None:
        shift = norm.bias.detach().cpu().double()
    return scale, shift - scale * norm.running_mean.cpu().double()


def pixels_for(conv: Conv, memory: int, calls: int) -> int:
    """How many output pixels to sample at each call, within the memory.

    As many as help, where a layer is small; of large ones as many as the work allows, and at least four for each entry
    of a patch.
    """
    entries = conv.weight[0].numel()
    quick = _QUICK_WORK // (conv.groups * entries**2)
    fitting = memory // 4 // (4 * (entries * conv.groups + 2 * conv.out_channels))
    wanted = max(min(_ENOUGH_PIXELS, quick), min(4 * entries, _MOST_PIXELS), _USUAL_PIXELS)
    return -(-max(_FEWEST_PIXELS, min(wanted, fitting)) // calls)


def _moment_bytes(conv: Conv) -> int:
    entries = conv.weight[0].numel()
    return 8 * entries * (conv.groups * entries + conv.out_channels)


def _groups(
    layers: Mapping[str, Conv], pixels: Mapping[str, int], seen: Mapping[str, Recording], memory: int
) -> list[dict[str, Conv]]:
    """Cut the layers into runs whose recordings fit in three eighths of the memory, at least one layer each."""
    groups: list[dict[str, Conv]] = [{}]
    held = 0
    for name, conv in layers.items():
        values = conv.weight[0].numel() * conv.groups + 2 * conv.out_channels
        size = 4 * pixels[name] * seen[name].calls * values
        if groups[-1] and held + size > 3 * memory // 8:
            groups.append({})
            held = 0
        groups[-1][name] = conv
        held += size
    return groups


def _first(batch: Batch, count: int) -> Batch:
    """Return the first images of a batch."""
    return {name: value[:count] for name, value in batch.items()} if isinstance(batch, Mapping) else batch[:count]
