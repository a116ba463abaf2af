"""Recording what single convolutions of a network see and give while it runs, at a sample of their output pixels.

No tracing is needed: module hooks see inputs and outputs of the convolutions and batch norms, and a dispatch mode sees
what becomes of an output afterwards: whether it is added to a residual branch, and whether a ReLU follows.
"""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from torch_separable._console.progress import Advance
from torch_separable._network.outputs import evaluating, logits_of
from torch_separable.conversion.calibration.replay_cache import ReplayCache
from torch_separable.conversion.layers import Conv, patches_of
from torch_separable.errors import SeparableError

Batch = Tensor | Mapping[str, Tensor]

_BLOCK = 1024  # patches that are copied at a time
_ADD = {torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor}
_RELU = {torch.ops.aten.relu.default, torch.ops.aten.relu_.default}


@dataclass(frozen=True)
class ConsumerPattern:
    """What becomes of a convolution's output.

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
    """What was seen of one convolution at ``P`` of its output pixels.

    Attributes:
        patches: its input there, (P, C·K), or None where they were not asked for.
        outputs: its output there, (P, M).
        residual: the other operand of the addition that follows there, (P, M), if there is one.
        flow: what became of the output.
        inputs: for each call the input's shape that one image makes of it, images and spatial size: (1, H, W), and
            (T, H, W) where the network folds T frames into the batch.
        input_pixels: pixels of the input for each image, over all calls.
        shapes: of the output, images and spatial size, at every call for every batch.
        macs: multiply-accumulates for each image, over all calls.
    """

    patches: Tensor | None
    outputs: Tensor
    residual: Tensor | None
    flow: ConsumerPattern
    inputs: tuple[tuple[int, ...], ...]
    input_pixels: int
    shapes: tuple[tuple[int, ...], ...]
    macs: int

    @property
    def calls(self) -> int:
        """How often the network calls it for each batch."""
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
    outputs: list[Tensor] | None = None,
    seed: int = 0,
    advance: Advance | None = None,
) -> dict[str, Recording]:
    """Run ``model`` over ``batches`` in evaluation mode and record the ``layers``, in the order in which they run.

    The pixels are drawn from ``seed``, the layer's name, the batch and the call alone, so that the dense network and
    its converted copy are recorded at the same ones. Of each batch as many are drawn as its share of the images says.

    Args:
        model: the network; its state is as before afterwards.
        batches: inputs, each (N, C, H, W) or keyword arguments.
        layers: convolutions of ``model`` by name.
        pixels: how many output pixels to record for each name at each call, over all batches.
        patches: whether to record the inputs, too.
        stop_early: whether to leave each forward pass as soon as the layers (each called once) are recorded, and what
            their outputs go into: an addition, but perhaps not the ReLU after it.
        cache: what passes over the same batches have computed before; ``layers`` then are in the order in which they
            run, the first after those of all passes before, and nothing before it has changed.
        outputs: to which the network's logits for each batch are added.
        seed: of the draw.
        advance: called after each batch.

    Raises:
        SeparableError: the network cannot take a batch, or a layer's input or output holds NaN or infinity.
    """
    images = [images_in(batch) for batch in batches]
    recorder = _Recorder(model, layers, pixels, images, patches=patches, stop_early=stop_early, seed=seed)
    first = next(iter(layers.values()), model)
    with evaluating(model), torch.no_grad(), recorder.attached():
        for i, batch in enumerate(batches):
            given = placed(model, batch)

            def call(i: int = i, batch: Batch = batch, given: Batch = given) -> Any:
                recorder.begin_batch(i)
                with recorder:
                    return run_on(model, given)

            try:
                returned = call() if cache is None else cache.run(i, first, call)
                recorder.returned(returned)
                if outputs is not None:
                    outputs.append(logits_of(returned))
            except _Recorded:
                pass
            if advance is not None:
                advance()
    return recorder.recordings()


def run(model: nn.Module, batch: Batch) -> Any:
    """Call ``model`` on a copy of a batch, on the device and (for images) in the dtype of its parameters.

    Raises:
        SeparableError: the model refuses the batch; the message holds its shape and the reason.
    """
    return run_on(model, placed(model, batch))


def run_on(model: nn.Module, batch: Batch) -> Any:
    """Call ``model`` on what `placed` made of a batch; errors are those of `run`."""
    try:
        with _containers_kept(model):
            return model(**batch) if isinstance(batch, Mapping) else model(batch)
    except SeparableError:
        raise
    except Exception as error:
        shape = {k: tuple(v.shape) for k, v in batch.items()} if isinstance(batch, Mapping) else tuple(batch.shape)
        first = (str(error).splitlines() or [""])[0]
        raise SeparableError(
            f"{type(model).__name__} cannot take a batch of shape {shape}: {first or type(error).__name__}. "
            "Give images of the size and channels that it was trained on"
        ) from error


@contextmanager
def _containers_kept(model: nn.Module) -> Iterator[None]:
    """Put back what the network's own lists and dictionaries held, where the block is left early.

    A network may push values onto itself and pop them later.
    """
    own = [
        value
        for module in model.modules()
        for name, value in vars(module).items()
        if type(value) in _CONTAINERS and name not in _OF_EVERY_MODULE
    ]
    before = [type(container)(container) for container in own]
    try:
        yield
    except BaseException:
        for container, held in zip(own, before, strict=True):
            container.clear()
            (container.extend if isinstance(container, list | deque) else container.update)(held)
        raise


_CONTAINERS = (list, dict, set, deque)
_OF_EVERY_MODULE = vars(nn.Module()).keys()


def placed(model: nn.Module, batch: Batch) -> Batch:
    """Return a copy of a batch on the device and, where it is floating point, in the dtype of the model's parameters.

    A network may change its input in place; the batch stays for other passes.
    """
    reference = next(model.parameters(), torch.zeros(()))

    def one(value: Tensor) -> Tensor:
        dtype = reference.dtype if value.is_floating_point() else value.dtype
        return value.to(reference.device, dtype, copy=True)

    return {name: one(value) for name, value in batch.items()} if isinstance(batch, Mapping) else one(batch)


def images_in(batch: Batch) -> int:
    """Return how many images a batch holds."""
    return len(next(iter(batch.values()))) if isinstance(batch, Mapping) else len(batch)


class _Recorded(BaseException):  # nothing that a network catches
    """Everything that was asked for has been seen in this forward pass."""


class _Rows:
    """Patches that come in batch by batch, gathered in one tensor: to join them at the end takes the memory twice."""

    def __init__(self) -> None:
        self.held = torch.empty(0, 0)
        self.used = 0

    def add(self, patches: Tensor, index: tuple[Tensor, ...], share: float) -> None:
        """Take what stands at ``index``, which is expected to be a ``share`` of all that comes."""
        if not self.used:
            self.held = torch.empty(math.ceil(len(index[0]) / share), patches[(0,) * len(index)].numel())
        while self.used + len(index[0]) > len(self.held):
            self.held = torch.cat([self.held, torch.empty_like(self.held)])
        for block in zip(*(i.split(_BLOCK) for i in index), strict=True):
            to = slice(self.used, self.used + len(block[0]))
            found = patches[block]  # in any layout: to flatten it could copy it
            self.held[to].view(found.shape).copy_(found)
            self.used = to.stop

    def all(self) -> Tensor:
        return self.held[: self.used]


@dataclass
class _Seen:
    """What has been gathered of one layer."""

    patches: _Rows
    outputs: list[Tensor] = field(default_factory=list)
    residual: list[Tensor] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    rectified: int = 0
    branches: bool = False  # used elsewhere, too, before it is added to anything
    used_otherwise: bool = False
    inputs: list[tuple[int, ...]] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    input_pixels: int = 0
    output_pixels: int = 0


@dataclass(frozen=True)
class _Track:
    """A tensor that a layer's output became, and the pixels that were drawn of it."""

    name: str
    index: tuple[Tensor, ...]
    normed: bool = False
    added: bool = False


