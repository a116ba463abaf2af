"""Count every operator that a network dispatches, and attribute it to the module that called it.

Counting at the dispatcher, as ``torch.utils.flop_counter`` does, covers functional calls, shared weights and tensor
products without knowledge of module classes. Module hooks tell which module's forward is running.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torch_separable.cost.formulas import ConvSpec
from torch_separable.cost.rules import RULES, conv_of, is_free
from torch_separable.cost.storage import stored_bytes
from torch_separable.errors import SeparableError


@dataclass
class Trace:
    """The operators that one module's own forward called, over all its calls.

    Attributes:
        calls: number of times the module ran.
        macs: multiply-accumulates.
        bytes: operands and results, each moved once per operator.
        convs: the convolutions among the operators.
        products: (inner, columns) of the two-dimensional matrix products.
        output_shapes: shapes of the tensors that its last call returned.
    """

    calls: int = 0
    macs: int = 0
    bytes: int = 0
    convs: list[ConvSpec] = field(default_factory=list)
    products: list[tuple[int, int]] = field(default_factory=list)
    output_shapes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Execution:
    """One forward pass.

    Attributes:
        modules: a trace per module; a module with several names has its first one.
        uncounted: operators without a rule that are not free by convention, with the number of their calls.
        read: the ``id`` of every tensor that an operator read; valid while the model holds the tensor.
    """

    modules: Mapping[str, Trace]
    uncounted: Mapping[str, int]
    read: frozenset[int]


def execute(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    mode: AbstractContextManager[object] | None = None,
) -> Execution:
    """Run ``model`` once in evaluation mode, without gradients, and count its operators.

    Modes, buffers, random state and hooks are restored, also after an exception.

    Args:
        model: the network.
        args: arguments of its forward.
        kwargs: keyword arguments.
        mode: context of the forward pass, such as that of fake tensors; only the forward pass runs in it.

    Raises:
        SeparableError: the forward pass fails; the message names the layer and the shapes of its inputs.
    """
    names = {id(module): name for name, module in model.named_modules()}
    counter = _Counter(names)
    with unchanged(model), torch.no_grad(), _eager(), counter.attached(model):
        try:
            with mode or nullcontext(), counter:
                model(*args, **kwargs)
        except SeparableError:
            raise
        except Exception as error:
            shapes = [tuple(leaf.shape) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            first = (str(error).splitlines() or [type(error).__name__])[0]
            _, where, given = counter.failure
            layer = (
                f"layer {where!r} ({type(model.get_submodule(where)).__name__}) was given {given}"
                if where
                else "forward"
            )
            raise SeparableError(
                f"{type(model).__name__} cannot run on input of shape {', '.join(map(str, shapes))}: {layer}: {first}"
            ) from error
    return Execution(counter.traces, dict(counter.uncounted), frozenset(counter.read))


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Run the block in evaluation mode; restore attributes, modes, buffers and random states afterwards.

    Only the ``training`` flag is set: a model's own ``eval()`` may merge weights, which could not be undone. Attributes
    are restored together with buffers: a network that builds a table on its first pass also sets a flag that it has.
    """
    modules = list(model.modules())
    # Attention's fused inference path is one operator that hides its matrix products, which are the same without it.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    states = [
        (state, dict(state))
        for module in modules
        for state in (vars(module), module._parameters, module._buffers, module._modules)
    ]
    # An embedding with max_norm rescales its weight in every forward pass.
    scaled = [m.weight for m in modules if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.max_norm is not None]
    values = [(tensor, tensor.detach().clone(), _version(tensor)) for tensor in (*model.buffers(), *scaled)]
    devices = {t.device.index or 0 for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        for module in modules:
            module.training = False
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for state, before in states:
                state.clear()
                state.update(before)
            for tensor, value, version in values:
                if not _is_still(tensor, value, version):
                    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                        if tensor.shape != value.shape:
                            tensor.resize_(value.shape)
                        tensor.copy_(value)


def _version(tensor: Tensor) -> int | None:
    """Return the tensor's in-place modification counter; ``None`` for inference tensors, which have none."""
    return None if tensor.is_inference() else tensor._version


def _is_still(tensor: Tensor, value: Tensor, version: int | None) -> bool:
    """Whether a tensor is unchanged; sparse tensors are compared by their version counter."""
    if tensor.is_meta or tensor.layout is not torch.strided:
        return tensor.is_meta or version == _version(tensor)
    if tensor.shape != value.shape:
        return False
    # By value, because a batch norm updates its statistics without incrementing the version counter.
    return torch.equal(tensor, value) or bool(((tensor == value) | tensor.isnan() & value.isnan()).all())


def _eager() -> AbstractContextManager[object]:
    """Run compiled parts, and flex attention, which compiles itself, operator by operator."""
    # If neither module is loaded, nothing is compiled; importing the compiler would take seconds.
    compiling = {"torch._dynamo", "torch.nn.attention.flex_attention"} & sys.modules.keys()
    return torch.compiler.set_stance("force_eager") if compiling else nullcontext()


class _Counter(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = names
        self.stack: list[tuple[str, list[tuple[int, ...]]]] = []
        self.traces: dict[str, Trace] = {}
        self.uncounted: Counter[str] = Counter()
        self.read: set[int] = set()
        self.failure: tuple[BaseException | None, str, list[tuple[int, ...]]] = (None, "", [])

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True would make PyTorch import its compiler, which takes seconds; `_eager` keeps compiled code out instead.
        return False

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as hooks:
            for module in model.modules():
                for handle in (
                    module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True),
                    module.register_forward_hook(self._leave, always_call=True),
                ):
                    hooks.callback(handle.remove)
            yield

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = self.names[id(module)]
        shapes = [tuple(leaf.shape) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.stack.append((name, shapes))
        self.traces.setdefault(name, Trace()).calls += 1

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        name, given = self.stack.pop()
        error = sys.exception()
        if error is not None and error is not self.failure[0]:
            self.failure = (error, name, given)  # hooks run from the innermost module outwards: keep the first
        shapes = tuple(tuple(leaf.shape) for leaf in tree_leaves(_plain(output)) if isinstance(leaf, Tensor))
        self.traces[name].output_shapes = shapes

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func if isinstance(func, HigherOrderOperator) else func.overloadpacket
        rule = RULES.get(packet)
        if rule is None and packet is not func and func.namespace != "prim":
            # In inference mode composite operators are not decomposed before dispatch; their parts have rules.
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        trace = self.traces.setdefault(self.stack[-1][0] if self.stack else "", Trace())
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.read.update(map(id, given))
        if rule is not None:
            # A complex multiply-accumulate is four real ones.
            trace.macs += rule(args, kwargs, out) * (4 if isinstance(out, Tensor) and out.is_complex() else 1)
            if packet in (torch.ops.aten.convolution, torch.ops.aten._convolution):
                trace.convs.append(conv_of(args))
            elif packet in _TWO_DIMENSIONAL:
                trace.products.append(_TWO_DIMENSIONAL[packet](args))
        elif not is_free(func):
            self.uncounted[str(packet)] += 1
        if packet is func or not (func.is_view or packet in _MOVE_NOTHING):
            made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            trace.bytes += sum(stored_bytes(leaf) for leaf in (*given, *made))
        return out


# Views without PyTorch's `is_view`.
_MOVE_NOTHING = {
    torch.ops.aten._unsafe_view,
    torch.ops.aten.unsafe_split,
    torch.ops.aten.unsafe_split_with_sizes,
    torch.ops.aten.lift_fresh,
}

_TWO_DIMENSIONAL: dict[Any, Any] = {
    torch.ops.aten.mm: lambda args: (args[0].shape[1], args[1].shape[1]),
    torch.ops.aten.addmm: lambda args: (args[1].shape[1], args[2].shape[1]),
    torch.ops.aten.linear: lambda args: (args[1].shape[1], args[1].shape[0]),
}


def _plain(output: Any) -> Any:
    """Convert mappings of other classes, such as the outputs of ``transformers``, to dicts for `tree_leaves`."""
    return dict(output) if isinstance(output, Mapping) else output
