"""Passes through a network that start where the pass before stopped.

Conversion looks at one layer after the other, in execution order. Each look needs the activations before that layer,
and most of them were computed for the look before. `ReplayCache` keeps, for each batch, the results of the operations
up to the layer that was looked at last, but only those tensors that are still in use there. In the next pass the
network's own Python code runs again, and a dispatch mode answers its operations from the cache. So nothing has to be
traced.
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

_SMALL = 1024  # bytes; tensors up to this size always keep their values
_PLAIN = (int, float, str, torch.dtype, torch.device, torch.memory_format, type(None))


class ReplayCache:
    """Results of a network's operations before one of its layers, for passes over the same batches.

    Everything that the network computes before the layer must be the same in every pass: between passes this layer and
    later ones may be replaced, but none before it. Tensors that were no longer in use at the layer are replayed without
    their values, except small or integer ones, which a network may read by ``tolist`` or ``numpy``.

    Args:
        memory: bytes that the kept tensors may take. Batches beyond that run from the beginning.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> cache, batch = ReplayCache(memory=2**20), torch.randn(3, 4)
        >>> first = cache.run(0, net[2], lambda: net(batch))
        >>> bool((cache.run(0, net[2], lambda: net(batch)) == first).all())
        True
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.cached: dict[int, _CachedSteps] = {}

    def run(self, index: int, layer: nn.Module, call: Callable[[], Any]) -> Any:
        """Return ``call()``, a pass over batch ``index``, and cache its operations up to ``layer``.

        Where the pass differs from the cached one, the cache drops the batch and ``call`` runs a second time.
        """
        try:
            return self._run_once(index, layer, call)
        except _Diverged:
            return self._run_once(index, layer, call)  # this time without cached steps

    def _run_once(self, index: int, layer: nn.Module, call: Callable[[], Any]) -> Any:
        cached = self.cached.pop(index, _CachedSteps())
        replays = len(cached.steps) > 0
        mode = _ReplayMode(cached, self.memory - sum(entry.size for entry in self.cached.values()))
        del cached  # the mode frees each tensor once it is replayed
        handle = layer.register_forward_pre_hook(mode.close, prepend=True)
        try:
            with torch.no_grad(), mode:
                returned = call()
        finally:  # an exception may also mean that the caller has seen enough
            handle.remove()
            if mode.result is not None:
                self.cached[index] = mode.result
        if replays and not mode.reached and not mode.live:
            raise _Diverged  # the pass ended without reaching the layer, on replayed values alone
        return returned


