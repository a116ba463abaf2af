"""Which values of a captured network become uint8, and which operators then compute in integers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten


class Role(Enum):
    """How a quantized network runs an operator."""

    LAYER = auto()  # a convolution or linear layer with constant weights
    CLAMP = auto()  # fused into the operator before it, or a table
    SUM = auto()
    PRODUCT = auto()  # by one factor a channel and image
    AVERAGE = auto()
    TABLE = auto()  # any other elementwise function
    CONCATENATION = auto()
    KEEPING = auto()  # its results are some of its inputs, or zeros
    OTHER = auto()  # float32


_LAYERS = {aten.conv2d.default, aten.conv2d.padding, aten.linear.default}
_CLAMPS = {aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default}
_KEEPING = {
    aten.max_pool2d.default, aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.slice.Tensor,
    aten.pad.default, aten.clone.default, aten.contiguous.default, aten.dropout.default, aten.squeeze.dims,
    aten.unsqueeze.default, aten.permute.default, aten.transpose.int, aten.constant_pad_nd.default,
}  # fmt: skip


def role_of(node: fx.Node) -> Role:
    """Classify an operator by its target, its constants and the shapes of its operands."""
    if node.op != "call_function" or not _is_activation(node):
        return Role.OTHER
    target, inputs = node.target, _operands(node)
    if target in _LAYERS:
        weight = node.args[1]
        return Role.LAYER if isinstance(weight, fx.Node) and weight.op == "get_attr" else Role.OTHER
    if target is aten.cat.default:
        channels = (node.args[1] if len(node.args) > 1 else 0) == 1
        return Role.CONCATENATION if channels and all(map(_is_activation, inputs)) else Role.OTHER
    if not inputs or not _is_activation(inputs[0]):
        return Role.OTHER
    if target in _KEEPING:
        return Role.KEEPING
    shapes = [each.meta["val"].shape for each in inputs if _is_activation(each)]
    if target is aten.add.Tensor and len(inputs) == len(shapes) == 2:
        return Role.SUM if shapes[0] == shapes[1] and not node.kwargs else Role.OTHER
    if target is aten.mul.Tensor and len(inputs) == len(shapes) == 2:
        smaller, larger = sorted(shapes, key=lambda shape: tuple(shape[2:]) != (1, 1))
        return Role.PRODUCT if smaller[:2] == larger[:2] and tuple(smaller[2:]) == (1, 1) else Role.OTHER
    if target is aten.mean.dim:
        given: Any = node.args[1] or ()
        dims = sorted(dim % len(shapes[0]) for dim in given)
        return Role.AVERAGE if dims == [2, 3] else Role.OTHER
    if target is aten.adaptive_avg_pool2d.default:
        size: Any = node.args[1]
        return Role.AVERAGE if set(size) == {1} else Role.OTHER
    if target is aten.avg_pool2d.default:
        return Role.AVERAGE if len(node.args) < 7 or node.args[6] is None else Role.OTHER
    if len(inputs) == 1:
        if target in _CLAMPS:
            return Role.CLAMP
        if torch.Tag.pointwise in getattr(target, "tags", ()):
            return Role.TABLE
    return Role.OTHER


def _operands(node: fx.Node) -> list[fx.Node]:
    return [each for each in node.all_input_nodes if each.op != "get_attr"]


def _is_activation(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float32 and value.dim() in (2, 4)


@dataclass(frozen=True)
class Roles:
    """Roles of all operators, and the values that are quantized.

    Attributes:
        of: role of each operator; layers in ``excluded`` are `Role.OTHER` here.
        layers: layers that are quantized.
        excluded: layers that stay in float32.
        points: values that become uint8.
    """

    of: dict[fx.Node, Role]
    layers: tuple[fx.Node, ...]
    excluded: tuple[fx.Node, ...]
    points: frozenset[fx.Node]


def assign_roles(graph: fx.Graph, excluded: Collection[str] = ()) -> Roles:
    """Decide what is quantized: every value that reaches a quantized layer through operators with an integer form.

    Values that are fused into the operator after them (a convolution's before a residual sum or a clamp) stay float32.

    Args:
        graph: with functional operators.
        excluded: names of layers, by `layer_name`, that stay in float32.
    """
    true = {node: role_of(node) for node in graph.nodes}
    all_layers = [node for node, role in true.items() if role is Role.LAYER]
    kept = {node for node in all_layers if layer_name(node) in excluded}
    order = {node: place for place, node in enumerate(graph.nodes)}
    of = {node: Role.OTHER if node in kept else role for node, role in true.items()}
    reaching: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        for user in node.users:
            as_weight = of[user] is Role.LAYER and node not in user.args[:1]
            if not as_weight and (of[user] is Role.LAYER or (of[user] is not Role.OTHER and user in reaching)):
                reaching.add(node)
    points = {
        node for node in reaching
        if _is_activation(node) and node.op in ("placeholder", "call_function") and not _is_fused(node, true, order)
    }  # fmt: skip
    layers = tuple(node for node in all_layers if node not in kept)
    return Roles(of, layers, tuple(node for node in all_layers if node in kept), frozenset(points))


def _is_fused(node: fx.Node, roles: dict[fx.Node, Role], order: dict[fx.Node, int]) -> bool:
    """Whether the only user of a value computes on it before it is rounded."""
    if len(node.users) != 1:
        return False
    user = next(iter(node.users))
    if roles[user] is Role.CLAMP:
        return roles[node] in (Role.LAYER, Role.SUM, Role.PRODUCT, Role.AVERAGE)
    if roles[user] is Role.SUM and roles[node] is Role.LAYER:
        (other,) = set(user.all_input_nodes) - {node} or {node}
        alike = roles[other] is Role.LAYER and len(other.users) == 1
        return other is not node and (not alike or order[node] > order[other])
    return False


def module_name(node: fx.Node) -> str:
    """Name of the innermost module that an operator comes from; empty where there is none."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(next(reversed(stack.values()), ("",))[0])
    return "" if path == "L['self']" else path.removeprefix("L['self'].").removeprefix("model.")


def layer_name(node: fx.Node) -> str:
    """Name of the module that a layer comes from; where there is none, of its weight."""
    weight = node.args[1]
    return module_name(node) or (str(weight.target).rpartition(".")[0] if isinstance(weight, fx.Node) else node.name)
