"""What a network really executes: every operator that reaches the dispatcher, under the module that called it.

Counting below the modules makes functional calls, shared weights and tensor products right without knowing any class,
as ``torch.utils.flop_counter`` does; module hooks say whose call it was.
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
from torch_separable.errors import SeparableError


@dataclass
class Trace:
    """What was executed directly under one module, over all its calls.

    Attributes:
        calls: how often the module ran.
        macs: multiply-accumulates.
        bytes: of all operands and results, each moved once for each operator.
        convs: the convolutions among the operators.
        products: (inner, columns) of the two-dimensional matrix products.
        output_shapes: of the tensors that its last call returned.
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
        modules: what each module executed, by the name under which it stands first.
        uncounted: operators without a rule that are not free by convention, and how often they ran.
        read: the ``id`` of every tensor that an operator was given, for as long as the model holds them.
    """

    modules: Mapping[str, Trace]
    uncounted: Mapping[str, int]
    read: frozenset[int]


def execute(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Execution:
    """Run ``model`` once in evaluation mode, without gradients, and count.

    Modes, buffers, random state and hooks are as before afterwards, also after an exception.

    Raises:
        SeparableError: the forward pass fails; the message names the layer and the shapes that it was given.
    """
    names = {id(module): name for name, module in model.named_modules()}
    counter = _Counter(names)
    with unchanged(model), torch.no_grad(), _eager(), counter.attached(model):
        try:
            with counter:
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
    """Run the block in evaluation mode, and put attributes, modes, buffers and random states back as they were.

    Modes are set as flags: an ``eval()`` of a model's own may merge weights, which setting it back would not undo.
    Attributes go back together with buffers: a network that builds a table on its first pass notes that it has.
    """
    modules = list(model.modules())
    # Attention's fused inference path would hide its products in one operator; without it they are the same ones.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    states = [
        (state, dict(state))
        for module in modules
        for state in (vars(module), module._parameters, module._buffers, module._modules)
    ]
    # Embeddings that keep to a norm scale their weights in every pass.
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
    """How often a tensor was changed in place; ``None`` where PyTorch does not count."""
    return None if tensor.is_inference() else tensor._version


def _is_still(tensor: Tensor, value: Tensor, version: int | None) -> bool:
    """Whether a tensor holds what it held; of sparse ones, by the number of their changes."""
    if tensor.is_meta or tensor.layout is not torch.strided:
        return tensor.is_meta or version == _version(tensor)
    if tensor.shape != value.shape:
        return False
    # Not by that number: batch norms change their statistics uncounted.
    return torch.equal(tensor, value) or bool(((tensor == value) | tensor.isnan() & value.isnan()).all())


def _eager() -> AbstractContextManager[object]:
    """Let compiled parts, and flexible attention which compiles itself, run operator by operator."""
    # Where neither is loaded nothing gets compiled; loading the compiler takes seconds.
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
        # PyTorch would load its compiler, seconds of imports, to keep it away from this class: `_eager` does without.
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
            self.failure = (error, name, given)  # the innermost module that it leaves comes first
        shapes = tuple(tuple(leaf.shape) for leaf in tree_leaves(_plain(output)) if isinstance(leaf, Tensor))
        self.traces[name].output_shapes = shapes

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func if isinstance(func, HigherOrderOperator) else func.overloadpacket
        rule = RULES.get(packet)
        if rule is None and packet is not func and func.namespace != "prim":
            # In inference mode composite operators arrive whole; what they are made of has rules.
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        trace = self.traces.setdefault(self.stack[-1][0] if self.stack else "", Trace())
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.read.update(map(id, given))
        if rule is not None:
            trace.macs += rule(args, kwargs, out)
            if packet in (torch.ops.aten.convolution, torch.ops.aten._convolution):
                trace.convs.append(conv_of(args))
            elif packet in _TWO_DIMENSIONAL:
                trace.products.append(_TWO_DIMENSIONAL[packet](args))
        elif not is_free(func):
            self.uncounted[str(packet)] += 1
        if packet is func or not (func.is_view or packet in _MOVE_NOTHING):
            made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            trace.bytes += sum(leaf.numel() * leaf.element_size() for leaf in (*given, *made))
        return out


# Views that PyTorch does not mark as such.
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
    """Open outputs that are mappings of their own class, as those of ``transformers``."""
    return dict(output) if isinstance(output, Mapping) else output
