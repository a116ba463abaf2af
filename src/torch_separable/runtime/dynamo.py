"""The backend of ``torch.compile(model, backend="separable")``, which runs captured subgraphs with fused kernels.

PyTorch finds the backend by the package's entry point; importing this module registers it as well. A subgraph that the
runtime cannot run runs eagerly, and a warning names it and the reason.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from threading import Lock
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo import list_backends, register_backend
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.runtime.engine import CompiledModel
from torch_separable.runtime.graph.ir import Convolution, DepthwiseConv, TorchCall
from torch_separable.runtime.native.instruction_sets import InstructionSet, chosen_set

# Sets of weights, and input shapes of each, for which a subgraph stays prepared. Modules that share code share a
# subgraph, and each has its own weights.
_KEPT = 64
_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def separable(
    graph: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compile a subgraph that ``torch.compile`` captured.

    Weights are packed on the first call, and again after they change; changes that PyTorch does not count, those
    through ``parameter.data`` and those of tensors created under ``torch.inference_mode``, are not noticed. Under
    autocast a subgraph runs eagerly, because the kernels compute in float32.

    Args:
        graph: the subgraph.
        example_inputs: its inputs.
        mode: as in ``torch.compile``: ``"max-autotune"`` tunes tile sizes, the other modes change nothing.
        options: ``threads`` and ``tune``, as in `torch_separable.compile`.

    Raises:
        SeparableError: a gradient is required, or this installation has no kernel library. ``torch.compile`` raises it
            as a ``BackendCompilerFailed``.
        SeparableValueError: ``mode`` or ``options`` are unknown.

    Example:
        >>> network = torch.compile(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), backend=separable)
        >>> with torch.no_grad():
        ...     network(torch.randn(1, 3, 16, 16)).shape
        torch.Size([1, 8, 14, 14])
    """
    settings = _Settings.of(mode, options)
    requires_grad = any(isinstance(value, Tensor) and value.requires_grad for value in example_inputs)
    if torch.is_grad_enabled() and requires_grad:
        raise SeparableError(
            'torch.compile(backend="separable") does not compute gradients, which are required here: call the network '
            "under torch.no_grad() or torch.inference_mode(), or train it with another backend"
        )
    return _Subgraph(graph, chosen_set(), settings)


@dataclass(frozen=True)
class _Settings:
    """The arguments of `torch_separable.compile` that ``mode`` and ``options`` stand for."""

    threads: int | None = None
    tune: bool = False

    @classmethod
    def of(cls, mode: str | None, options: Mapping[str, Any] | None) -> _Settings:
        if mode is not None and mode not in _MODES:
            raise SeparableValueError(f"mode={mode!r}: must be one of {', '.join(_MODES)}")
        given = dict(options or {})
        threads, tune = given.pop("threads", None), given.pop("tune", (mode or "").startswith("max-autotune"))
        if given:
            raise SeparableValueError(f"options={given}: the backend separable has the options threads and tune")
        if (threads is not None and (type(threads) is not int or threads < 1)) or not isinstance(tune, bool):
            raise SeparableValueError(
                f"options={dict(options or {})}: threads must be a positive whole number, tune True or False"
            )
        return cls(threads, tune)


class _Kind(Enum):
    """What an input of a graph is."""

    WEIGHT = "a parameter or buffer"
    FLOAT = "a Python float, which PyTorch passes as a tensor without dimensions if shapes are dynamic"
    SIZE = "a size of the image"
    NUMBER = "any other number"
    IMAGE = "a tensor that is no weight"


@dataclass(frozen=True)
class _Input:
    """An input of a graph; ``dimension`` is that of a size."""

    kind: _Kind
    dimension: int = 0


def _inputs_of(graph: fx.GraphModule) -> list[_Input]:
    places = graph.graph.find_nodes(op="placeholder")
    kinds = [_kind_of(place) for place in places]
    examples: list[Any] = [place.meta.get("example_value") for place in places]
    images = [example for example, kind in zip(examples, kinds, strict=True) if kind is _Kind.IMAGE]
    sizes: dict[Any, int] = {}
    if len(images) == 1 and isinstance(images[0], Tensor):
        shape: Any = images[0].shape
        for dimension, size in enumerate(shape):
            if isinstance(size, torch.SymInt):
                sizes.setdefault(size.node.expr, dimension)
    return [
        _Input(_Kind.SIZE, sizes[example.node.expr])
        if isinstance(example, torch.SymInt) and example.node.expr in sizes
        else _Input(kind)
        for example, kind in zip(examples, kinds, strict=True)
    ]


def _kind_of(place: fx.Node) -> _Kind:
    if "_dynamo_static_input_type" in place.meta.get("tensor_dict", {}):
        return _Kind.WEIGHT
    if getattr(place.meta.get("grapharg"), "pass_arg_as_tensor", False):
        return _Kind.FLOAT
    return _Kind.IMAGE if isinstance(place.meta.get("example_value"), Tensor) else _Kind.NUMBER


