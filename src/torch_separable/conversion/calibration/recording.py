"""Recording what single convolutions of a network receive and return, at a sample of their output pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torch_separable._console.progress import Advance
from torch_separable._network.all_outputs import floating_outputs
from torch_separable._network.outputs import evaluating
from torch_separable.conversion.calibration.forward import place_batch, run_placed
from torch_separable.conversion.calibration.images import Batch, images_in
from torch_separable.conversion.calibration.recorder import LayerRecord, PassStopped, Recorder
from torch_separable.conversion.calibration.replay_cache import ReplayCache
from torch_separable.conversion.convolutions import Conv
from torch_separable.conversion.variants import pads_same


@dataclass(frozen=True)
class ConsumerPattern:
    """What a network does with a convolution's output.

    Attributes:
        norm: name of the batch norm that it goes into, if any.
        residual: whether it is then added to another tensor of its shape, and used nowhere else before.
        rectified: whether the result goes into a ReLU and nowhere else.
    """

    norm: str | None = None
    residual: bool = False
    rectified: bool = False


@dataclass(frozen=True)
class Recording:
    """What one convolution received and returned at ``P`` of its output pixels.

    Attributes:
        patches: input patches, (P, C·K), or ``None`` where they were not asked for.
        outputs: outputs, (P, M).
        residual: the other operand of the addition that follows, (P, M), if there is one.
        consumer: what the network does with the output.
        inputs: for each call, how many inputs one image makes and their spatial size: (1, H, W), or (T, H, W) where the
            network folds T frames into the batch.
        input_pixels: pixels of the input for each image, summed over the calls.
        shapes: batch and spatial size of the output at every call of every batch.
        macs: multiply-accumulates for each image, summed over the calls.
    """

    patches: Tensor | None
    outputs: Tensor
    residual: Tensor | None
    consumer: ConsumerPattern
    inputs: tuple[tuple[int, ...], ...]
    input_pixels: int
    shapes: tuple[tuple[int, ...], ...]
    macs: int

    @property
    def calls(self) -> int:
        """How often one forward pass calls the layer."""
        return len(self.inputs)


def record(
    model: nn.Module,
    batches: Sequence[Batch],
    layers: Mapping[str, Conv],
    pixels: Mapping[str, int],
    *,
    patches: bool = False,
    stop_early: bool = False,
    cache: ReplayCache | None = None,
    outputs: list[dict[str, Tensor]] | None = None,
    seed: int = 0,
    advance: Advance | None = None,
) -> dict[str, Recording]:
    """Run ``model`` over ``batches`` in evaluation mode and record ``layers``, in the order in which they run.

    The sampled pixels depend only on ``seed``, the layer's name, the batch and the call. So the dense network and its
    converted copy are sampled at the same pixels. Each batch contributes in proportion to its number of images.

    Args:
        model: the network; its state afterwards is its state before.
        batches: inputs, each (N, C, H, W) or keyword arguments.
        layers: convolutions of ``model`` by name.
        pixels: for each layer, how many output pixels to sample at each call, over all batches.
        patches: whether to record the input patches.
        stop_early: whether to stop each forward pass as soon as every layer (called once each) and the next operation
            on its output are recorded. That includes an addition, and may miss the ReLU after it.
        cache: operations that earlier passes over the same batches computed. ``layers`` must be in execution order, the
            first after those of all earlier passes, and nothing before it may have changed.
        outputs: list that the network's `floating_outputs` are appended to, one entry for each batch.
        seed: random seed for sampling pixels.
        advance: called after each batch.

    Raises:
        SeparableError: the network cannot take a batch, or a layer's input or output contains NaN or infinity.
    """
    for conv in layers.values():
        pads_same(conv)  # hooks ask for it inside a pass, where nothing may be run
    recorder = Recorder(
        model,
        layers,
        pixels,
        [images_in(batch) for batch in batches],
        patches=patches,
        stop_early=stop_early,
        seed=seed,
    )
    first = next(iter(layers.values()), model)
    with evaluating(model), torch.no_grad(), recorder.attached():
        for i, batch in enumerate(batches):
            placed = place_batch(model, batch)

            def call(i: int = i, placed: Batch = placed) -> Any:
                recorder.begin_batch(i)
                with recorder:
                    return run_placed(model, placed)

            try:
                returned = call() if cache is None else cache.run(i, first, call)
                recorder.note_returned(returned)
                if outputs is not None:
                    outputs.append(floating_outputs(returned))
            except PassStopped:
                pass
            if advance is not None:
                advance()
    return {name: _recording(recorder, name, layers[name]) for name in list(recorder.records)}


def _recording(recorder: Recorder, name: str, conv: Conv) -> Recording:
    """Take one layer's record out of the recorder, so that its blocks are freed as soon as they are joined."""
    record = recorder.records.pop(name)
    residual = record.added_to_all and not record.branches
    return Recording(
        patches=record.patches.joined() if recorder.wants_patches else None,
        outputs=torch.cat(record.outputs),
        residual=torch.cat(record.residual) if residual else None,
        consumer=_consumer_pattern(record),
        inputs=tuple(record.inputs),
        shapes=tuple(record.shapes),
        input_pixels=round(record.input_pixels / recorder.images[0]),
        macs=round(record.output_pixels * conv.weight.numel() / recorder.images[0]),
    )


def _consumer_pattern(record: LayerRecord) -> ConsumerPattern:
    """Return the pattern that all calls of a layer share; where they differ, claim nothing."""
    # An operand that itself depends on the layer's output cannot be corrected for by that output.
    residual = record.added_to_all and not record.branches
    rectified = record.same_norm and record.rectified == record.calls and (residual or not record.residual)
    return ConsumerPattern(
        norm=record.norms[0] if record.norms and record.same_norm else None,
        residual=residual,
        rectified=rectified and not record.used_otherwise,
    )
