"""How much the outputs change when one layer alone computes in int8, and which layers stay float for it.

A layer is quantized by itself: its input is rounded to uint8, its weights to int8, and everything else stays float32.
The change of the network's outputs is measured on images that ranges and weights were not fitted to. Only operators
after the layer are computed again.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from torch_separable.conversion.calibration.images import first_images, images_in
from torch_separable.conversion.solvers.knapsack import solve_knapsack
from torch_separable.quantization.ranges import choose_range
from torch_separable.quantization.roles import Roles, layer_name
from torch_separable.quantization.stream import attribute, quantize_layer, run_node
from torch_separable.runtime.graph.reference import dequantize, quantize

aten = torch.ops.aten

Form = Callable[[Tensor], Tensor]
"""What computes a layer's output (N, ...) from its input."""

# Images that a layer is fitted to, and that changes are measured on: fewer than `quantize` itself takes, because every
# layer needs a pass of its own over the operators after it. The errors of 64 images differ by a few per cent from those
# of all, and sensitivities of layers by orders of magnitude.
PROBE_IMAGES = 64


@dataclass(frozen=True)
class Sensitivity:
    """What a layer's precision costs.

    Attributes:
        change: mean squared change of the network's outputs with this layer alone in int8, relative to their variance,
            on images that nothing was fitted to.
        macs: multiply-accumulates of the layer for one image.
    """

    change: float
    macs: int


def measure_sensitivities(
    module: fx.GraphModule,
    roles: Roles,
    batches: Sequence[Tensor],
    held_out: Sequence[Tensor],
    advance: Callable[[str], None],
) -> dict[str, Sensitivity]:
    """Measure every layer that can be quantized, by the name of its module.

    Args:
        module: captured network, before quantize operators are inserted.
        roles: of its operators.
        batches: images (N, C, H, W) that ranges and weights are fitted to.
        held_out: images that changes are measured on.
        advance: called after each layer with its name.
    """
    with torch.no_grad():
        forms = int8_forms(module, roles, probe(batches))
        runs = [Replay(module, batch) for batch in probe(held_out)]
        found = {}
        for name in dict.fromkeys(map(layer_name, roles.layers)):
            nodes = [node for node in roles.layers if layer_name(node) == name]
            change = relative_change((run.outputs(), run.outputs({n: forms[n] for n in nodes})) for run in runs)
            found[name] = Sensitivity(change, sum(macs_of(module, node) for node in nodes))
            advance(name)
    return found


def choose_float_layers(sensitivities: Mapping[str, Sensitivity], share: float) -> tuple[str, ...]:
    """Choose the layers that stay float, so that the sum of the others' changes is least. Exact: a knapsack.

    Args:
        sensitivities: of each layer, by its name.
        share: of the layers' multiply-accumulates that may stay float, 0 to 1.

    Example:
        >>> layers = {"stem": Sensitivity(0.02, 10), "middle": Sensitivity(0.03, 80), "head": Sensitivity(0.001, 10)}
        >>> choose_float_layers(layers, 0.1), choose_float_layers(layers, 0.8), choose_float_layers(layers, 0.05)
        (('stem',), ('middle',), ())
    """
    total = sum(each.macs for each in sensitivities.values())
    picked = solve_knapsack(
        [[each.change, 0.0] for each in sensitivities.values()],
        [[0.0, each.macs] for each in sensitivities.values()],
        share * total * (1 + 1e-12),  # the share of exactly some layers must fit despite rounding
    )
    return tuple(name for name, stays in zip(sensitivities, picked, strict=True) if stays)


def probe(batches: Sequence[Tensor], count: int = PROBE_IMAGES) -> list[Tensor]:
    """The first images, in batches."""
    chosen: list[Tensor] = []
    for batch in batches:
        if (left := count - sum(map(images_in, chosen))) > 0:
            first = first_images(batch, left)
            assert isinstance(first, Tensor)
            chosen.append(first)
    return chosen


def int8_forms(module: fx.GraphModule, roles: Roles, batches: Sequence[Tensor]) -> dict[fx.Node, Form]:
    """Fit every layer's int8 form to the activations of the float network."""
    runs = [Replay(module, batch) for batch in batches]
    exact = {node: [run.values[node] for run in runs] for node in module.graph.nodes if node.op != "output"}
    forms = {}
    for node in roles.layers:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        forms[node] = int8_form(node, exact, source)
    return forms


def int8_form(node: fx.Node, exact: Mapping[fx.Node, list[Any]], source: fx.Node) -> Form:
    """Fit one layer's int8 form to its exact inputs and outputs."""
    own = choose_range(exact[source])
    inputs = [dequantize(quantize(value, own), own) for value in exact[source]]
    layer, _ = quantize_layer(node, exact, {**exact, source: inputs})
    weight = layer.weight.float() * layer.scales.view(-1, *[1] * (layer.weight.dim() - 1))
    target: Any = node.target
    kwargs = {key: value for key, value in node.kwargs.items() if key != "bias"}

    def form(x: Tensor) -> Tensor:
        result: Tensor = target(dequantize(quantize(x, own), own), weight, layer.bias, *node.args[3:], **kwargs)
        return result

    return form


class Replay:
    """All values of a captured network for one batch, from which its outputs with other layers are computed."""

    def __init__(self, module: fx.GraphModule, batch: Tensor) -> None:
        self.module = module
        self.values: dict[fx.Node, Any] = {}
        for node in module.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = batch
            elif node.op == "get_attr":
                self.values[node] = attribute(module, str(node.target))
            elif node.op == "call_function":
                self.values[node] = run_node(node, self.values)

    def outputs(self, forms: Mapping[fx.Node, Form] | None = None) -> Tensor:
        """What the network returns, (N, features), with some layers computed by ``forms``."""
        forms = forms or {}
        changed: dict[fx.Node, Any] = {}
        for node in self.module.graph.nodes:
            if node in forms:
                changed[node] = forms[node](changed.get(node.args[0], self.values[node.args[0]]))
            elif node.op == "call_function" and any(source in changed for source in node.all_input_nodes):
                changed[node] = run_node(node, ChainMap(changed, self.values))
        output = self.module.graph.output_node()
        returned = fx.map_arg(output.args[0], lambda node: changed.get(node, self.values[node]))
        return torch.cat([tensor.flatten(1) for tensor in tree_leaves(returned)], 1)


def relative_change(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Mean squared difference of outputs (N, features), relative to the variance of the first of each pair.

    A single image has no variance: its difference is relative to the mean square.
    """
    before, after = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    variance = (before.var(0, unbiased=False) if len(before) > 1 else before.square()).mean().clamp_min(1e-30)
    return float((after - before).square().mean() / variance)


def macs_of(module: fx.GraphModule, node: fx.Node) -> int:
    """Multiply-accumulates of one call of a layer for one image."""
    weight = attribute(module, str(node.args[1].target))  # type: ignore[union-attr]
    shape = node.meta["val"].shape
    positions = shape[1:-1] if node.target is aten.linear.default else shape[2:]
    return math.prod(map(int, positions)) * int(weight.numel())