@dataclass(frozen=True)
class _TensorForm:
    """The form of a tensor without its values."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> _TensorForm:
        return cls(tensor.size(), tensor.stride(), int(tensor.storage_offset()), tensor.dtype, tensor.device)

    def blank(self) -> Tensor:
        """Return an uninitialised tensor of this form, for results whose values nobody reads."""
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=self.device)

    def copy_from(self, storage: torch.UntypedStorage) -> Tensor:
        view = torch.empty(0, dtype=self.dtype, device=self.device)
        return view.set_(storage, self.offset, self.size, self.stride).clone()


@dataclass(frozen=True)
class _CachedStep:
    """One operation and its results: kept tensors, forms of tensors no longer in use, plain values.

    ``leaves`` is ``None`` for two kinds of operation: a view, which is taken again, and an operation that returns what
    it wrote into, whose target is kept in its final state.
    """

    func: Any
    arguments: tuple[Any, ...]
    leaves: tuple[Any, ...] | None = None
    structure: TreeSpec | None = None

    def results(self) -> Any:
        assert self.leaves is not None
        assert self.structure is not None
        leaves = [leaf.blank() if isinstance(leaf, _TensorForm) else leaf for leaf in self.leaves]
        return tree_unflatten(leaves, self.structure)


@dataclass(frozen=True)
class _CachedSteps:
    """All steps of one batch up to the layer, and the bytes of the tensors that they keep."""

    steps: tuple[_CachedStep, ...] = ()
    size: int = 0


@dataclass(frozen=True)
class _RunningStep:
    """An operation of the pass in progress, with weak references to its results' storage.

    ``held`` keeps results alive that the network may read directly.
    """

    func: Any
    arguments: tuple[Any, ...]
    leaves: tuple[Any, ...] | None = None
    storage: tuple[StorageWeakRef | None, ...] = ()
    structure: TreeSpec | None = None
    held: tuple[Tensor, ...] = ()


class _Diverged(BaseException):
    """The network does something else than in the cached pass.

    Not an ``Exception``, so that a network's own ``except Exception`` does not catch it.
    """


class _ReplayMode(TorchDispatchMode):
    """Replays cached operations, runs later ones, and notes all of them until the layer is reached."""

    def __init__(self, cached: _CachedSteps, free_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.remaining = deque(cached.steps)
        self.running: list[_RunningStep] = []
        self.free_bytes = free_bytes
        self.open, self.reached, self.live = True, False, False
        self.own: set[int] = set()  # storages that this pass created
        self.result: _CachedSteps | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.open:
            return func(*args, **kwargs)
        step = self.remaining.popleft() if self.remaining else None
        arguments = tuple(map(_identity_of, tree_leaves((args, kwargs))))
        if step is not None and (step.func is not func or step.arguments != arguments):
            raise _Diverged
        self.live |= step is None
        if func.is_view:
            self.running.append(_RunningStep(func, arguments))
            return func(*args, **kwargs)
        if func._schema.is_mutable:
            written = _written(func, args, kwargs)
            if written is None or not self._are_own(_targets(func, args, kwargs).values()):
                self.open = False  # such a pass cannot be cached
                return func(*args, **kwargs)
            self.running.append(_RunningStep(func, arguments))
            return func(*args, **kwargs) if step is None else written[0]
        result = func(*args, **kwargs) if step is None else step.results()
        leaves, structure = tree_flatten(result)
        if not all(_can_be_kept(leaf) for leaf in leaves):
            self.open = False
            return result
        storage = tuple(StorageWeakRef(x.untyped_storage()) if isinstance(x, Tensor) else None for x in leaves)
        self.own |= {reference.cdata for reference in storage if reference is not None}
        forms = tuple(_TensorForm.of(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        held = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor) and _may_be_read(leaf))
        self.running.append(_RunningStep(func, arguments, forms, storage, structure, held))
        return result

    def _are_own(self, written: Iterable[Any]) -> bool:
        """Return whether this pass created every tensor that is written into, so that its final state is cached."""
        tensors = [leaf for leaf in tree_leaves(list(written)) if isinstance(leaf, Tensor)]
        return all(StorageWeakRef(tensor.untyped_storage()).cdata in self.own for tensor in tensors)

    def close(self, *_: Any) -> None:
        """Cache what is in use when the layer is reached. All later operations run normally."""
        self.reached = True
        if not self.open:
            return
        self.open = False
        if self.remaining:
            raise _Diverged
        # Checked by storage: a view keeps its base's storage in use.
        in_use = [[_storage(reference) for reference in step.storage] for step in self.running]
        size = sum(storage.nbytes() for each in in_use for storage in each if storage is not None)
        if size <= self.free_bytes:
            steps = [
                _CachedStep(step.func, step.arguments)
                if step.leaves is None
                else _CachedStep(step.func, step.arguments, tuple(map(_kept, step.leaves, each)), step.structure)
                for step, each in zip(self.running, in_use, strict=True)
            ]
            self.result = _CachedSteps(tuple(steps), size)
        self.running = []


def _identity_of(argument: Any) -> Any:
    """Return what must be equal for an operation to be the same: a number's value, a tensor's shape and dtype."""
    if isinstance(argument, Tensor):
        return argument.shape, argument.dtype
    if isinstance(argument, float):
        return repr(argument)  # NaN differs from itself, its text does not
    return argument if isinstance(argument, _PLAIN) else type(argument)


def _may_be_read(tensor: Tensor) -> bool:
    """Return whether Python code may read the values, as networks read numbers and indices."""
    return tensor.nbytes <= _SMALL or not tensor.is_floating_point()


def _can_be_kept(leaf: Any) -> bool:
    """Return whether a result is no tensor, or an ordinary strided one with a storage of its own."""
    if not isinstance(leaf, Tensor):
        return True
    return type(leaf) in (Tensor, nn.Parameter) and leaf.layout is torch.strided and not leaf.is_quantized


def _storage(reference: StorageWeakRef | None) -> torch.UntypedStorage | None:
    """Return the storage behind a weak reference, or ``None`` once nobody uses it."""
    if reference is None:
        return None
    found: torch.UntypedStorage | None = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
    return found


def _kept(leaf: Any, storage: torch.UntypedStorage | None) -> Any:
    return leaf if storage is None else leaf.copy_from(storage)


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any] | None:
    """Return what an in-place operation returns of its arguments; ``None`` where it returns anything else."""
    targets = _targets(func, args, kwargs)
    values = []
    for returned in func._schema.returns:
        alias = returned.alias_info
        if alias is None or frozenset(alias.before_set) not in targets:
            return None
        values.append(targets[frozenset(alias.before_set)])
    return (values[0] if len(values) == 1 else tuple(values) or None,)


def _targets(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[frozenset[str], Any]:
    """Return the arguments that an operation writes into, by their alias sets in its schema."""
    targets = {}
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name) if i >= len(args) else args[i]
            targets[frozenset(argument.alias_info.before_set)] = value
    return targets
