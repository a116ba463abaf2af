"""Sums, products and their kin: of two values, of a value and a weight, of a value and a number.

What multiplies and shifts channels by constants is a pointwise depthwise convolution, which `fuse` folds into the
weights before it. Everything else is one elementwise kernel that broadcasts either operand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from torch_separable.runtime.graph.arrangement import LAYOUTS
from torch_separable.runtime.graph.ir import Add, Binary, BinaryOperator, Depthwise, DepthwiseConv, Scale, Window
from torch_separable.runtime.graph.lower_common import Unsupported

if TYPE_CHECKING:
    from torch_separable.runtime.graph.lower import Lowering

aten = torch.ops.aten
_B = BinaryOperator


def binary_handler(kind: BinaryOperator) -> Callable[[Lowering, fx.Node], None]:
    """Read an operator of two operands, of which one may be a number or a weight."""

    def handler(lowering: Lowering, node: fx.Node) -> None:
        if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("rounding_mode") is not None:
            raise Unsupported("a sum with a factor, or a rounded quotient")
        first, second = node.args[0], node.args[1]
        if kind is _B.SUBTRACT and node.target in _REVERSED:
            first, second = second, first
        if _is_activation(lowering, first) and _is_activation(lowering, second):
            _of_values(lowering, node, kind, first, second)
        elif _is_activation(lowering, first):
            _with_constant(lowering, node, kind, first, _constant(lowering, second))
        elif kind in (_B.ADD, _B.MULTIPLY, _B.MAXIMUM, _B.MINIMUM):
            _with_constant(lowering, node, kind, second, _constant(lowering, first))
        elif kind is _B.SUBTRACT:
            _affine(lowering, node, second, torch.tensor(-1.0), _constant(lowering, first))
        else:
            raise Unsupported("a number divided by a tensor")

    return handler


def negative_handler(lowering: Lowering, node: fx.Node) -> None:
    """``neg``."""
    _affine(lowering, node, node.args[0], torch.tensor(-1.0), torch.tensor(0.0))


def square_handler(lowering: Lowering, node: fx.Node) -> None:
    """``pow`` with the exponent 2, and ``square``."""
    if len(node.args) > 1 and node.args[1] != 2:
        raise Unsupported(f"a power of {node.args[1]}")
    _of_values(lowering, node, _B.MULTIPLY, node.args[0], node.args[0])


def prelu_handler(lowering: Lowering, node: fx.Node) -> None:
    """``prelu``: a slope for each channel, or one for all (He et al., arXiv 1502.01852)."""
    (source, layout), slope = lowering.operand(node.args[0]), lowering.constant(node.args[1])
    if layout not in ("NCHW", "NC", "NCL"):
        raise Unsupported("prelu whose channels are not the second dimension")
    lowering.record(node.name, lowering.shapes[source], layout)
    constant = slope.reshape(1, -1, 1, 1)
    lowering.nodes.append(Binary(node.name, source, None, node.name, _B.PRELU, constant))


def _is_activation(lowering: Lowering, operand: Any) -> bool:
    return isinstance(operand, fx.Node) and operand.name not in lowering.constants


def _constant(lowering: Lowering, operand: Any) -> Tensor:
    if isinstance(operand, bool) or not isinstance(operand, int | float | fx.Node):
        raise Unsupported("an operand is neither a tensor nor a number")
    if isinstance(operand, fx.Node):
        return lowering.constant(operand)
    return torch.tensor(float(operand), dtype=torch.float32)


def _of_values(lowering: Lowering, node: fx.Node, kind: BinaryOperator, first: Any, second: Any) -> None:
    one, layout = lowering.operand(first)
    result = tuple(node.meta["val"].shape)
    if lowering.operand(second)[1] != layout and tuple(second.meta["val"].shape) == result:
        # The layout of the larger operand is kept; of two alike, the one that costs no copy.
        layout = layout if tuple(first.meta["val"].shape) == result else lowering.operand(second)[1]
    one, other = lowering.in_layout(first, layout), lowering.in_layout(second, layout)
    if lowering.blocks.get(one, 1) > 1 or lowering.blocks.get(other, 1) > 1:
        raise Unsupported("a sum within a separable layer")
    a, b = lowering.shapes[one], lowering.shapes[other]
    if a != b and layout in ("NLC", "NCL"):
        one, other = lowering.as_one_row(one), lowering.as_one_row(other)
        a, b = lowering.shapes[one], lowering.shapes[other]
    shape = tuple(max(x, y) if min(x, y) else 0 for x, y in zip(a, b, strict=True))
    if any(x not in (size, 1) or y not in (size, 1) for x, y, size in zip(a, b, shape, strict=True)):
        raise Unsupported("operands that cannot be broadcast")
    lowering.record(node.name, shape, layout)
    if kind is _B.ADD and a == b:
        lowering.nodes.append(Add(node.name, one, other, node.name))
        return
    if kind is _B.MULTIPLY:
        if a[2:] == (1, 1) and b[2:] != (1, 1):
            one, other, a, b = other, one, b, a
        if a[:2] == b[:2] and b[2:] == (1, 1):
            lowering.nodes.append(Scale(node.name, one, other, node.name))
            return
    lowering.nodes.append(Binary(node.name, one, other, node.name, kind))


def stored_constant(constant: Tensor, layout: str) -> Tensor:
    """A constant that broadcasts to the network's dimensions, as (N, C, H, W)."""
    dimensions = len(LAYOUTS[layout][1]) + 2
    if constant.dim() > dimensions:
        raise Unsupported("a constant of more dimensions than the tensor")
    full = constant.reshape((1,) * (dimensions - constant.dim()) + tuple(constant.shape))
    batch, pixels, channels = LAYOUTS[layout]
    order = [batch or 0, channels, *pixels]
    stored = full.permute(order)
    return stored.reshape(*stored.shape[:2], *(1,) * (2 - len(pixels)), *stored.shape[2:])


