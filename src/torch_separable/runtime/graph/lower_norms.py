"""Normalizations by statistics of the activations, and softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from torch_separable.runtime.graph.ir import Normalize, Softmax
from torch_separable.runtime.graph.lower_common import Unsupported, arguments

if TYPE_CHECKING:
    from torch_separable.runtime.graph.lower import Lowering

aten = torch.ops.aten


def _affine(lowering: Lowering, given: dict[str, Any], channels: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of a norm, (C,) each; 1 and 0 where it has none."""
    weight, bias = given["weight"], given["bias"]
    scale = torch.ones(channels) if weight is None else lowering.constant(weight)
    shift = torch.zeros(channels) if bias is None else lowering.constant(bias)
    return scale, shift


def layer_norm_handler(lowering: Lowering, node: fx.Node) -> None:
    """``layer_norm`` over the channels of each pixel or token (Ba et al., arXiv 1607.06450)."""
    given = arguments(
        node,
        ("input", "normalized_shape", "weight", "bias", "eps", "cudnn"),
        {"weight": None, "bias": None, "eps": 1e-5},
    )
    source = given["input"]
    if len(given["normalized_shape"]) != 1:
        raise Unsupported("a layer norm over more than the last dimension")
    layout = {4: "NHWC", 3: "NLC", 2: "NC"}.get(source.meta["val"].dim())
    if layout is None:
        raise Unsupported(f"a layer norm of {source.meta['val'].dim()} dimensions")
    value = lowering.in_layout(source, layout)
    shape = lowering.shapes[value]
    weight, bias = _affine(lowering, given, shape[1])
    lowering.record(node.name, shape, layout)
    lowering.nodes.append(Normalize(node.name, value, node.name, weight, bias, float(given["eps"]), None))


def group_norm_handler(lowering: Lowering, node: fx.Node) -> None:
    """``group_norm`` (Wu and He, arXiv 1803.08494)."""
    given = arguments(
        node, ("input", "groups", "weight", "bias", "eps", "cudnn"), {"weight": None, "bias": None, "eps": 1e-5}
    )
    _over_pixels(lowering, node, given, int(given["groups"]))


def instance_norm_handler(lowering: Lowering, node: fx.Node) -> None:
    """``instance_norm`` by its input's own statistics (Ulyanov et al., arXiv 1607.08022)."""
    names = ("input", "weight", "bias", "running_mean", "running_var", "use_input_stats", "momentum", "eps", "cudnn")
    given = arguments(node, names, {"weight": None, "bias": None})
    if not given["use_input_stats"]:
        raise Unsupported("instance norm by running statistics")
    _over_pixels(lowering, node, given, given["input"].meta["val"].shape[1])


def _over_pixels(lowering: Lowering, node: fx.Node, given: dict[str, Any], groups: int) -> None:
    value, layout = lowering.operand(given["input"])
    if layout not in ("NCHW", "NC", "NCL"):
        value, layout = lowering.value(given["input"]), "NCHW"
    shape = lowering.shapes[value]
    weight, bias = _affine(lowering, given, shape[1])
    lowering.record(node.name, shape, layout)
    lowering.nodes.append(Normalize(node.name, value, node.name, weight, bias, float(given["eps"]), groups))


def softmax_handler(lowering: Lowering, node: fx.Node) -> None:
    """``softmax`` over the channels of each pixel or token."""
    source: Any = node.args[0]
    dimension: Any = node.args[1]
    if len(node.args) > 2 and node.args[2] not in (None, False, torch.float32):
        raise Unsupported("softmax in another type")
    dims = source.meta["val"].dim()
    last = dimension % dims == dims - 1
    layout = ({4: "NHWC", 3: "NLC", 2: "NC"} if last else {4: "NCHW", 3: "NCL", 2: "NC"}).get(dims)
    if layout is None or not (last or dimension % dims == 1):
        raise Unsupported("softmax over pixels")
    value = lowering.in_layout(source, layout)
    lowering.record(node.name, lowering.shapes[value], layout)
    lowering.nodes.append(Softmax(node.name, value, node.name))


HANDLERS: dict[Any, Callable[[Lowering, fx.Node], None]] = {
    aten.layer_norm.default: layer_norm_handler,
    aten.group_norm.default: group_norm_handler,
    aten.instance_norm.default: instance_norm_handler,
    aten.softmax.int: softmax_handler,
    aten._softmax.default: softmax_handler,
}
