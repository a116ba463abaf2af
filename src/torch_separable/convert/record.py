"""Recording what single convolutions of a network see and give while it runs, at a sample of their output pixels.

No tracing is needed: module hooks see inputs and outputs of the convolutions and batch norms, and a dispatch mode sees
what becomes of an output afterwards: whether it is added to a residual branch, and whether a ReLU follows.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from torch_separable.convert.layers import Conv, patches_of
from torch_separable.errors import SeparableError
from torch_separable.outputs import evaluating

Batch = Tensor | Mapping[str, Tensor]

_ADD = {torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor}
_RELU = {torch.ops.aten.relu.default, torch.ops.aten.relu_.default}


@dataclass(frozen=True)
class Flow:
    """What becomes of a convolution's output.

    Attributes:
        norm: name of the batch norm that it goes into, if any.
        residual: whether it is then added to another tensor of its shape.
        rectified: whether the result goes into a ReLU and nowhere else.
    """

    norm: str | None = None
    residual: bool = False
    rectified: bool = False


@dataclass(frozen=True)
class Recording:
    """What was seen of one convolution at ``P`` of its output pixels.

    Attributes:
        patches: its input there, (P, C·K), or None where they were not asked for.
        outputs: its output there, (P, M).
        residual: the other operand of the addition that follows there, (P, M), if there is one.
        flow: what became of the output.
        input_size: spatial size of the input (of the last call).
        calls: number of calls for each batch.
        macs: multiply-accumulates for each image, over all calls.
    """

    patches: Tensor | None
    outputs: Tensor
    residual: Tensor | None
    flow: Flow
    input_size: tuple[int, ...]
    calls: int
    macs: int


def record(
    model: nn.Module,
    batches: Sequence[Batch],
    layers: Mapping[str, Conv],
    pixels: Mapping[str, int],
    *,
    patches: bool = False,
    stop_early: bool = False,
    seed: int = 0,
) -> dict[str, Recording]:
    """Run ``model`` over ``batches`` in evaluation mode and record the ``layers``, in the order in which they run.

    The pixels are drawn from ``seed``, the layer's name, the batch and the call alone, so that the dense network and
    its converted copy are recorded at the same ones.

    Args:
        model: the network; its state is as before afterwards.
        batches: inputs, each (N, C, H, W) or keyword arguments.
        layers: convolutions of ``model`` by name.
        pixels: how many output pixels to record for each name, over all batches.
        patches: whether to record the inputs, too.
        stop_early: whether to leave each forward pass as soon as the layers (each called once) are recorded.
        seed: of the draw.

    Raises:
        SeparableError: the network cannot take a batch, or a layer's input or output holds NaN or infinity.
    """
    recorder = _Recorder(model, layers, pixels, len(batches), patches=patches, stop_early=stop_early, seed=seed)
    with evaluating(model), torch.no_grad(), recorder.attached():
        for batch in batches:
            recorder.begin_batch()
            try:
                with recorder:
                    run(model, batch)
            except _Recorded:
                pass
    return recorder.recordings()


def run(model: nn.Module, batch: Batch) -> Any:
    """Call ``model`` on a batch, on the device and (for images) in the dtype of its parameters.

    Raises:
        SeparableError: the model refuses the batch; the message holds its shape and the reason.
    """
    reference = next(model.parameters(), None)

    def placed(value: Any) -> Any:
        if reference is None or not isinstance(value, Tensor):
            return value
        return value.to(reference.device, reference.dtype if value.is_floating_point() else None)

    try:
        if isinstance(batch, Mapping):
            return model(**{name: placed(value) for name, value in batch.items()})
        return model(placed(batch))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shape = {k: tuple(v.shape) for k, v in batch.items()} if isinstance(batch, Mapping) else tuple(batch.shape)
        first = (str(error).splitlines() or [""])[0]
        raise SeparableError(
            f"{type(model).__name__} cannot take a batch of shape {shape}: {first}. "
            "Give images of the size and channels that it was trained on"
        ) from error


class _Recorded(Exception):  # noqa: N818 - it says that all is done, not that something failed
    """Everything that was asked for has been seen in this forward pass."""


@dataclass
class _Seen:
    """What has been gathered of one layer."""

    patches: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    residual: list[Tensor] = field(default_factory=list)
    norm: str | None = None
    rectified: bool = False
    used_otherwise: bool = False
    input_size: tuple[int, ...] = ()
    calls: int = 0
    macs: int = 0


@dataclass(frozen=True)
class _Track:
    """A tensor that a layer's output became, and the pixels that were drawn of it."""

    name: str
    index: tuple[Tensor, ...]
    added: bool = False