def _with_constant(lowering: Lowering, node: fx.Node, kind: BinaryOperator, source: Any, constant: Tensor) -> None:
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    match kind:
        case _B.ADD:
            _affine(lowering, node, source, one, constant)
        case _B.SUBTRACT:
            _affine(lowering, node, source, one, -constant)
        case _B.MULTIPLY:
            _affine(lowering, node, source, constant, zero)
        case _:  # a quotient is not the product with the reciprocal, to the last bit
            _binary_with(lowering, node, kind, source, constant)


def _affine(lowering: Lowering, node: fx.Node, source: Any, scale: Tensor, shift: Tensor) -> None:
    """``source · scale + shift``: folded into a convolution before it where both are constant over all pixels."""
    value, layout = lowering.operand(source)
    n, c, h, w = lowering.shapes[value]
    if tuple(node.meta["val"].shape) != tuple(source.meta["val"].shape):
        raise Unsupported("a sum that broadcasts the tensor to the shape of a weight")
    factors, shifts = stored_constant(scale, layout), stored_constant(shift, layout)
    per_channel = all(t.shape[0] == t.shape[2] == t.shape[3] == 1 for t in (factors, shifts))
    if lowering.blocks.get(value, 1) > 1:
        raise Unsupported("a sum within a separable layer")
    if not per_channel:
        simple = bool((factors == 1).all())
        if not simple and bool((shifts != 0).any()):
            raise Unsupported("a product and a sum with constants of every pixel")
        kind, constant = (_B.ADD, shifts) if simple else (_B.MULTIPLY, factors)
        lowering.record(node.name, (n, c, h, w), layout)
        lowering.nodes.append(Binary(node.name, value, None, node.name, kind, constant))
        return
    lowering.record(node.name, (n, c, h, w), layout)
    weight = factors.reshape(-1).expand(c).reshape(1, 1, c).clone()
    depthwise = Depthwise(weight, shifts.reshape(-1).expand(c).reshape(1, c).clone(), Window())
    lowering.nodes.append(DepthwiseConv(node.name, value, node.name, depthwise))


def _binary_with(lowering: Lowering, node: fx.Node, kind: BinaryOperator, source: Any, constant: Tensor) -> None:
    value, layout = lowering.operand(source)
    if tuple(node.meta["val"].shape) != tuple(source.meta["val"].shape):
        raise Unsupported("a product that broadcasts the tensor to the shape of a weight")
    if layout in ("NLC", "NCL"):
        value = lowering.as_one_row(value)
    lowering.record(node.name, lowering.shapes[value], layout)
    lowering.nodes.append(Binary(node.name, value, None, node.name, kind, stored_constant(constant, layout)))


_REVERSED = {aten.rsub.Scalar, aten.rsub.Tensor}
HANDLERS: dict[Any, Callable[[Lowering, fx.Node], None]] = {}
for _names, _kind in (
    (("add.Tensor", "add_.Tensor", "add.Scalar"), _B.ADD),
    (("sub.Tensor", "sub_.Tensor", "sub.Scalar", "rsub.Scalar", "rsub.Tensor"), _B.SUBTRACT),
    (("mul.Tensor", "mul_.Tensor", "mul.Scalar"), _B.MULTIPLY),
    (("div.Tensor", "div_.Tensor", "div.Scalar"), _B.DIVIDE),
    (("maximum.default",), _B.MAXIMUM),
    (("minimum.default",), _B.MINIMUM),
):
    for _name in _names:
        _packet, _, _overload = _name.partition(".")
        HANDLERS[getattr(getattr(aten, _packet), _overload)] = binary_handler(_kind)
HANDLERS[aten.neg.default] = negative_handler
HANDLERS[aten.pow.Tensor_Scalar] = HANDLERS[aten.square.default] = square_handler
HANDLERS[aten.prelu.default] = prelu_handler
