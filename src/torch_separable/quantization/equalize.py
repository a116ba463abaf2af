"""Cross-layer equalization: channels of one value are brought to like ranges, by scaling the weights on both sides.

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (ICCV 2019, arXiv
1906.04721), section 4.1. Weights have a scale for each output channel here, so only two things are left to gain: one
scale serves all channels of an activation, and channels that use a small part of it lose precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from torch_separable.quantization.roles import Roles
from torch_separable.quantization.stream import attribute, convolution_settings

aten = torch.ops.aten

_MARGIN = 1.25  # a channel may exceed its largest value on the calibration images by so much
_SMALLEST = 1 / 64  # factor


def equalize(module: fx.GraphModule, roles: Roles, batches: Sequence[Tensor]) -> int:
    """Rescale the channels between two layers, one of them depthwise, through ReLU, ReLU6 or nothing.

    Args:
        module: captured network; its weights are replaced.
        roles: of its operators.
        batches: calibration images.

    Returns:
        Number of values that were equalized.
    """
    pairs = _pairs(module, roles)
    if not pairs:
        return 0
    largest = _largest(module, [value for _, value, _ in pairs], batches)
    for first, value, second in pairs:
        weight, following = (attribute(module, str(layer.args[1].target)) for layer in (first, second))  # type: ignore[union-attr]
        (_, groups) = convolution_settings(second, following)
        # A depthwise layer takes any factor into its own scales; elsewhere the factors widen the rows they are in.
        exponent = 1.0 if groups > 1 else 0.5
        peaks = largest[value]
        factors = torch.where(peaks > 0, (_MARGIN * peaks / peaks.max().clamp_min(1e-30)) ** exponent, 1.0)
        factors = factors.clamp(_SMALLEST, 1.0)
        _set(module, first.args[1], weight / factors.view(-1, *[1] * (weight.dim() - 1)))
        if len(first.args) > 2 and isinstance(first.args[2], fx.Node):
            _set(module, first.args[2], attribute(module, str(first.args[2].target)) / factors)
        if groups > 1:
            of_rows = factors.repeat_interleave(following.shape[0] // groups)
            _set(module, second.args[1], following * of_rows.view(-1, *[1] * (following.dim() - 1)))
        else:
            _set(module, second.args[1], following * factors.view(1, -1, *[1] * (following.dim() - 2)))
    return len(pairs)


def _pairs(module: fx.GraphModule, roles: Roles) -> list[tuple[fx.Node, fx.Node, fx.Node]]:
    """Layers, the value between them and the layers that alone read it."""
    found = []
    for first in roles.layers:
        value = first
        while len(value.users) == 1 and _is_rectifier(user := next(iter(value.users))):
            value = user
        second = next(iter(value.users)) if len(value.users) == 1 else None
        if second not in roles.layers or second.args[0] is not value:
            continue
        weights = [attribute(module, str(layer.args[1].target)) for layer in (first, second)]  # type: ignore[union-attr]
        groups = [convolution_settings(*each)[1] for each in zip((first, second), weights, strict=True)]
        depthwise = [g > 1 and weight.shape[1] == 1 for g, weight in zip(groups, weights, strict=True)]
        plain = all(g == 1 or deep for g, deep in zip(groups, depthwise, strict=True))
        nodes = [*first.args[1:3], second.args[1]]
        alone = all(_readers(module, each) == 1 for each in nodes if isinstance(each, fx.Node))
        if any(depthwise) and plain and alone and "bias" not in first.kwargs:
            found.append((first, value, second))
    return found


def _is_rectifier(node: fx.Node) -> bool:
    """Whether it is linear for small positive values and 0 for negative ones."""
    if node.target is aten.hardtanh.default:
        return len(node.args) > 1 and bool(node.args[1] == 0)
    return node.target in (aten.relu.default, aten.relu6.default)


def _readers(module: fx.GraphModule, node: fx.Node) -> int:
    return sum(len(each.users) for each in module.graph.nodes if each.op == "get_attr" and each.target == node.target)


def _largest(module: fx.GraphModule, values: Sequence[fx.Node], batches: Sequence[Tensor]) -> Mapping[fx.Node, Tensor]:
    """Largest magnitude of each channel of some values."""
    found: dict[fx.Node, Tensor] = {}

    class Observer(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            if n in wanted:
                peaks = result.abs().amax([0, *range(2, result.dim())])
                found[n] = torch.maximum(found[n], peaks) if n in found else peaks
            return result

    wanted = set(values)
    with torch.no_grad():
        for batch in batches:
            Observer(module).run(batch)
    return found


def _set(module: fx.GraphModule, node: object, value: Tensor) -> None:
    assert isinstance(node, fx.Node)
    attribute(module, str(node.target)).copy_(value)
