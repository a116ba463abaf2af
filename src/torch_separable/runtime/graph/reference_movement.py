"""What the nodes compute that move, resample, normalize or combine values, in plain PyTorch; used by `reference`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_separable.runtime.graph.ir import (
    Binary,
    BinaryOperator,
    Concat,
    MatrixProduct,
    Normalize,
    Program,
    Rearrange,
    Rename,
    Resample,
    Slice,
    Softmax,
    Taps,
)

Movement = Binary | Concat | Normalize | Rearrange | Rename | Resample | Slice | Softmax | MatrixProduct
_OPERATORS: dict[BinaryOperator, Callable[[Tensor, Tensor], Tensor]] = {
    BinaryOperator.ADD: torch.add,
    BinaryOperator.SUBTRACT: torch.sub,
    BinaryOperator.MULTIPLY: torch.mul,
    BinaryOperator.DIVIDE: torch.div,
    BinaryOperator.MAXIMUM: torch.maximum,
    BinaryOperator.MINIMUM: torch.minimum,
    BinaryOperator.PRELU: lambda a, b: torch.where(a > 0, a, a * b),
}


def seen_as(value: Tensor, layout: str) -> Tensor:
    """A stored value (N, C, H, W) as the network sees it in a layout."""
    match layout:
        case "NC":
            return value.flatten(1)
        case "NHWC":
            return value.permute(0, 2, 3, 1)
        case "NLC":
            return value.flatten(2).transpose(1, 2)
        case "NCL":
            return value.flatten(2)
        case _:
            return value


def stored_from(value: Tensor, layout: str, shape: tuple[int, int, int, int]) -> Tensor:
    """A tensor that the network sees in a layout, as a stored value (N, C, H, W)."""
    if layout == "NHWC":
        return value.permute(0, 3, 1, 2)
    return (value.transpose(1, 2) if layout == "NLC" else value).reshape(shape)


def moved(node: Movement, image: Callable[[str], Tensor], program: Program) -> Tensor:
    """The result of a node, before its activation, from stored values (N, C, H, W)."""
    match node:
        case Binary():
            other = image(node.second) if node.second is not None else node.constant
            assert other is not None
            if node.operator is BinaryOperator.SECOND:
                return other.expand(program.shapes[node.output])
            return _OPERATORS[node.operator](image(node.input), other)
        case Concat():
            shape = program.shapes[node.output]
            parts = [image(name) for name in node.inputs]
            return torch.cat(parts, node.axis).reshape(shape)
        case Slice():
            value = image(node.input)
            size = program.shapes[node.output][node.axis]
            places = torch.arange(size, device=value.device) * node.step + node.start
            return value.index_select(node.axis, places)
        case Rename():
            n, c, h, w = program.shapes[node.output]
            return image(node.input).permute(0, 2, 3, 1).reshape(n, h, w, c).permute(0, 3, 1, 2)
        case Rearrange():
            return _rearranged(node, image(node.input), program.shapes[node.output])
        case Resample():
            return _resampled(node, image(node.input))
        case Normalize():
            return _normalized(node, image(node.input))
        case Softmax():
            return image(node.input).softmax(1)
        case MatrixProduct():
            first, second = (image(name).permute(0, 2, 3, 1) for name in (node.input, node.second))
            product = first @ (second.transpose(-1, -2) if node.transposed else second)
            return (product * node.scale).permute(0, 3, 1, 2)


def _rearranged(node: Rearrange, value: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    before = [axis for axes in node.input_axes for axis in axes]
    after = [axis for axes in node.output_axes for axis in axes]
    split = value.reshape([node.sizes[axis] for axis in before])
    return split.permute([before.index(axis) for axis in after]).reshape(shape)


def _resampled(node: Resample, value: Tensor) -> Tensor:
    def taken(tensor: Tensor, taps: Taps, tap: int, dimension: int) -> Tensor:
        index = taps.indices[:, tap].long()
        picked = tensor.index_select(dimension, index.clamp(min=0))
        outside = (index < 0).view([-1 if d == dimension else 1 for d in range(4)])
        return torch.where(outside, node.fill, picked)

    def along(tensor: Tensor, taps: Taps, dimension: int) -> Tensor:
        if not node.blends:
            return taken(tensor, taps, 0, dimension)
        shape = [-1 if d == dimension else 1 for d in range(4)]
        first, second = (taken(tensor, taps, tap, dimension) * taps.weights[:, tap].view(shape) for tap in (0, 1))
        return first + second

    return along(along(value, node.columns, 3), node.rows, 2)


def _normalized(node: Normalize, value: Tensor) -> Tensor:
    channels = value.shape[1]
    if node.groups is not None:
        return F.group_norm(value, node.groups, node.weight, node.bias, node.epsilon)
    pixels = value.permute(0, 2, 3, 1)
    return F.layer_norm(pixels, (channels,), node.weight, node.bias, node.epsilon).permute(0, 3, 1, 2)