class _Subgraph:
    """A subgraph, prepared for each set of weights that it is called with."""

    def __init__(self, graph: fx.GraphModule, kernels: InstructionSet, settings: _Settings) -> None:
        self.graph, self.kernels, self.settings = graph, kernels, settings
        self.inputs = _inputs_of(graph)
        self.packed: OrderedDict[tuple[Any, ...], _Packed] = OrderedDict()
        # The code after the subgraph was traced for outputs in the memory format of eager execution.
        (returned,) = next(node for node in graph.graph.nodes if node.op == "output").args
        self.contiguous = [_is_contiguous(node) for node in tree_leaves(returned)]
        self.lock = Lock()
        self.warned: set[str] = set()

    def __call__(self, *args: Any) -> Any:
        """Run on the inputs of the graph, in its order."""
        if torch.is_autocast_enabled("cpu"):
            self._warn("autocast is enabled, and the kernels compute in float32")
            return self.graph(*args)
        weights = [value for value, given in zip(args, self.inputs, strict=True) if given.kind is _Kind.WEIGHT]
        images = [value for value, given in zip(args, self.inputs, strict=True) if given.kind is _Kind.IMAGE]
        numbers = [
            value.item() if given.kind is _Kind.FLOAT else value
            for value, given in zip(args, self.inputs, strict=True)
            if given.kind in (_Kind.FLOAT, _Kind.NUMBER)
        ]
        key, state = (*map(id, weights), *numbers), tuple(map(_state, weights))
        shape = tuple(images[0].shape) if len(images) == 1 else ()
        with self.lock:
            packed = self.packed.get(key)
            if packed is None or packed.state != state or packed.is_full(shape):
                self.packed[key] = packed = _Packed(self._pack(args, images), weights, state)
                if len(self.packed) > _KEPT:
                    self.packed.popitem(last=False)
            packed.shapes.add(shape)
        if packed.compiled is None:
            return self.graph(*args)
        leaves, structure = tree_flatten(packed.compiled(images[0]))
        laid_out = [
            leaf.contiguous() if contiguous else leaf for leaf, contiguous in zip(leaves, self.contiguous, strict=True)
        ]
        return tree_unflatten(laid_out, structure)

    def _pack(self, args: Sequence[Any], images: Sequence[Tensor]) -> CompiledModel | None:
        try:
            if len(images) != 1:
                raise SeparableError(f"it takes {len(images)} tensors that are not weights, and not one")
            bound = _Bound(self.graph, args, self.inputs)
            compiled = CompiledModel(bound, self.kernels, self.settings.threads, self.settings.tune)
            compiled.prepare(images[0])
            _check(compiled, bound, images[0])
        except SeparableError as reason:
            self._warn(str(reason))
            return None
        return compiled

    def _warn(self, reason: str) -> None:
        """Warn once for each reason."""
        if reason in self.warned:
            return
        self.warned.add(reason)
        calls = [node.name for node in self.graph.graph.nodes if node.op.startswith("call_")]
        what = f"{calls[0]} … {calls[-1]}" if len(calls) > 1 else "".join(calls) or "nothing"
        warnings.warn(f"torch_separable: a subgraph ({what}) runs eagerly: {reason}", stacklevel=3)


@dataclass(frozen=True)
class _Packed:
    """A subgraph with one set of weights.

    Attributes:
        compiled: the compiled subgraph; ``None`` if it runs eagerly.
        weights: the weights; references keep their ids unique.
        state: data pointer and version counter of each weight.
        shapes: input shapes that it was called with.
    """

    compiled: CompiledModel | None
    weights: list[Any]
    state: tuple[tuple[int, int], ...]
    shapes: set[tuple[int, ...]] = field(default_factory=set)

    def is_full(self, shape: tuple[int, ...]) -> bool:
        """Whether another shape would exceed the number of shapes that stay prepared."""
        return len(self.shapes) >= _KEPT and shape not in self.shapes


class _Float:
    """A number in place of the tensor that PyTorch passes for it; graphs read it by ``item()``."""

    def __init__(self, value: float) -> None:
        self.value = value

    def item(self) -> float:
        return self.value


class _Bound(nn.Module):
    """A graph with its weights and numbers bound: a network of one tensor."""

    def __init__(self, graph: fx.GraphModule, args: Sequence[Any], inputs: Sequence[_Input]) -> None:
        super().__init__()
        self.graph, self.inputs = graph, list(inputs)
        self.values: list[Any] = []
        for i, (value, given) in enumerate(zip(args, inputs, strict=True)):
            if given.kind is _Kind.WEIGHT and isinstance(value, nn.Parameter):
                self.register_parameter(f"weight{i}", value)
            elif given.kind is _Kind.WEIGHT:
                self.register_buffer(f"weight{i}", value)
            self.values.append(
                _Float(value.item()) if given.kind is _Kind.FLOAT else None if isinstance(value, Tensor) else value
            )

    def forward(self, x: Tensor) -> Any:
        args: list[Any] = []
        for i, (value, given) in enumerate(zip(self.values, self.inputs, strict=True)):
            if given.kind is _Kind.SIZE:
                args.append(x.shape[given.dimension])
            elif given.kind is _Kind.IMAGE:
                args.append(x)
            else:
                args.append(getattr(self, f"weight{i}", value))
        return self.graph(*args)


def _check(compiled: CompiledModel, bound: nn.Module, x: Tensor) -> None:
    """Require that kernels run a convolution, and that the subgraph has no side effects.

    Raises:
        SeparableError: the reason why the subgraph runs eagerly.
    """
    nodes = compiled.program(x).nodes
    if not any(isinstance(node, Convolution | DepthwiseConv) for node in nodes):
        raise SeparableError("no kernel would run a convolution or linear layer of it")
    training = [n for n in nodes if isinstance(n, TorchCall) and n.function == torch.ops.aten.batch_norm.default]
    if any("training" in node.reason for node in training):
        raise SeparableError("it has batch norms in training mode")
    with torch.inference_mode(False), torch.no_grad():
        probe = x.detach().clone()
        before = probe._version
        bound(probe)
        if probe._version != before:
            raise SeparableError("it changes its input in place")


def _state(tensor: Tensor) -> tuple[int, int]:
    """Return a tensor's data pointer and version counter."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _is_contiguous(node: Any) -> bool:
    """Whether an output of a graph is a contiguous tensor in eager execution."""
    value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.is_contiguous()


if "separable" not in list_backends():  # the entry point of an installed package has not been loaded
    register_backend(separable, "separable")
