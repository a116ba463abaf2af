"""Passes through a network that begin where the one before stopped.

Layers are looked at one after the other in the order in which they run, and each look would run the network from its
beginning. Most of that has been computed before: of everything that happened before the layer that was looked at last,
a pass needs only the tensors that were still in use there. `ReplayCache` keeps these, batch by batch. The network's own
code runs again as it stands; its operations up to that layer are answered from the cache, so nothing has to be traced.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

_SMALL = 1024  # bytes of a tensor that is kept in any case
_PLAIN = (int, float, str, torch.dtype, torch.device, torch.memory_format, type(None))


class ReplayCache:
    """What a network computed before one of its layers, kept for passes over the same batches.

    Whatever the network computes before the layer must be the same in every pass: later passes may exchange this layer
    and those after it, and none before. Tensors that are no longer in use are given without their values, but for those
    up to a kilobyte or not of floating point, which a network may read by ``tolist`` or ``numpy``.

    Args:
        memory: bytes that the kept tensors may take; batches beyond run from the beginning.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> cache, batch = ReplayCache(memory=2**20), torch.randn(3, 4)
        >>> first = cache.run(0, net[2], lambda: net(batch))
        >>> bool((cache.run(0, net[2], lambda: net(batch)) == first).all())
        True
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.known: dict[int, _Known] = {}

    def run(self, index: int, layer: nn.Module, call: Callable[[], Any]) -> Any:
        """Return ``call()``, a pass over batch ``index``, and keep what it has when it comes to ``layer``.

        It is called a second time where the network did not do again what it did in the last pass.
        """
        try:
            return self._pass(index, layer, call)
        except _Diverged:
            return self._pass(index, layer, call)  # nothing is known of it any more

    def _pass(self, index: int, layer: nn.Module, call: Callable[[], Any]) -> Any:
        known = self.known.pop(index, _Known())
        answers = len(known.steps) > 0
        mode = _Mode(known, self.memory - sum(kept.size for kept in self.known.values()))
        del known  # the mode lets go of each tensor as it is asked for
        handle = layer.register_forward_pre_hook(mode.close, prepend=True)
        try:
            with torch.no_grad(), mode:
                returned = call()
        finally:  # also where the call was left by an exception, as it is when enough has been seen
            handle.remove()
            if mode.result is not None:
                self.known[index] = mode.result
        if answers and not mode.reached and not mode.live:
            raise _Diverged  # it ended on answers alone
        return returned


