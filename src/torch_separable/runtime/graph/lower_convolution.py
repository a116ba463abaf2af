"""Convolutions, linear layers, batch norms, and the zero padding that a convolution takes over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from torch_separable.runtime.graph import lower_resample
from torch_separable.runtime.graph.ir import (
    Convolution,
    Copy,
    Depthwise,
    DepthwiseConv,
    Window,
)
from torch_separable.runtime.graph.lower_common import (
    CONVOLUTION_ARGUMENTS,
    CONVOLUTION_DEFAULTS,
    Unsupported,
    arguments,
    blocked,
    pair,
)

if TYPE_CHECKING:
    from torch_separable.runtime.graph.lower import Lowering

aten = torch.ops.aten


def convolution_handler(lowering: Lowering, node: fx.Node) -> None:
    """``conv2d``: dense, grouped, or depthwise."""
    given = arguments(node, CONVOLUTION_ARGUMENTS, CONVOLUTION_DEFAULTS)
    padded, before = lowering.padded.get(getattr(given["input"], "name", ""), (None, (0, 0), None))[:2]
    source, weight = padded or lowering.value(given["input"]), lowering.constant(given["weight"])
    bias = torch.zeros(weight.shape[0]) if given["bias"] is None else lowering.constant(given["bias"])
    kernel, dilation, padding = pair(weight.shape[2:]), pair(given["dilation"]), given["padding"]
    if isinstance(padding, str):
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)] if padding == "same" else [0, 0]
        padding = [n // 2 for n in total]  # an odd remainder goes below and to the right: the output size implies it
    top, left = pair(padding)
    window = Window(kernel, pair(given["stride"]), (top + before[0], left + before[1]), dilation)
    groups, outputs, inputs = given["groups"], weight.shape[0], weight.shape[1] * given["groups"]
    blocks_in, blocks_out = lowering.blocks.get(source, 1), lowering.blocks.get(node.name, 1)
    if groups == 1:
        weight = blocked(blocked(weight, blocks_out, 0), blocks_in, 1)
        bias = blocked(bias, blocks_out, 0)
        lowering.nodes.append(Convolution(node.name, source, node.name, weight, bias, window))
    elif groups == inputs and outputs // inputs == blocks_out:
        multiplier = blocks_out
        filters = weight.flatten(1).view(inputs, multiplier, -1).permute(1, 2, 0)
        depthwise = Depthwise(filters, bias.view(inputs, multiplier).T, window)
        lowering.nodes.append(DepthwiseConv(node.name, source, node.name, depthwise))
    elif groups == outputs and inputs // outputs == blocks_in:
        filters = weight.flatten(2).permute(1, 2, 0)
        depthwise = Depthwise(filters, bias[None], window)
        lowering.nodes.append(DepthwiseConv(node.name, source, node.name, depthwise, summed=True))
    elif blocks_in == blocks_out == 1:
        lowering.nodes.append(Convolution(node.name, source, node.name, weight, bias, window, groups=groups))
    else:
        raise Unsupported(f"a grouped convolution ({groups} groups) within a separable one")


def batch_norm_handler(lowering: Lowering, node: fx.Node) -> None:
    """``batch_norm`` in evaluation mode: a scale and a shift per channel."""
    names = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn")
    given = arguments(node, names, {})
    if given["training"]:
        raise Unsupported("batch norm in training mode")
    source = lowering.value(given["input"])
    mean, variance = lowering.constant(given["running_mean"]), lowering.constant(given["running_var"])
    scale = (variance.double() + given["eps"]).rsqrt()
    if given["weight"] is not None:
        scale = scale * lowering.constant(given["weight"]).double()
    shift = -mean.double() * scale
    if given["bias"] is not None:
        shift = shift + lowering.constant(given["bias"]).double()
    # A pointwise depthwise convolution, which fuse.py folds into a convolution before it.
    blocks = lowering.blocks.get(node.name, 1)
    scale, shift = (blocked(values, blocks, 0).float() for values in (scale, shift))
    depthwise = Depthwise(scale.view(1, 1, -1), shift.view(1, -1), Window())
    lowering.nodes.append(DepthwiseConv(node.name, source, node.name, depthwise))


def linear_handler(lowering: Lowering, node: fx.Node) -> None:
    """``linear`` on vectors or tokens: a pointwise convolution."""
    given = arguments(node, ("input", "weight", "bias"), {"bias": None})
    weight = lowering.constant(given["weight"])
    bias = torch.zeros(weight.shape[0]) if given["bias"] is None else lowering.constant(given["bias"])
    add_linear(lowering, node, given["input"], weight, bias)


def add_linear(lowering: Lowering, node: fx.Node, operand: Any, weight: Tensor, bias: Tensor) -> None:
    """Append the product of vectors or tokens with ``weight`` (M, C), plus ``bias`` (M,)."""
    source, layout = lowering.operand(operand)
    if layout not in ("NC", "NLC", "NHWC"):
        layout = "NHWC" if layout == "NCHW" else "NLC"
        source = lowering.in_layout(operand, layout)
    n, _, h, w = lowering.shapes[source]
    lowering.record(node.name, (n, weight.shape[0], h, w), layout)
    lowering.nodes.append(Convolution(node.name, source, node.name, weight[:, :, None, None], bias, Window()))


def pad_handler(lowering: Lowering, node: fx.Node) -> None:
    """``pad`` with zeros: part of the following convolution's padding where only convolutions read it."""
    given = arguments(node, ("input", "pad", "mode", "value"), {"mode": "constant", "value": 0})
    source, amounts = lowering.value(given["input"]), [*given["pad"], 0, 0, 0, 0, 0, 0][:6]
    of_images = source not in lowering.vectors and not any(given["pad"][6:])
    if not of_images or given["mode"] != "constant" or given["value"] or min(amounts) < 0:
        lower_resample.pad_handler(lowering, node)
        return
    left, _, top, _, before, _ = amounts
    if not any(amounts[:4]):
        lowering.nodes.append(Copy(node.name, source, node.name, before=before))
    elif not any(amounts[4:]) and all(_has_larger_window(user, node, lowering.constants) for user in node.users):
        # Convolution kernels read zeros outside of the image, so the padding becomes part of their windows.
        call = lowering.torch_call(node, "its reader runs in PyTorch")
        lowering.padded[node.name] = source, (top, left), call
    else:
        lower_resample.pad_handler(lowering, node)


def _has_larger_window(user: fx.Node, node: fx.Node, constants: Mapping[str, Any]) -> bool:
    """Whether ``user`` is a convolution of ``node`` by a kernel of more than one pixel."""
    weight = constants.get(getattr(user.args[1], "name", "")) if user.target is aten.conv2d.default else None
    return weight is not None and user.args[0] is node and tuple(weight.shape[2:]) != (1, 1)


HANDLERS: dict[Any, Callable[[Lowering, fx.Node], None]] = {
    aten.conv2d.default: convolution_handler,
    aten.conv2d.padding: convolution_handler,
    aten.batch_norm.default: batch_norm_handler,
    aten.linear.default: linear_handler,
    aten.pad.default: pad_handler,
}
