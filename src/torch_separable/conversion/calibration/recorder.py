"""Hooks and a dispatch mode that observe convolutions while a network runs.

The network is not traced. Module hooks see the inputs and outputs of convolutions and batch norms. A dispatch mode
follows each output: whether it is added to a residual branch, and whether a ReLU follows.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from torch_separable._network.all_outputs import tensors_in
from torch_separable.conversion.convolutions import Conv, patches_of
from torch_separable.errors import SeparableError

_BLOCK = 1024  # patches that are copied at a time
_ADD = {torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor}
_RELU = {torch.ops.aten.relu.default, torch.ops.aten.relu_.default}


class PassStopped(BaseException):
    """A forward pass was stopped because everything asked for is recorded.

    Not an ``Exception``, so that a network's own ``except Exception`` does not catch it.
    """


class PatchBuffer:
    """Patches collected batch by batch in one tensor. Joining blocks at the end would take twice the memory."""

    def __init__(self) -> None:
        self.buffer = torch.empty(0, 0)
        self.used = 0

    def add(self, patches: Tensor, index: tuple[Tensor, ...], share: float) -> None:
        """Append the patches at ``index``, which are expected to be a ``share`` of all patches to come."""
        if not self.used:
            self.buffer = torch.empty(math.ceil(len(index[0]) / share), patches[(0,) * len(index)].numel())
        while self.used + len(index[0]) > len(self.buffer):
            self.buffer = torch.cat([self.buffer, torch.empty_like(self.buffer)])
        for block in zip(*(i.split(_BLOCK) for i in index), strict=True):
            rows = slice(self.used, self.used + len(block[0]))
            found = patches[block]
            # Copied in its own shape: flattening it could copy it a second time, as its layout is arbitrary.
            self.buffer[rows].view(found.shape).copy_(found)
            self.used = rows.stop

    def joined(self) -> Tensor:
        """Return all patches, (P, C·K)."""
        return self.buffer[: self.used]


@dataclass
class LayerRecord:
    """What has been recorded of one layer so far. Lists have one entry for each call of each batch.

    Attributes:
        patches: sampled input patches.
        outputs: sampled outputs.
        residual: the other operands of additions, sampled at the same pixels.
        norms: names of the batch norms that took the output.
        rectified: how many calls were followed by a ReLU.
        branches: whether the output is used elsewhere before it is added to anything.
        used_otherwise: whether the output or the sum is used by anything but a ReLU.
        inputs: batch 0 only: inputs that one image makes and their spatial size.
        shapes: batch and spatial size of the outputs.
        input_pixels: batch 0 only: pixels of the inputs.
        output_pixels: batch 0 only: pixels of the outputs.
    """

    patches: PatchBuffer
    outputs: list[Tensor] = field(default_factory=list)
    residual: list[Tensor] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    rectified: int = 0
    branches: bool = False
    used_otherwise: bool = False
    inputs: list[tuple[int, ...]] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    input_pixels: int = 0
    output_pixels: int = 0

    @property
    def calls(self) -> int:
        """Calls so far, over all batches."""
        return len(self.outputs)

    @property
    def same_norm(self) -> bool:
        """Whether all calls go into the same batch norm, or none into any."""
        return len(set(self.norms)) <= 1 and len(self.norms) in (0, self.calls)

    @property
    def added_to_all(self) -> bool:
        """Whether every call's output is added to another tensor."""
        return self.same_norm and len(self.residual) == self.calls


@dataclass(frozen=True)
class _TrackedOutput:
    """A tensor that a layer's output became, and the pixels that were sampled of it."""

    name: str
    index: tuple[Tensor, ...]
    normed: bool = False
    added: bool = False