@dataclass(frozen=True)
class _Outline:
    """The form of a tensor, without its values."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> _Outline:
        return cls(tensor.size(), tensor.stride(), int(tensor.storage_offset()), tensor.dtype, tensor.device)

    def blank(self) -> Tensor:
        """A tensor of this form that nobody will look into."""
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=self.device)

    def copy_from(self, memory: torch.UntypedStorage) -> Tensor:
        view = torch.empty(0, dtype=self.dtype, device=self.device)
        return view.set_(memory, self.offset, self.size, self.stride).clone()


@dataclass(frozen=True)
class _Step:
    """An operation, and what it gave: kept tensors, outlines of those that were no longer in use, plain values.

    ``leaves`` is ``None`` for a view, which is taken again, and for an operation that returns what it wrote into: that
    is kept as it was in the end.
    """

    func: Any
    given: tuple[Any, ...]
    leaves: tuple[Any, ...] | None = None
    structure: TreeSpec | None = None

    def answer(self) -> Any:
        assert self.leaves is not None
        assert self.structure is not None
        given = [leaf.blank() if isinstance(leaf, _Outline) else leaf for leaf in self.leaves]
        return tree_unflatten(given, self.structure)


@dataclass(frozen=True)
class _Known:
    """All steps up to a layer, and the bytes of what is kept."""

    steps: tuple[_Step, ...] = ()
    size: int = 0


@dataclass(frozen=True)
class _Seen:
    """An operation of the pass in progress, and where its results lie; those that may be read are held."""

    func: Any
    given: tuple[Any, ...]
    leaves: tuple[Any, ...] | None = None
    memory: tuple[StorageWeakRef | None, ...] = ()
    structure: TreeSpec | None = None
    held: tuple[Tensor, ...] = ()


class _Diverged(BaseException):  # nothing that a network catches
    """The network does something else than in the last pass."""


class _Mode(TorchDispatchMode):
    """Answers operations from what is known, carries out those beyond, and notes all of them until the layer comes."""

    def __init__(self, known: _Known, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Each is let go when it is asked for: from then on it is the network's own.
        self.known = deque(known.steps)
        self.seen: list[_Seen] = []
        self.room = room
        self.open, self.reached, self.live = True, False, False
        self.own: set[int] = set()  # memory that came to be in this pass
        self.result: _Known | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.open:
            return func(*args, **kwargs)
        step = self.known.popleft() if self.known else None
        given = tuple(map(_form, tree_leaves((args, kwargs))))
        if step is not None and (step.func is not func or step.given != given):
            raise _Diverged
        self.live |= step is None
        if func.is_view:
            self.seen.append(_Seen(func, given))
            return func(*args, **kwargs)
        if func._schema.is_mutable:
            written = _written(func, args, kwargs)
            if written is None or not self._are_own(_targets(func, args, kwargs).values()):
                self.open = False  # nothing is kept of such a pass
                return func(*args, **kwargs)
            self.seen.append(_Seen(func, given))
            return func(*args, **kwargs) if step is None else written[0]
        result = func(*args, **kwargs) if step is None else step.answer()
        leaves, structure = tree_flatten(result)
        if not all(_is_plain(leaf) for leaf in leaves):
            self.open = False
            return result
        memory = tuple(StorageWeakRef(x.untyped_storage()) if isinstance(x, Tensor) else None for x in leaves)
        self.own |= {reference.cdata for reference in memory if reference is not None}
        outlines = tuple(_Outline.of(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        held = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor) and _may_be_read(leaf))
        self.seen.append(_Seen(func, given, outlines, memory, structure, held))
        return result

    def _are_own(self, written: Iterable[Any]) -> bool:
        """Whether all that is written into came to be in this pass, so that its final state is kept with the rest."""
        tensors = [leaf for leaf in tree_leaves(list(written)) if isinstance(leaf, Tensor)]
        return all(StorageWeakRef(tensor.untyped_storage()).cdata in self.own for tensor in tensors)

    def close(self, *_: Any) -> None:
        """The layer is reached: keep what is in use, and let all operations pass from now on."""
        self.reached = True
        if not self.open:
            return
        self.open = False
        if self.known:
            raise _Diverged
        # By its memory, which a view of a tensor keeps in use as well.
        in_use = [[_memory(reference) for reference in seen.memory] for seen in self.seen]
        size = sum(memory.nbytes() for each in in_use for memory in each if memory is not None)
        if size <= self.room:
            steps = [
                _Step(seen.func, seen.given)
                if seen.leaves is None
                else _Step(seen.func, seen.given, tuple(map(_kept, seen.leaves, each)), seen.structure)
                for seen, each in zip(self.seen, in_use, strict=True)
            ]
            self.result = _Known(tuple(steps), size)
        self.seen = []


def _form(argument: Any) -> Any:
    """What an argument must be again for an operation to be the same: a number its value, a tensor its form."""
    if isinstance(argument, Tensor):
        return argument.shape, argument.dtype
    if isinstance(argument, float):
        return repr(argument)  # by which NaN is what it was
    return argument if isinstance(argument, _PLAIN) else type(argument)


def _may_be_read(tensor: Tensor) -> bool:
    """Whether a network may look at a result other than by operations, as it does at numbers and indices."""
    return tensor.nbytes <= _SMALL or not tensor.is_floating_point()


def _is_plain(leaf: Any) -> bool:
    """Whether a result can be kept: no tensor, or an ordinary one with memory of its own."""
    if not isinstance(leaf, Tensor):
        return True
    return type(leaf) in (Tensor, nn.Parameter) and leaf.layout is torch.strided and not leaf.is_quantized


def _memory(reference: StorageWeakRef | None) -> torch.UntypedStorage | None:
    """The memory that is referred to, if anybody still holds it."""
    if reference is None:
        return None
    found: torch.UntypedStorage | None = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
    return found


def _kept(leaf: Any, memory: torch.UntypedStorage | None) -> Any:
    return leaf if memory is None else leaf.copy_from(memory)


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any] | None:
    """What an operation that writes into its arguments returns of them; ``None`` where it returns other things, too."""
    targets = _targets(func, args, kwargs)
    values = []
    for returned in func._schema.returns:
        alias = returned.alias_info
        if alias is None or frozenset(alias.before_set) not in targets:
            return None
        values.append(targets[frozenset(alias.before_set)])
    return (values[0] if len(values) == 1 else tuple(values) or None,)


def _targets(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[frozenset[str], Any]:
    """The arguments that an operation writes into, by the names that its schema gives their memory."""
    targets = {}
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name) if i >= len(args) else args[i]
            targets[frozenset(argument.alias_info.before_set)] = value
    return targets
