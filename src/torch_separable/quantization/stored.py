"""A captured network as plain data: its operators as JSON values, its weights as tensors by name.

The data can be saved and read without executing anything: a node names an operator of PyTorch's ``aten`` or
``quantized_decomposed`` namespace or an entry of `_FUNCTIONS`, and its arguments are numbers, names and lists.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - registers the operators

from torch_separable.errors import SeparableError
from torch_separable.quantization.roles import module_name

VERSION = 1
# Python functions that torch.export leaves in graphs: arithmetic on the batch size, and parts of tuples.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"operator.{function.__name__}": function
    for function in (operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.neg)
}
_QUANTIZED = ("quantize_per_tensor.default", "dequantize_per_tensor.default", "dequantize_per_channel.default")
_CONSTANTS = {"dtype": torch.dtype, "memory_format": torch.memory_format, "layout": torch.layout}
# Values of arguments that are strings: padding, rounding, interpolation and padding modes, variants of GELU.
_WORDS = {"same", "valid", "floor", "trunc", "none", "tanh", "constant", "reflect", "replicate", "circular"}
_MOST_ELEMENTS = 2**31  # of one value for one image; more would exhaust the memory


def describe(module: fx.GraphModule) -> dict[str, Any]:
    """Return the operators of a captured network of one input and one output, as JSON values.

    Raises:
        SeparableError: the network has an operator that the data cannot hold; the message names it.
    """
    nodes: list[dict[str, Any]] = []
    for node in module.graph.nodes:
        entry: dict[str, Any] = {"name": node.name, "op": node.op}
        if node.op == "call_function":
            entry |= {"target": _name_of(node), "args": _written(node, node.args)}
            if node.kwargs:
                entry["kwargs"] = {key: _written(node, value) for key, value in node.kwargs.items()}
            if layer := module_name(node):
                entry["layer"] = layer
        elif node.op == "get_attr":
            entry["target"] = str(node.target)
        elif node.op == "output":
            (result,) = node.all_input_nodes
            entry["args"] = [{"node": result.name}]
        elif node.op != "placeholder":
            raise SeparableError(f"{node.name} calls a module, which cannot be written as an operator")
        nodes.append(entry)
    return {"version": VERSION, "nodes": nodes}


def build(description: Any, tensors: Mapping[str, Tensor], where: str) -> fx.GraphModule:
    """Build the network from what `describe` returned and its tensors.

    Args:
        description: JSON values.
        tensors: by name.
        where: where they come from, for messages.

    Raises:
        SeparableError: the description is damaged, names an operator that is not permitted, or needs a tensor that is
            missing.
    """
    try:
        return _Reader(description, tensors).module()
    except SeparableError as error:
        raise SeparableError(f"{where}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise SeparableError(
            f"{where} is damaged: {type(error).__name__} on reading the network's operators ({first:.80}). Save the "
            "network again"
        ) from error


def check_runs(module: fx.GraphModule, shape: tuple[int, ...], where: str) -> None:
    """Run the network on the shape of one image without computing, so that what does not fit is found on loading.

    Raises:
        SeparableError: an operator does not take its operands, or a value has too many elements.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    class Checked(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor) and value.numel() >= _MOST_ELEMENTS:
                raise SeparableError(f"{n.name} has the shape {tuple(value.shape)}, which exceeds any memory")
            return value

    try:
        with mode, torch.no_grad():
            result = Checked(module).run(torch.empty(1, *shape))
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SeparableError(f"{where}: the network does not run on an image of shape {shape}: {first:.160}") from error
    if not isinstance(result, Tensor):
        raise SeparableError(f"{where}: the network returns a {type(result).__name__}, not a tensor")


def _name_of(node: fx.Node) -> str:
    target: Any = node.target
    for name, function in _FUNCTIONS.items():
        if target is function:
            return name
    name = str(target)
    if isinstance(target, torch._ops.OpOverload) and _operator(name) is target:
        return name
    raise SeparableError(
        f"{node.name} is {name}, which a saved network cannot hold: exclude its module from the network"
    )


def _operator(name: str) -> Callable[..., Any]:
    """The operator of a name, if a saved network may call it."""
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    namespace, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    if namespace == "quantized_decomposed" and rest in _QUANTIZED:
        found = getattr(getattr(torch.ops.quantized_decomposed, packet), overload)
    elif namespace == "aten" and packet.isidentifier() and not packet.startswith("_") and packet != "from_file":
        found = getattr(getattr(torch.ops.aten, packet, None), overload, None)
        if not isinstance(found, torch._ops.OpOverload) or found._schema.is_mutable:
            found = None
    else:
        found = None
    if found is None:
        raise SeparableError(f"the operator {name!r:.60} is unknown to this release or not permitted")
    return found  # type: ignore[no-any-return]