class Recorder(TorchDispatchMode):
    """Observes layers of a network while it runs; `record` drives it.

    Args:
        model: the network.
        layers: convolutions to record, by name.
        pixels: for each layer, output pixels to sample at each call, over all batches.
        images: number of images in each batch.
        patches: whether to record input patches.
        stop_early: whether to raise `PassStopped` once all layers and the operations after them are recorded.
        seed: random seed for sampling pixels.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Conv],
        pixels: Mapping[str, int],
        images: Sequence[int],
        *,
        patches: bool,
        stop_early: bool,
        seed: int,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model, self.layers, self.pixels = model, layers, pixels
        self.images, self.wants_patches, self.stop_early, self.seed = images, patches, stop_early, seed
        self.records: dict[str, LayerRecord] = {}
        self.batch = -1
        self.calls: dict[str, int] = {}
        self.followed: set[str] = set()  # layers whose consumer was seen in this pass
        self.tracked: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.in_norm: Tensor | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Register the hooks for the block, before the network's own hooks, which may change a layer's output."""
        names = {id(conv): name for name, conv in self.layers.items()}
        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                hooks = []
                if id(module) in names:
                    hook = self._convolution_hook(names[id(module)])
                    hooks.append(module.register_forward_hook(hook, prepend=True, with_kwargs=True))
                elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                    enter, leave = self._norm_hooks(name)
                    hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                    hooks.append(module.register_forward_hook(leave, prepend=True))
                for handle in hooks:
                    stack.callback(handle.remove)
            yield

    def begin_batch(self, index: int) -> None:
        """Forget the tensors of the pass before."""
        self.batch = index
        self.calls = {}
        self.followed = set()
        self.tracked = WeakTensorKeyDictionary()
        self.in_norm = None

    def note_returned(self, output: Any) -> None:
        """Note that the network returned ``output``, so the caller uses its tensors."""
        for _, tensor in tensors_in(output):
            self._note_other_use(self._tracked_as(tensor))

    def _note_other_use(self, outputs: tuple[_TrackedOutput, ...]) -> None:
        for output in outputs:
            self.records[output.name].used_otherwise = True
            self.records[output.name].branches |= not output.added

    def _tracked_as(self, value: Any) -> tuple[_TrackedOutput, ...]:
        return self.tracked.get(value, ()) if isinstance(value, Tensor) else ()

    def _convolution_hook(self, name: str) -> Any:
        def hook(conv: Conv, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor], output: Tensor) -> None:
            inputs, result = input_of(args, kwargs), output
            record = self.records.setdefault(name, LayerRecord(PatchBuffer()))
            call = self.calls[name] = self.calls.get(name, -1) + 1
            if inputs.dim() == len(conv.kernel_size) + 1:  # one image without a batch dimension
                inputs, result = inputs[None], result[None]
            for what, tensor in (("input", inputs), ("output", result)):
                if not torch.isfinite(tensor).all():
                    raise SeparableError(f"the {what} of layer {name} contains NaN or infinity in batch {self.batch}")
            record.shapes.append((result.shape[0], *result.shape[2:]))
            index = self._sample(name, call, record.shapes[-1])
            if self.wants_patches:
                record.patches.add(patches_of(conv, inputs.detach()), index, self._share)
            record.outputs.append(_at(result, index))
            if self.batch == 0:
                record.inputs.append((max(1, round(len(inputs) / self.images[0])), *inputs.shape[2:]))
                record.input_pixels += inputs[:, 0].numel()
                record.output_pixels += result[:, 0].numel()
            self.tracked[output] = (_TrackedOutput(name, index),)

        return hook

    @property
    def _share(self) -> float:
        """The current batch's share of all images."""
        return self.images[self.batch] / sum(self.images)

    def _sample(self, name: str, call: int, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
        total = torch.Size(shape).numel()
        wanted = min(total, math.ceil(self.pixels[name] * self._share))
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name} {self.batch} {call}".encode()))
        # With replacement: as good for moments, and it needs no permutation of millions of pixels.
        # Sorted, so that samples are in the order of the images, and halves of them stem from different images.
        flat = (
            torch.randint(total, (wanted,), generator=generator).sort().values
            if wanted < total
            else torch.arange(total)
        )
        return torch.unravel_index(flat, shape)

    def _norm_hooks(self, name: str) -> tuple[Any, Any]:
        def enter(module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
            given = input_of(args, kwargs)
            if any(not (output.normed or output.added) for output in self._tracked_as(given)):
                self.in_norm = given

        def leave(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if self.in_norm is None:
                return
            outputs = self._tracked_as(self.in_norm)
            self.in_norm = None
            for tracked in outputs:
                self.records[tracked.name].norms.append(name)
            self.tracked[output] = tuple(replace(tracked, normed=True) for tracked in outputs)

        return enter, leave

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.tracked:  # most operations, where few layers are recorded
            return func(*args, **kwargs)
        arguments = {id(leaf): leaf for leaf in tree_leaves((args, kwargs)) if self._tracked_as(leaf)}
        arguments.pop(id(self.in_norm), None)
        sums: list[_TrackedOutput] = []
        for tensor in arguments.values():
            outputs = self._tracked_as(tensor)
            if func in _ADD and not any(output.added for output in outputs) and _is_plain_sum(args, kwargs):
                sums += self._note_addition(outputs, other=args[1] if args[0] is tensor else args[0])
            elif func in _RELU:
                for output in outputs:
                    self.records[output.name].rectified += 1
            else:
                self._note_other_use(outputs)
        result = func(*args, **kwargs)
        if func is torch.ops.aten.relu_.default:
            self.tracked.pop(result, None)  # its later users see the rectified values
        elif sums:
            self.tracked[result] = tuple(sums)
        if self.stop_early and arguments:
            self.followed |= {output.name for tensor in arguments.values() for output in self._tracked_as(tensor)}
            if len(self.followed) == len(self.layers):
                raise PassStopped
        return result

    def _note_addition(self, outputs: tuple[_TrackedOutput, ...], other: Tensor) -> list[_TrackedOutput]:
        for output in outputs:
            batched = other if other.dim() > len(output.index) else other[None]
            self.records[output.name].residual.append(_at(batched, output.index))
        return [replace(output, added=True) for output in outputs]


def input_of(args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> Tensor:
    """Return the input of a layer's call, whether it was passed by position or by name."""
    return args[0] if args else kwargs["input"]


def _is_plain_sum(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    one, other = args[:2]
    tensors = isinstance(one, Tensor) and isinstance(other, Tensor)
    return tensors and one is not other and one.shape == other.shape and kwargs.get("alpha", 1) == 1


def _at(tensor: Tensor, index: tuple[Tensor, ...]) -> Tensor:
    """Return the values of (N, M, *size) at the sampled pixels, (P, M), in single precision on the CPU."""
    where: tuple[Any, ...] = (index[0], slice(None), *index[1:])
    return tensor.detach()[where].float().cpu()
