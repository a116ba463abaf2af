"""The layers of a captured network that a plan gives a precision, as modules with batch norms folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from torch_separable.conversion.convolutions import grouped_weight
from torch_separable.conversion.planning.options import Choice
from torch_separable.conversion.replacement import separable_layer
from torch_separable.conversion.solvers.factorize import decouple
from torch_separable.quantization.roles import Roles, layer_name
from torch_separable.quantization.stream import attribute, convolution_settings


@dataclass(frozen=True)
class PlannedLayer:
    """A convolution or linear layer.

    Attributes:
        name: of the module that it comes from.
        nodes: its calls in the captured network.
        module: the layer with folded batch norm.
        shapes: shape of the input of each call for one image, (C, H, W) or (C,).
        values: number of its outputs for one image.
        choices: order and rank of the factorisations that it may take.
    """

    name: str
    nodes: tuple[fx.Node, ...]
    module: nn.Module
    shapes: tuple[tuple[int, ...], ...]
    values: int
    choices: tuple[Choice, ...] = ()

    def form(self, choice: Choice | None) -> nn.Module:
        """The layer itself, or a factorisation of its weights. Data do not matter for what it is used for."""
        if choice is None:
            return self.module
        conv: Any = self.module
        return separable_layer(conv, tuple(decouple(w, *choice) for w in grouped_weight(conv)), None).eval()


def planned_layers(
    graph: fx.GraphModule, roles: Roles, choices: Mapping[str, Sequence[Choice]]
) -> tuple[PlannedLayer, ...]:
    """Find the layers of a captured network, in order of execution.

    Args:
        graph: the captured network.
        roles: of its operators.
        choices: factorisations by the layer's name, of layers that may be converted.
    """
    found = []
    for name in dict.fromkeys(map(layer_name, roles.layers)):
        nodes = tuple(node for node in roles.layers if layer_name(node) == name)
        shapes = tuple(tuple(int(n) for n in input_of(node).meta["val"].shape[1:]) for node in nodes)
        values = sum(int(node.meta["val"][0].numel()) for node in nodes)
        found.append(PlannedLayer(name, nodes, _module(graph, nodes[0]), shapes, values, tuple(choices.get(name, ()))))
    return tuple(found)


def input_of(node: fx.Node) -> fx.Node:
    """The value that a layer reads."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _module(graph: fx.GraphModule, node: fx.Node) -> nn.Module:
    weight = _constant(graph, node.args[1])
    assert weight is not None
    bias = _constant(graph, node.args[2] if len(node.args) > 2 else node.kwargs.get("bias"))
    module: nn.Conv2d | nn.Linear
    if weight.dim() == 2:
        module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    else:
        (stride, padding, dilation), groups = convolution_settings(node, weight)
        named = next((value for value in node.args[3:] if isinstance(value, str)), None)
        module = nn.Conv2d(
            weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), stride,  # type: ignore[arg-type]
            padding if named is None else named, dilation, groups, bias=bias is not None, device="meta",
        )  # fmt: skip
    module.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return module.eval()


def _constant(graph: fx.GraphModule, node: object) -> Tensor | None:
    if not isinstance(node, fx.Node):
        return None
    value = attribute(graph, str(node.target))
    assert isinstance(value, torch.Tensor)
    return value
