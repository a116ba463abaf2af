"""Products of activations, and attention, which is two of them around a softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from torch_separable.runtime.graph.arrangement import Arrangement
from torch_separable.runtime.graph.ir import Binary, BinaryOperator, MatrixProduct, Softmax
from torch_separable.runtime.graph.lower_common import Unsupported, arguments
from torch_separable.runtime.graph.lower_convolution import add_linear
from torch_separable.runtime.graph.lower_elementwise import stored_constant

if TYPE_CHECKING:
    from torch_separable.runtime.graph.lower import Lowering

aten = torch.ops.aten

# Matrices (M, K) of a stack (B, H, M, K) or (B, M, K): each is a row of pixels, and its columns are channels.
_LAYOUTS = {4: "NHWC", 3: "NLC"}


def matmul_handler(lowering: Lowering, node: fx.Node) -> None:
    """``matmul`` and ``bmm`` of two activations, or of an activation and a matrix of weights."""
    first: Any = node.args[0]
    second: Any = node.args[1]
    if second.name in lowering.constants:
        weight = lowering.constant(second)
        if weight.dim() != 2:
            raise Unsupported("a product with a stack of weights")
        add_linear(lowering, node, first, weight.T.contiguous(), torch.zeros(weight.shape[1]))
        return
    layout = _layout_of_product(first, second)
    one, (other, transposed) = _matrices(lowering, first, layout), _second(lowering, second, layout)
    _add_product(lowering, node.name, one, other, layout, transposed)


def attention_handler(lowering: Lowering, node: fx.Node) -> None:
    """``scaled_dot_product_attention`` (Vaswani et al., arXiv 1706.03762): softmax(scale · Q @ K.T + mask) @ V."""
    names = ("query", "key", "value", "mask", "dropout", "causal", "scale", "gqa")
    given = arguments(node, names, {"mask": None, "dropout": 0.0, "causal": False, "scale": None, "gqa": False})
    query, key, value = given["query"], given["key"], given["value"]
    if given["dropout"] or given["gqa"] or node.kwargs.keys() - {"scale"}:
        raise Unsupported("attention with dropout, shared heads, or a mask given by name")
    layout = _layout_of_product(query, value)
    rows, columns = query.meta["val"].shape[-2], key.meta["val"].shape[-2]
    mask = _mask(lowering, given["mask"], given["causal"], rows, columns)
    q, k, v = (_matrices(lowering, operand, layout) for operand in (query, key, value))
    scale = query.meta["val"].shape[-1] ** -0.5 if given["scale"] is None else float(given["scale"])
    scores, weights = f"{node.name}.scores", f"{node.name}.weights"
    _add_product(lowering, scores, q, k, layout, True, scale)
    shape = lowering.shapes[scores]
    if mask is not None:
        masked = f"{node.name}.masked"
        lowering.record(masked, shape, layout)
        constant = stored_constant(mask, layout)
        lowering.nodes.append(Binary(masked, scores, None, masked, BinaryOperator.ADD, constant))
        scores = masked
    lowering.record(weights, shape, layout)
    lowering.nodes.append(Softmax(weights, scores, weights))
    _add_product(lowering, node.name, weights, v, layout, False)


def _layout_of_product(first: Any, second: Any) -> str:
    """Layout of the operands of a product, whose stacks must have the same shape."""
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
        raise Unsupported("an operand is a number")
    one, other = first.meta["val"].shape, second.meta["val"].shape
    if len(one) not in _LAYOUTS or one[:-2] != other[:-2]:
        raise Unsupported("a product of vectors, or of stacks that are broadcast")
    if 0 in (*one, *other):
        raise Unsupported("a product of empty matrices")
    return _LAYOUTS[len(one)]


def _matrices(lowering: Lowering, operand: Any, layout: str) -> str:
    name = lowering.in_layout(operand, layout)
    return lowering.as_one_row(name) if layout == "NLC" else name


def _second(lowering: Lowering, operand: fx.Node, layout: str) -> tuple[str, bool]:
    """Name of the second operand, and whether it is stored transposed, where its rows are stored channels."""
    seen = lowering.arrangement(operand)
    order = list(range(len(seen.logical)))
    order[-2:] = reversed(order[-2:])
    swapped: Arrangement = seen.permuted(order)
    rows, channels = seen.logical[-2], seen.storage[1]
    if not rows or not channels or rows[-1] != channels[-1]:
        return _matrices(lowering, operand, layout), False
    name = lowering.materialize(swapped, layout, f"{operand.name}.transposed")
    return (lowering.as_one_row(name) if layout == "NLC" else name), True


def _add_product(
    lowering: Lowering, name: str, first: str, second: str, layout: str, transposed: bool, scale: float = 1.0
) -> None:
    (n, _, h, w), other = lowering.shapes[first], lowering.shapes[second]
    lowering.record(name, (n, other[3] if transposed else other[1], h, w), layout)
    lowering.nodes.append(MatrixProduct(name, first, second, name, transposed, scale))


def _mask(lowering: Lowering, mask: Any, causal: bool, rows: int, columns: int) -> Tensor | None:
    """The constant that is added to the scores: 0, or minus infinity where a mask of booleans is False."""
    if mask is None and not causal:
        return None
    if mask is None:
        allowed: Tensor = torch.ones(rows, columns).tril().bool()
    else:
        found: Any = lowering.constants.get(getattr(mask, "name", ""))
        if not isinstance(found, Tensor):
            raise Unsupported("attention with a mask that is computed")
        if found.dtype == torch.float32:
            return found.detach()
        if found.dtype != torch.bool or not bool(found.any(-1).all()):
            raise Unsupported("attention with a mask that leaves a row nothing, or is neither float32 nor bool")
        allowed = found
    return torch.zeros(allowed.shape).masked_fill(~allowed, -math.inf)


HANDLERS: dict[Any, Callable[[Lowering, fx.Node], None]] = {
    aten.matmul.default: matmul_handler,
    aten.bmm.default: matmul_handler,
    aten.scaled_dot_product_attention.default: attention_handler,
}