class _Recorder(TorchDispatchMode):
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
        self.seen: dict[str, _Seen] = {}
        self.batch = -1
        self.calls: dict[str, int] = {}
        self.followed: set[str] = set()  # layers of which it was seen what their output goes into
        self.tracks: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.in_norm: Tensor | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hold the hooks for the block; they come before the network's own, which may change what a layer gives."""
        names = {id(conv): name for name, conv in self.layers.items()}
        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                hooks = []
                if id(module) in names:
                    hook = self._saw_convolution(names[id(module)])
                    hooks.append(module.register_forward_hook(hook, prepend=True, with_kwargs=True))
                elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                    enters, leaves = self._saw_norm(name)
                    hooks.append(module.register_forward_pre_hook(enters, with_kwargs=True))
                    hooks.append(module.register_forward_hook(leaves, prepend=True))
                for handle in hooks:
                    stack.callback(handle.remove)
            yield

    def begin_batch(self, index: int) -> None:
        self.batch = index
        self.calls = {}
        self.followed = set()
        self.tracks = WeakTensorKeyDictionary()
        self.in_norm = None

    def returned(self, output: Any) -> None:
        """Note what the network itself returns: it is used outside."""
        for leaf in tree_leaves(dict(output) if isinstance(output, Mapping) else output):
            self._note_other_use(self._tracks_of(leaf))

    def _note_other_use(self, tracks: tuple[_Track, ...]) -> None:
        for track in tracks:
            self.seen[track.name].used_otherwise = True
            self.seen[track.name].branches |= not track.added

    def _tracks_of(self, value: Any) -> tuple[_Track, ...]:
        return self.tracks.get(value, ()) if isinstance(value, Tensor) else ()

    def _saw_convolution(self, name: str) -> Any:
        def hook(conv: Conv, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor], output: Tensor) -> None:
            dimensions = len(conv.kernel_size)
            given = input_of(args, kwargs)
            seen = self.seen.setdefault(name, _Seen(_Rows()))
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
            seen.shapes.append((result.shape[0], *result.shape[2:]))
            index = self._draw(name, call, seen.shapes[-1])
            if self.wants_patches:
                seen.patches.add(patches_of(conv, given.detach()), index, self._share)
            seen.outputs.append(_at(result, index))
            if self.batch == 0:
                seen.inputs.append((max(1, round(len(given) / self.images[0])), *given.shape[2:]))
                seen.input_pixels += given[:, 0].numel()
                seen.output_pixels += result[:, 0].numel()
            self.tracks[output] = (_Track(name, index),)

        return hook

    @property
    def _share(self) -> float:
        """Of the images, that of the current batch."""
        return self.images[self.batch] / sum(self.images)

    def _draw(self, name: str, call: int, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
        total = torch.Size(shape).numel()
        wanted = min(total, math.ceil(self.pixels[name] * self._share))
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name} {self.batch} {call}".encode()))
        # Drawn with replacement: as good, and it needs no permutation of millions of pixels.
        flat = torch.randint(total, (wanted,), generator=generator) if wanted < total else torch.arange(total)
        return torch.unravel_index(flat, shape)

    def _saw_norm(self, name: str) -> tuple[Any, Any]:
        def enters(module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
            given = input_of(args, kwargs)
            if any(not (track.normed or track.added) for track in self._tracks_of(given)):
                self.in_norm = given

        def leaves(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if self.in_norm is None:
                return
            tracks = self._tracks_of(self.in_norm)
            self.in_norm = None
            for track in tracks:
                self.seen[track.name].norms.append(name)
            self.tracks[output] = tuple(replace(track, normed=True) for track in tracks)

        return enters, leaves

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.tracks:  # most operations, where one layer is looked at
            return func(*args, **kwargs)
        tracked = {id(leaf): leaf for leaf in tree_leaves((args, kwargs)) if self._tracks_of(leaf)}
        tracked.pop(id(self.in_norm), None)
        sums: list[_Track] = []
        for tensor in tracked.values():
            tracks = self._tracks_of(tensor)
            if func in _ADD and not any(track.added for track in tracks) and _is_plain_sum(args, kwargs):
                other = args[1] if args[0] is tensor else args[0]
                for track in tracks:
                    batched = other if other.dim() > len(track.index) else other[None]
                    self.seen[track.name].residual.append(_at(batched, track.index))
                    sums.append(replace(track, added=True))
            elif func in _RELU:
                for track in tracks:
                    self.seen[track.name].rectified += 1
            else:
                self._note_other_use(tracks)
        result = func(*args, **kwargs)
        if func is torch.ops.aten.relu_.default:
            self.tracks.pop(result, None)  # what follows uses the rectified values
        elif sums:
            self.tracks[result] = tuple(sums)
        if self.stop_early and tracked:
            self.followed |= {track.name for tensor in tracked.values() for track in self._tracks_of(tensor)}
            if len(self.followed) == len(self.layers):
                raise _Recorded
        return result

    def recordings(self) -> dict[str, Recording]:
        """Return what was seen, in the order in which layers ran, and keep none of it."""
        result = {}
        for name in list(self.seen):
            seen = self.seen.pop(name)
            calls = len(seen.outputs)  # all of them must have gone the same way
            one_norm = len(set(seen.norms)) <= 1 and len(seen.norms) in (0, calls)
            # An operand that depends on the output itself cannot be made up for by it.
            has_residual = one_norm and len(seen.residual) == calls and not seen.branches
            rectified = one_norm and seen.rectified == calls and (has_residual or not seen.residual)
            result[name] = Recording(
                patches=seen.patches.all() if self.wants_patches else None,
                outputs=torch.cat(seen.outputs),
                residual=torch.cat(seen.residual) if has_residual else None,
                flow=ConsumerPattern(
                    norm=seen.norms[0] if seen.norms and one_norm else None,
                    residual=has_residual,
                    rectified=rectified and not seen.used_otherwise,
                ),
                inputs=tuple(seen.inputs),
                shapes=tuple(seen.shapes),
                input_pixels=round(seen.input_pixels / self.images[0]),
                macs=round(seen.output_pixels * self.layers[name].weight.numel() / self.images[0]),
            )
        return result


def input_of(args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> Tensor:
    """Return what a layer was given, by position or by name."""
    return args[0] if args else kwargs["input"]


def _is_plain_sum(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    one, other = args[:2]
    tensors = isinstance(one, Tensor) and isinstance(other, Tensor)
    return tensors and one is not other and one.shape == other.shape and kwargs.get("alpha", 1) == 1


def _at(tensor: Tensor, index: tuple[Tensor, ...]) -> Tensor:
    """Values of (N, M, *size) at pixels, (P, M), in single precision on the CPU."""
    where: tuple[Any, ...] = (index[0], slice(None), *index[1:])
    return tensor.detach()[where].float().cpu()
