"""``torch.compile(model, backend="separable")``: subgraphs that are networks of images run with fused kernels.

PyTorch finds the backend by the package's entry point; importing this file registers it as well. A subgraph that the
runtime cannot run as a whole runs eagerly, and a warning says which and why.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo import list_backends, register_backend
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from torch_separable.errors import SeparableError
from torch_separable.runtime.engine import CompiledModel
from torch_separable.runtime.graph.ir import Convolution, DepthwiseConv, TorchCall
from torch_separable.runtime.native.bindings import InstructionSet, chosen_set

_KEPT = 64  # sets of weights, and sizes, for which a subgraph stays packed: modules that share its code have their own


def separable(graph: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Compile a subgraph that ``torch.compile`` found.

    Weights are packed when a subgraph first runs, and again when they have changed; changes that PyTorch does not
    notice, by ``parameter.data`` or of weights made under ``torch.inference_mode``, go unseen.

    Raises:
        SeparableError: gradients are wanted, or this installation has no kernel library. ``torch.compile`` passes it on
            within a ``BackendCompilerFailed``.

    Example:
        >>> network = torch.compile(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), backend=separable)
        >>> with torch.no_grad():
        ...     network(torch.randn(1, 3, 16, 16)).shape
        torch.Size([1, 8, 14, 14])
    """
    wanting = any(isinstance(value, Tensor) and value.requires_grad for value in example_inputs)
    if torch.is_grad_enabled() and wanting:
        raise SeparableError(
            'torch.compile(backend="separable") runs networks and does not train them, but gradients are wanted here: '
            "call the network under torch.no_grad() or torch.inference_mode(), or train it with another backend"
        )
    return _Subgraph(graph, chosen_set())


class _Subgraph:
    """A subgraph, packed for the weights that it is called with."""

    def __init__(self, graph: fx.GraphModule, kernels: InstructionSet) -> None:
        self.graph, self.kernels = graph, kernels
        places = [node for node in graph.graph.nodes if node.op == "placeholder"]
        # Parameters and buffers are inputs of the graph; PyTorch marks them, for they stay where they are.
        self.constant = ["_dynamo_static_input_type" in node.meta.get("tensor_dict", {}) for node in places]
        self.packed: OrderedDict[tuple[Any, ...], _Packed] = OrderedDict()
        # The code that follows was traced for outputs laid out as PyTorch would lay them out.
        (returned,) = next(node for node in graph.graph.nodes if node.op == "output").args
        self.contiguous = [_is_contiguous(node) for node in tree_leaves(returned)]
        self.lock = Lock()

    def __call__(self, *args: Any) -> Any:
        """Run on the inputs of the graph, in its order."""
        constants = [value for value, constant in zip(args, self.constant, strict=True) if constant]
        given = [value for value, constant in zip(args, self.constant, strict=True) if not constant]
        tensors = [value for value in given if isinstance(value, Tensor)]
        numbers = (value for value in given if not isinstance(value, Tensor))
        key, state = (*map(id, constants), *numbers), tuple(map(_state, constants))
        with self.lock:
            packed = self.packed.get(key)
            if packed is None or packed.state != state:
                self.packed[key] = packed = _Packed(self._pack(args, tensors), constants, state)
                if len(self.packed) > _KEPT:
                    self.packed.popitem(last=False)
        if packed.compiled is None:
            return self.graph(*args)
        leaves, structure = tree_flatten(packed.compiled(tensors[0]))
        laid_out = [
            leaf.contiguous() if contiguous else leaf for leaf, contiguous in zip(leaves, self.contiguous, strict=True)
        ]
        return tree_unflatten(laid_out, structure)

    def _pack(self, args: Sequence[Any], tensors: Sequence[Tensor]) -> CompiledModel | None:
        try:
            if len(tensors) != 1:
                raise SeparableError(f"it takes {len(tensors)} tensors that are not weights, and not one")
            bound = _Bound(self.graph, args, self.constant)
            compiled = CompiledModel(bound, self.kernels, None)
            compiled.prepare(tensors[0])
            _check(compiled, bound, tensors[0])
        except SeparableError as reason:
            calls = [node.name for node in self.graph.graph.nodes if node.op.startswith("call_")]
            what = f"{calls[0]} … {calls[-1]}" if len(calls) > 1 else "".join(calls) or "nothing"
            warnings.warn(f"torch_separable: a subgraph ({what}) runs eagerly: {reason}", stacklevel=2)
            return None
        return compiled


@dataclass(frozen=True)
class _Packed:
    """A subgraph with one set of weights.

    Attributes:
        compiled: what runs it; ``None`` where PyTorch does.
        constants: the weights, kept alive so that their identities stay theirs.
        state: where each one's values were, and how often they had been changed there.
    """

    compiled: CompiledModel | None
    constants: list[Any]
    state: tuple[tuple[int, int], ...]


class _Bound(nn.Module):
    """A graph whose weights and numbers are given: a network of one tensor."""

    def __init__(self, graph: fx.GraphModule, args: Sequence[Any], constant: Sequence[bool]) -> None:
        super().__init__()
        self.graph = graph
        self.values: list[Any] = []
        for i, (value, is_constant) in enumerate(zip(args, constant, strict=True)):
            if is_constant and isinstance(value, nn.Parameter):
                self.register_parameter(f"weight{i}", value)
            elif is_constant:
                self.register_buffer(f"weight{i}", value)
            self.values.append(None if is_constant or isinstance(value, Tensor) else value)
        self.image = next(i for i, v in enumerate(args) if isinstance(v, Tensor) and not constant[i])

    def forward(self, x: Tensor) -> Any:
        args = [getattr(self, f"weight{i}", value) for i, value in enumerate(self.values)]
        args[self.image] = x
        return self.graph(*args)


def _check(compiled: CompiledModel, bound: nn.Module, x: Tensor) -> None:
    """Require that running with kernels pays, and does nothing that would not be seen.

    Raises:
        SeparableError: the reason why the graph is PyTorch's.
    """
    nodes = compiled.program(x).nodes
    if not any(isinstance(node, Convolution | DepthwiseConv) for node in nodes):
        raise SeparableError("no operator in it has a kernel that pays")
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
    """Where a tensor's values are, and how often they were changed there."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _is_contiguous(node: Any) -> bool:
    """Whether an output of a graph is a tensor in PyTorch's usual layout."""
    value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.is_contiguous()


if "separable" not in list_backends():  # an installation's entry point has not said so
    register_backend(separable, "separable")