def _written(node: fx.Node, value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, list | tuple):
        return [_written(node, each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and value in _WORDS):
        return value
    for kind, of_type in _CONSTANTS.items():
        if isinstance(value, of_type):
            return {kind: str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": value.type}
    raise SeparableError(f"{node.name} has the argument {value!r:.60}, which a saved network cannot hold")


class _Reader:
    """One reading of a description."""

    def __init__(self, description: Any, tensors: Mapping[str, Tensor]) -> None:
        if description["version"] != VERSION:
            raise SeparableError(f"version {description['version']!r:.20}: this release reads version {VERSION}")
        self.entries: list[Any] = description["nodes"]
        self.tensors = tensors
        self.graph = fx.Graph()
        self.nodes: dict[str, fx.Node] = {}

    def module(self) -> fx.GraphModule:
        used: dict[str, Tensor] = {}
        for entry in self.entries:
            node = self.node(entry)
            if node.op == "get_attr":
                used[str(node.target)] = self.tensors[str(node.target)]
            self.nodes[entry["name"]] = node
        kinds = [node.op for node in self.graph.nodes]
        if kinds.count("placeholder") != 1 or kinds[-1:] != ["output"]:
            raise SeparableError("the network does not have one input and one output")
        self.graph.lint()
        module = fx.GraphModule(dict(used), self.graph)
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        return module

    def node(self, entry: Any) -> fx.Node:
        name, kind = entry["name"], entry["op"]
        if not isinstance(name, str) or not name.isidentifier() or name in self.nodes:
            raise SeparableError(f"{name!r:.40} is not the name of one operator")
        if kind == "placeholder":
            return self.graph.create_node("placeholder", name, name=name)
        if kind == "get_attr":
            target = str(entry["target"])
            if target not in self.tensors:
                raise SeparableError(f"the weight {target!r:.60} is missing")
            if not all(part.isidentifier() or part.isdecimal() for part in target.split(".")):
                raise SeparableError(f"{target!r:.60} is not the name of a weight")
            return self.graph.create_node("get_attr", target, name=name)
        if kind == "output":
            self.graph.output(self.value(entry["args"][0]))
            return self.graph.output_node()
        if kind != "call_function":
            raise SeparableError(f"{kind!r:.40} is not a kind of operator")
        target_name = str(entry["target"])
        args = tuple(self.value(each) for each in entry["args"])
        kwargs = {str(key): self.value(value) for key, value in entry.get("kwargs", {}).items()}
        if target_name.startswith("quantized_decomposed."):
            _check_quantization(name, target_name, args)
        node = self.graph.create_node("call_function", _operator(target_name), args, kwargs, name=name)
        if "layer" in entry:
            node.meta["nn_module_stack"] = {name: (str(entry["layer"]), "torch.nn.Module")}
        return node

    def value(self, written: Any) -> Any:
        if isinstance(written, list):
            return [self.value(each) for each in written]
        if isinstance(written, dict):
            ((kind, value),) = written.items()
            if kind == "node":
                return self.nodes[value]
            if kind == "float":
                return float(value)
            if kind == "device":
                return torch.device("cpu")
            found = getattr(torch, str(value), None)
            if not isinstance(found, _CONSTANTS[kind]):
                raise SeparableError(f"{value!r:.40} is not a {kind}")
            return found
        if isinstance(written, str) and written not in _WORDS:
            raise SeparableError(f"{written!r:.40} is not an argument of any operator")
        return written


def _check_quantization(name: str, target: str, args: tuple[Any, ...]) -> None:
    """Check scale, zero point and bounds, of which PyTorch's operators do not all complain."""
    if "per_channel" in target:
        return  # tensors, checked with the weights
    scale, zero_point, low, high, dtype = args[1:6]
    sound = (
        isinstance(scale, float)
        and math.isfinite(scale)
        and scale > 0
        and all(type(each) is int for each in (zero_point, low, high))
        and 0 <= low <= zero_point <= high <= 255
        and dtype == torch.uint8
    )
    if not sound:
        raise SeparableError(f"{name} has a scale, zero point or bound that uint8 cannot have: {args[1:6]!r:.80}")