class _Recorder(TorchDispatchMode):
    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Conv],
        pixels: Mapping[str, int],
        batches: int,
        *,
        patches: bool,
        stop_early: bool,
        seed: int,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model, self.layers, self.pixels = model, layers, pixels
        self.batches, self.wants_patches, self.stop_early, self.seed = batches, patches, stop_early, seed
        self.seen: dict[str, _Seen] = {}
        self.batch = -1
        self.calls: dict[str, int] = {}
        self.tracks: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hold the hooks for the block."""
        names = {id(conv): name for name, conv in self.layers.items()}
        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                if id(module) in names:
                    handle = module.register_forward_hook(self._saw_convolution(names[id(module)]))
                elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                    handle = module.register_forward_hook(self._saw_norm(name))
                else:
                    continue
                stack.callback(handle.remove)
            yield

    def begin_batch(self) -> None:
        self.batch += 1
        self.calls = {}
        self.tracks = WeakTensorKeyDictionary()

    def _saw_convolution(self, name: str) -> Any:
        def hook(conv: Conv, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            dimensions = len(conv.kernel_size)
            given = inputs[0]
            seen = self.seen.setdefault(name, _Seen())
            call = self.calls[name] = self.calls.get(name, -1) + 1
            result = output
            if given.dim() == dimensions + 1:  # one image without a batch dimension
                given, result = given[None], result[None]
            for what, tensor in (("input", given), ("output", result)):
                if not torch.isfinite(tensor).all():
                    raise SeparableError(
                        f"{what} of layer {name} holds NaN or infinity in batch {self.batch}: "
                        "check the weights, and the images' range and normalisation"
                    )
            index = self._draw(name, call, (result.shape[0], *result.shape[2:]))
            if self.wants_patches:
                seen.patches.append(patches_of(conv, given)[index].flatten(1).float())
            seen.outputs.append(_at(result, index))
            if self.batch == 0:
                seen.input_size = tuple(given.shape[2:])
                seen.calls = call + 1
                seen.macs += conv.weight.numel() * result[0, 0].numel()
            self.tracks[output] = _Track(name, index)

        return hook

    def _draw(self, name: str, call: int, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
        total = torch.Size(shape).numel()
        wanted = min(total, -(-self.pixels[name] // self.batches))
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name} {self.batch} {call}".encode()))
        # Drawn with replacement: as good, and it needs no permutation of millions of pixels.
        flat = torch.randint(total, (wanted,), generator=generator) if wanted < total else torch.arange(total)
        return torch.unravel_index(flat, shape)

    def _saw_norm(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            track = self.tracks.get(inputs[0])
            if track is not None and not track.added:
                self.seen[track.name].norm = name
                self.tracks[output] = track

        return hook

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        tracked = [(i, self.tracks.get(a)) for i, a in enumerate(args) if isinstance(a, Tensor)]
        tracked = [(i, track) for i, track in tracked if track is not None]
        residual = False
        for i, track in tracked:
            seen = self.seen[track.name]
            if func in _ADD and i < 2 and not track.added:
                other = args[1 - i]
                if isinstance(other, Tensor) and other.shape == args[i].shape:
                    seen.residual.append(_at(other if other.dim() > len(track.index) else other[None], track.index))
                    residual = True
            elif func in _RELU:
                seen.rectified = True
            elif func.overloadpacket not in _NORMS:
                seen.used_otherwise = True
        result = func(*args, **(kwargs or {}))
        if residual and isinstance(result, Tensor):
            for _, track in tracked:
                self.tracks[result] = _Track(track.name, track.index, added=True)
        if self.stop_early and tracked and self._complete(func):
            raise _Recorded
        return result

    def _complete(self, func: Any) -> bool:
        """Whether every layer has been seen, and what follows it: an addition, a ReLU, or anything but a norm."""
        return len(self.calls) == len(self.layers) and func.overloadpacket not in _NORMS

    def recordings(self) -> dict[str, Recording]:
        result = {}
        for name, seen in self.seen.items():
            has_residual = len(seen.residual) == len(seen.outputs)
            result[name] = Recording(
                patches=torch.cat(seen.patches) if self.wants_patches else None,
                outputs=torch.cat(seen.outputs),
                residual=torch.cat(seen.residual) if has_residual else None,
                flow=Flow(seen.norm, has_residual, seen.rectified and not seen.used_otherwise),
                input_size=seen.input_size,
                calls=seen.calls,
                macs=seen.macs,
            )
        return result


_NORMS = {
    torch.ops.aten.native_batch_norm,
    torch.ops.aten._native_batch_norm_legit_no_training,
    torch.ops.aten._native_batch_norm_legit,
    torch.ops.aten.cudnn_batch_norm,
    torch.ops.aten.batch_norm,
    torch.ops.aten._batch_norm_impl_index,
}


def _at(tensor: Tensor, index: tuple[Tensor, ...]) -> Tensor:
    """Values of (N, M, *size) at pixels, (P, M)."""
    where: tuple[Any, ...] = (index[0], slice(None), *index[1:])
    return tensor[where].float()
