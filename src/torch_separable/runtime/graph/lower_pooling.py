"""Pooling and means over pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from torch_separable.runtime.graph.arrangement import Arrangement
from torch_separable.runtime.graph.ir import (
    Convolution,
    Mean,
    Pool,
    Window,
)
from torch_separable.runtime.graph.lower_common import Unsupported, arguments, pair

if TYPE_CHECKING:
    from torch_separable.runtime.graph.lower import Lowering

aten = torch.ops.aten


def mean_handler(lowering: Lowering, node: fx.Node) -> None:
    """``mean`` over the pixels or the channels of an image, or over the tokens of a sequence."""
    given = arguments(node, ("input", "dim", "keepdim"), {"keepdim": False})
    source, layout = lowering.operand(given["input"])
    if layout == "NLC" and [d % 3 for d in given["dim"] or ()] == [1]:
        n, c, _, _ = lowering.shapes[source]
        lowering.record(node.name, (n, c, 1, 1), "NLC" if given["keepdim"] else "NC")
        lowering.nodes.append(Mean(node.name, source, node.name))
        return
    source = lowering.value(given["input"])
    if [d % 4 for d in given["dim"] or ()] == [1] and source not in lowering.vectors:
        _mean_of_channels(lowering, node, source, bool(given["keepdim"]))
        return
    if source in lowering.vectors or sorted(d % 4 for d in given["dim"] or ()) != [2, 3]:
        raise Unsupported("a mean over other dimensions than channels, or height and width")
    lowering.nodes.append(Mean(node.name, source, node.name))


def _mean_of_channels(lowering: Lowering, node: fx.Node, source: str, keepdim: bool) -> None:
    """A pointwise convolution with one output channel, whose weights are all 1/C."""
    n, c, h, w = lowering.shapes[source]
    if lowering.blocks.get(source, 1) > 1 or 0 in (n, c, h, w):
        raise Unsupported("a mean within a separable layer, or of nothing")
    name = node.name if keepdim else f"{node.name}.kept"
    lowering.record(name, (n, 1, h, w), "NCHW")
    weight = torch.full((1, c, 1, 1), 1 / c)
    lowering.nodes.append(Convolution(name, source, name, weight, torch.zeros(1), Window()))
    if not keepdim:
        seen = Arrangement.stored(name, (n, 1, h, w), "NCHW").viewed((n, h, w))
        assert seen is not None, "an image of one channel has a view without channels"
        lowering.add_view(node, seen)


def adaptive_average_handler(lowering: Lowering, node: fx.Node) -> None:
    """``adaptive_avg_pool2d`` whose windows all have one size."""
    if (size := pair(node.args[1])) != (1, 1):
        source = lowering.value(node.args[0])
        _, _, h, w = lowering.shapes[source]
        if h % size[0] or w % size[1]:
            raise Unsupported("adaptive pooling by windows of several sizes")
        window = (h // size[0], w // size[1])
        lowering.nodes.append(Pool(node.name, source, node.name, Window(window, window), False))
        return
    lowering.nodes.append(Mean(node.name, lowering.value(node.args[0]), node.name))


def pool_handler(maximum: bool) -> Callable[[Lowering, fx.Node], None]:
    """Return the handler of ``max_pool2d`` or of ``avg_pool2d``."""
    tail = ("dilation", "ceil_mode") if maximum else ("ceil_mode", "count_include_pad", "divisor_override")

    def handler(lowering: Lowering, node: fx.Node) -> None:
        defaults = {"stride": (), "padding": 0, "dilation": 1, "count_include_pad": True, "divisor_override": None}
        given = arguments(node, ("input", "kernel_size", "stride", "padding", *tail), defaults)
        if given["divisor_override"] is not None:
            raise Unsupported("average pooling with a divisor of its own")
        kernel = pair(given["kernel_size"])
        stride = pair(given["stride"]) if given["stride"] not in ((), [], None) else kernel
        window = Window(kernel, stride, pair(given["padding"]), pair(given["dilation"]))
        source = lowering.value(given["input"])
        lowering.nodes.append(Pool(node.name, source, node.name, window, maximum, bool(given["count_include_pad"])))

    return handler


HANDLERS: dict[Any, Callable[[Lowering, fx.Node], None]] = {
    aten.mean.dim: mean_handler,
    aten.adaptive_avg_pool2d.default: adaptive_average_handler,
    aten.max_pool2d.default: pool_handler(True),
    aten.avg_pool2d.default: pool_handler(False),
}
