"""Quantization of a captured network, one operator after the other, on all calibration images at once.

Two runs go side by side: the float network, and the quantized one as far as it is made. So every layer is rounded for
the inputs that it gets in the quantized network, and its bias takes up the mean error of everything before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from torch_separable.errors import SeparableError
from torch_separable.quantization.ranges import choose_range
from torch_separable.quantization.roles import Role, Roles, layer_name, module_name
from torch_separable.quantization.rounding import Settings, input_moments, round_weights
from torch_separable.runtime.graph.ir import Quantization
from torch_separable.runtime.graph.reference import dequantize, quantize

aten = torch.ops.aten


@dataclass(frozen=True)
class QuantizedLayer:
    """int8 weights of one layer.

    Attributes:
        weight: int8, of the shape of the float weight.
        scales: float32 (M,).
        bias: float32 (M,), with the mean error before it taken up.
        error: mean squared error of the layer's outputs that rounding its weights makes, relative to their variance.
    """

    weight: Tensor
    scales: Tensor
    bias: Tensor
    error: float


@dataclass
class Quantities:
    """What a pass has decided.

    Attributes:
        values: scale and zero point of every quantized value.
        layers: of every quantized layer.
    """

    values: dict[fx.Node, Quantization] = field(default_factory=dict)
    layers: dict[fx.Node, QuantizedLayer] = field(default_factory=dict)


def quantize_stream(
    module: fx.GraphModule, roles: Roles, batches: Sequence[Tensor], advance: Callable[[str], None]
) -> Quantities:
    """Run the network on all batches, operator by operator, and decide scales, zero points and weights.

    Args:
        module: captured, with functional operators.
        roles: of its operators.
        batches: images (N, C, H, W).
        advance: called after each layer with its name.

    Raises:
        SeparableError: an activation is NaN or infinite; the message names the layer.
    """
    found = Quantities()
    exact: dict[fx.Node, list[Any]] = {}
    rounded: dict[fx.Node, list[Any]] = {}
    last = _last_uses(module.graph)
    with torch.no_grad():
        for node in module.graph.nodes:
            if node.op == "output":
                break
            if node.op == "placeholder":
                exact[node] = rounded[node] = list(batches)
            elif node.op == "get_attr":
                exact[node] = rounded[node] = [attribute(module, str(node.target))] * len(batches)
            else:
                exact[node] = [_run(node, node.args, exact, b) for b in range(len(batches))]
                if node in roles.layers:
                    layer, rounded[node] = quantize_layer(node, exact, rounded)
                    found.layers[node] = layer
                    advance(layer_name(node))
                else:
                    rounded[node] = [_run(node, node.args, rounded, b) for b in range(len(batches))]
            if node in roles.points:
                _require_finite(node, rounded[node])
                source = node.args[0] if roles.of[node] is Role.KEEPING else None
                if isinstance(source, fx.Node) and source in found.values:
                    found.values[node] = found.values[source]
                else:
                    found.values[node] = choose_range(rounded[node])
                own = found.values[node]
                rounded[node] = [dequantize(quantize(value, own), own) for value in rounded[node]]
            for done in last.get(node, ()):
                exact.pop(done, None)
                rounded.pop(done, None)
    return found


def attribute(module: fx.GraphModule, path: str) -> Any:
    """A parameter, buffer or submodule by its full name."""
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value.detach() if isinstance(value, Tensor) else value


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        last[node] = node
        for source in node.all_input_nodes:
            last[source] = node
    found: dict[fx.Node, list[fx.Node]] = {}
    for node, user in last.items():
        found.setdefault(user, []).append(node)
    return found


def _values(arguments: Any, env: Mapping[fx.Node, list[Any]], batch: int) -> Any:
    return fx.map_arg(arguments, lambda each: env[each][batch])


def run_node(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """Compute an operator from the values that it reads."""
    target: Any = node.target
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda each: values[each])
    return target(*args, **kwargs)


def _run(node: fx.Node, arguments: Any, env: Mapping[fx.Node, list[Any]], batch: int) -> Any:
    target: Any = node.target
    return target(*_values(arguments, env, batch), **_values(node.kwargs, env, batch))


def _require_finite(node: fx.Node, values: Sequence[Tensor]) -> None:
    if all(bool(value.isfinite().all()) for value in values):
        return
    where = module_name(node) or node.name
    raise SeparableError(
        f"layer {where!r} gives NaN or infinity on the calibration images, so no range can be chosen for it. Check the "
        "images and the weights, or exclude the layer"
    )


def quantize_layer(
    node: fx.Node, exact: Mapping[fx.Node, list[Any]], rounded: Mapping[fx.Node, list[Any]]
) -> tuple[QuantizedLayer, list[Tensor]]:
    """Round one layer's weights, and return it with its outputs.

    Args:
        node: the layer.
        exact: for each value of the float network, its tensors for all batches.
        rounded: likewise those of the quantized network, as far as the layer reads them.
    """
    source, weight_node = node.args[0], node.args[1]
    assert isinstance(source, fx.Node)
    assert isinstance(weight_node, fx.Node)
    weight: Tensor = exact[weight_node][0]
    inputs = rounded[source]
    settings, groups = convolution_settings(node, weight)
    for value in inputs[:1]:
        _require_finite(node, [value])
    kernel = (weight.shape[2], weight.shape[3]) if weight.dim() == 4 else (1, 1)
    moments = input_moments(inputs, kernel, settings, groups)
    rows = weight.flatten(1).unflatten(0, (groups, -1))
    stored, scales = round_weights(rows, moments)
    stored, scales = stored.flatten(0, 1).view(weight.shape), scales.flatten()
    values = stored.float() * scales.view(-1, *[1] * (weight.dim() - 1))
    exact_rows, change = rows.double(), rows.double() - values.flatten(1).unflatten(0, (groups, -1)).double()
    noise = ((change @ moments) * change).sum()
    signal = ((exact_rows @ moments) * exact_rows).sum().clamp_min(1e-30)
    wanted = [each.mean([0, *range(2, each.dim())]) * len(each) for each in exact[node]]
    outputs = [_run(node, (source, values, *node.args[2:]), rounded, b) for b in range(len(inputs))]
    got = [each.mean([0, *range(2, each.dim())]) * len(each) for each in outputs]
    shift = torch.stack(wanted).sum(0).sub(torch.stack(got).sum(0)) / sum(map(len, outputs))
    bias_node = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    bias = shift + (exact[bias_node][0] if isinstance(bias_node, fx.Node) else 0)
    per_channel = shift.view(-1, *[1] * (outputs[0].dim() - 2))
    return QuantizedLayer(stored, scales, bias, float(noise / signal)), [each + per_channel for each in outputs]


def convolution_settings(node: fx.Node, weight: Tensor) -> tuple[Settings, int]:
    """Stride, padding and dilation of a layer, and its groups; of a linear layer, those of one pixel."""
    if node.target is aten.linear.default:
        return ((1, 1), (0, 0), (1, 1)), 1
    names = ("stride", "padding", "dilation", "groups")
    given: dict[str, Any] = {**dict(zip(names, node.args[3:], strict=False)), **node.kwargs}

    def pair(value: Any) -> tuple[int, int]:
        values = [value] if isinstance(value, int) else list(value)
        return int(values[0]), int(values[-1])

    dilation, padding = pair(given.get("dilation", 1)), given.get("padding", 0)
    if isinstance(padding, str):
        reach = [d * (k - 1) // 2 for d, k in zip(dilation, weight.shape[2:], strict=True)]
        padding = reach if padding == "same" else 0
    return (pair(given.get("stride", 1)), pair(padding), dilation), int(given.get("groups", 1))
