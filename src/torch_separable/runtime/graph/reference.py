"""A `Program` run by plain PyTorch: what kernels are compared with, and what quantized networks compute in eager mode.

Integers are exact: convolutions run in floating point on integers, in parts so small that every partial sum is one
that the type represents. Everything after the sum is the float32 arithmetic that `ir` states, one rounded operation
after the other, so results are the same on every processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map, tree_unflatten

from torch_separable.runtime.graph.ir import (
    IDENTITY,
    Activate,
    Activation,
    ActivationKind,
    Add,
    Convolution,
    Copy,
    Depthwise,
    DepthwiseConv,
    Dequantize,
    LookUp,
    Mean,
    Node,
    Pool,
    Program,
    Quantization,
    Quantize,
    QuantizedAdd,
    QuantizedConcat,
    QuantizedConvolution,
    QuantizedScale,
    Reference,
    Scale,
    Shape,
    TorchCall,
    Window,
)
from torch_separable.runtime.graph.reference_movement import moved, seen_as, stored_from

# The largest product of u8 - zero point (-255 to 255) and s8 (-128 to 127).
_LARGEST_PRODUCT = 255 * 128
# Sums of this many products are exact in float32, which holds all integers up to 2^24.
_EXACT_IN_FLOAT32 = 2**24 // _LARGEST_PRODUCT


def run_program(program: Program, x: Tensor, observe: Callable[[Node, Any], None] | None = None) -> Any:
    """Run ``program`` on ``x`` (N, C, H, W) and return what the network returns.

    Args:
        program: of any nodes, float and quantized.
        x: float32, of the shape that the program was made for.
        observe: called with every node and its result, as it is stored: uint8 for values in ``program.quantized``.

    Example:
        >>> from torch_separable.runtime.graph.lower import lower
        >>> model, x = torch.nn.Conv2d(3, 8, 3), torch.randn(1, 3, 8, 8)
        >>> torch.allclose(run_program(lower(model, x), x), model(x), atol=1e-5)
        True
    """
    values: dict[str, Tensor] = {program.input: x}
    with torch.no_grad(), _plain_convolutions():
        for node in program.nodes:
            values[node.output] = result = _Run(program, values).result(node)
            if observe is not None:
                observe(node, result)
    layouts = program.output_layouts or ("",) * len(program.outputs)
    results = [
        _as_seen(program, name, values[name], layout) for name, layout in zip(program.outputs, layouts, strict=True)
    ]
    structure = program.structure
    return results[0] if structure is None or structure.is_leaf() else tree_unflatten(results, structure)


@contextmanager
def _plain_convolutions() -> Iterator[None]:
    """Keep NNPACK out: its Winograd transforms do not give exact sums."""
    with torch.backends.nnpack.flags(enabled=False):
        yield


def _as_seen(program: Program, name: str, value: Tensor, layout: str) -> Tensor:
    """The value in the shape that PyTorch expects."""
    if name not in program.shapes or not isinstance(value, Tensor) or value.dim() != 4:
        return value
    return seen_as(value, layout or ("NC" if name in program.vectors else "NCHW"))


class _Run:
    """Results of nodes, from the values before them."""

    def __init__(self, program: Program, values: Mapping[str, Tensor]) -> None:
        self.program, self.values = program, values

    def quantization(self, name: str) -> Quantization:
        return self.program.quantized[name]

    def image(self, name: str) -> Tensor:
        """A value as images (N, C, H, W), as it is stored."""
        value: Tensor = self.values[name]
        return value[:, :, None, None] if value.dim() == 2 else value

    def centred(self, name: str) -> Tensor:
        """A uint8 value less its zero point, int32."""
        return self.image(name).int() - self.quantization(name).zero_point

    def result(self, node: Node) -> Any:
        match node:
            case TorchCall():
                return self._torch_call(node)
            case Convolution() | DepthwiseConv():
                return self._float_convolution(node)
            case QuantizedConvolution():
                return self._convolution(node)
            case Quantize():
                return quantize(self.image(node.input), self.quantization(node.output), node.low, node.high)
            case Dequantize():
                return dequantize(self.image(node.input), self.quantization(node.input))
            case QuantizedAdd():
                one = self.centred(node.input).float() * _float32(node.multiplier)
                other = self.centred(node.residual).float() * _float32(node.residual_multiplier)
                return self._rounded(one + other, node)
            case QuantizedScale():
                product = self.centred(node.input) * self.centred(node.residual)
                return self._rounded(product.float() * _float32(node.multiplier), node)
            case LookUp():
                return node.table[self.image(node.input).int()]
            case QuantizedConcat():
                return torch.cat([self.image(name) for name in node.inputs], 1)
            case Pool() | Mean():
                return self._pool(node)
            case Copy():
                return self._copy(node)
            case Add():
                return activate(self.image(node.input) + self.image(node.residual), node.activation)
            case Scale():
                return activate(self.image(node.input) * self.image(node.residual), node.activation)
            case Activate():
                return activate(self.image(node.input), node.activation)
            case _:
                return activate(moved(node, self.image, self.program), getattr(node, "activation", IDENTITY))

    def _rounded(self, v: Tensor, node: QuantizedConvolution | QuantizedAdd | QuantizedScale) -> Tensor:
        return _stored(v, node.low, node.high, self.quantization(node.output))

    def _convolution(self, node: QuantizedConvolution) -> Tensor:
        x, first, shape = self.centred(node.input), node.depthwise, self.program.shapes[node.output]
        if first is not None:
            assert node.between is not None, f"{node.name}: the quantization of the depthwise result is missing"
            v = self._scaled(_ordered(x, self.blocks(node.input), False), first, shape)
            stored = _stored(v, first.low, first.high, node.between)
            multiplier = first.weight.shape[0] // first.groups
            x = _ordered(stored.int() - node.between.zero_point, multiplier, True)
        elif node.groups > 1:
            x = _ordered(x, self.blocks(node.input), False)
        v = self._scaled(x, node, shape)
        if node.groups > 1:
            v = _ordered(v, self.blocks(node.output), True)
        if node.residual is not None:
            v = v + self.centred(node.residual).float() * _float32(node.residual_multiplier)
        if node.output in self.program.quantized:
            return self._rounded(v, node)
        return v.clamp(node.low, node.high)

    def blocks(self, name: str) -> int:
        return self.program.blocks.get(name, 1)

    @staticmethod
    def _scaled(x: Tensor, node: QuantizedConvolution, shape: Shape) -> Tensor:
        """The convolution's sums times the multipliers plus the offsets, float32."""
        x = _fitted(x, node.window, (shape[2], shape[3]), 0)
        sums = exact_convolution(x, node.weight, replace(node.window, padding=(0, 0)), node.groups).float()
        return sums * node.multiplier[:, None, None] + node.offset[:, None, None]

    def _pool(self, node: Pool | Mean) -> Tensor:
        x = self.image(node.input)
        if node.output not in self.program.quantized:
            return activate(_float_pool(x, node, self.program.shapes[node.output]), node.activation)
        own, source = self.quantization(node.output), self.quantization(node.input)
        if isinstance(node, Pool) and node.maximum:
            assert own == source, f"{node.name}: a maximum keeps its input's scale and zero point"
            return _float_pool(x.float(), node, self.program.shapes[node.output]).to(torch.uint8)
        integers = self.centred(node.input).double()
        if isinstance(node, Mean):
            sums, counts = integers.sum((2, 3), keepdim=True), torch.tensor(float(x.shape[2] * x.shape[3]))
        else:
            size = self.program.shapes[node.output][2:]
            counts = window_counts(node.window, (x.shape[2], x.shape[3]), (size[0], size[1]), node.count_padding)
            sums = _windows(integers, node.window, (size[0], size[1]), 0.0).sum(-1)
        multiplier = (source.scale / (own.scale * counts.double())).float()
        return _stored(sums.float() * multiplier, *own.bounds(node.activation), own)

    def _copy(self, node: Copy) -> Tensor:
        x = self.image(node.input)[:, :, :: node.stride[0], :: node.stride[1]]
        channels = self.program.shapes[node.output][1]
        zero = self.quantization(node.output).zero_point if node.output in self.program.quantized else 0
        return F.pad(x, (0, 0, 0, 0, node.before, channels - node.before - x.shape[1]), value=zero)

    def _float_convolution(self, node: Convolution | DepthwiseConv) -> Tensor:
        x = self.image(node.input)
        residual = None if node.residual is None else self.image(node.residual)
        if isinstance(node, DepthwiseConv):
            y = _filtered(x, node.depthwise, node.summed)
        else:
            if node.depthwise is not None:
                x = activate(_filtered(x, node.depthwise, False), node.depthwise.activation)
            y = _windowed(x, node.weight, node.window, node.groups, self.program.shapes[node.output])
            y = y + node.bias[:, None, None]
        return activate(y if residual is None else y + residual, node.activation)

    def _torch_call(self, node: TorchCall) -> Any:
        def argument(value: Any) -> Any:
            if not isinstance(value, Reference):
                return value
            found = self.values[value.value]
            # An operator in place is not to change what other nodes read.
            return (
                _as_seen(self.program, value.value, found, value.layout).clone() if isinstance(found, Tensor) else found
            )

        given = (node.args, dict(node.kwargs))
        args, kwargs = tree_map(argument, given, is_leaf=lambda leaf: isinstance(leaf, Reference))
        result = node.function(*args, **kwargs)
        shape = self.program.shapes.get(node.output)
        return result if shape is None else stored_from(result, node.layout, shape)


def quantize(x: Tensor, quantization: Quantization, low: int = 0, high: int = 255) -> Tensor:
    """Return float32 values as uint8, as ``quantized_decomposed.quantize_per_tensor`` does.

    Example:
        >>> quantize(torch.tensor([-1.0, 0.0, 0.25, 0.75, 1000.0]), Quantization(0.5, 2))
        tensor([  0,   2,   2,   4, 255], dtype=torch.uint8)
    """
    return ((x * _float32(1.0 / quantization.scale)).round() + quantization.zero_point).clamp(low, high).to(torch.uint8)


def dequantize(x: Tensor, quantization: Quantization) -> Tensor:
    """Return the float32 values that uint8 values stand for."""
    return (x.int() - quantization.zero_point).float() * _float32(quantization.scale)


def exact_convolution(x: Tensor, weight: Tensor, window: Window, groups: int = 1) -> Tensor:
    """Convolve integers exactly.

    Args:
        x: (N, C, H, W), -255 to 255.
        weight: int8 (M, C/groups, kernel height, kernel width).
        window: where; padding is 0.
        groups: as in PyTorch.

    Returns:
        The sums (N, M, H', W') as float64, which holds them exactly; in float32 where they are so few that it does.
    """
    shape = (window.stride, window.padding, window.dilation)
    taps = math.prod(weight.shape[2:])
    if weight[0].numel() <= _EXACT_IN_FLOAT32:
        return F.conv2d(x.float(), weight.float(), None, *shape, groups)
    if groups > 1 or taps > _EXACT_IN_FLOAT32:
        return F.conv2d(x.double(), weight.double(), None, *shape, groups)
    channels = _EXACT_IN_FLOAT32 // taps
    parts = zip(x.split(channels, 1), weight.split(channels, 1), strict=True)
    sums: Tensor = sum(F.conv2d(a.float(), b.float(), None, *shape).double() for a, b in parts)  # type: ignore[assignment]
    return sums


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply an activation by PyTorch's own operator."""
    kind = ActivationKind
    match activation.kind:
        case kind.CLAMP:
            return x if activation.is_identity else x.clamp(activation.alpha, activation.beta)
        case kind.LEAKY_RELU:
            return F.leaky_relu(x, activation.alpha)
        case kind.SILU:
            return F.silu(x)
        case kind.HARDSWISH:
            return F.hardswish(x)
        case kind.GELU:
            return F.gelu(x)
        case kind.GELU_TANH:
            return F.gelu(x, approximate="tanh")
        case kind.SIGMOID:
            return torch.sigmoid(x)
        case kind.HARDSIGMOID:
            return F.hardsigmoid(x)
        case kind.TANH:
            return torch.tanh(x)
        case kind.ELU:
            return F.elu(x, activation.alpha)
        case kind.SOFTPLUS:
            return F.softplus(x)
        case kind.MISH:
            return F.mish(x)
        case kind.EXP:
            return torch.exp(x)
        case kind.ABSOLUTE:
            return x.abs()
        case kind.SQUARE_ROOT:
            return x.sqrt()


def window_counts(window: Window, size: tuple[int, int], output: tuple[int, int], count_padding: bool) -> Tensor:
    """Pixels that each window of an average pooling divides by (H', W'), as PyTorch counts them.

    Windows that ``ceil_mode`` lets reach beyond the padding count only what lies within it.
    """

    def along(axis: int) -> Tensor:
        pad = window.padding[axis]
        begin = torch.arange(output[axis]) * window.stride[axis] - pad
        end = begin + window.kernel[axis]
        if count_padding:
            return end.clamp(max=size[axis] + pad) - begin
        return end.clamp(max=size[axis]) - begin.clamp(min=0)

    return along(0)[:, None] * along(1)


def _stored(v: Tensor, low: float, high: float, quantization: Quantization) -> Tensor:
    return (v.clamp(low, high).round() + quantization.zero_point).to(torch.uint8)


def _float32(value: float) -> Tensor:
    """A number rounded to float32 before it is used."""
    return torch.tensor(value, dtype=torch.float32)


def _ordered(x: Tensor, blocks: int, to_blocks: bool) -> Tensor:
    """Bring channels c · D + d to D blocks of c, or back."""
    if blocks == 1:
        return x
    split: Tensor = x.unflatten(1, (-1, blocks) if to_blocks else (blocks, -1))
    return split.transpose(1, 2).flatten(1, 2)


def _filtered(x: Tensor, depthwise: Depthwise, summed: bool) -> Tensor:
    """A depthwise convolution by weights (multiplier, taps, C) of blocks of channels."""
    multiplier, _, channels = depthwise.weight.shape
    window, filters = depthwise.window, depthwise.weight.unflatten(1, depthwise.window.kernel)
    shape = (window.stride, window.padding, window.dilation, channels)
    each = [
        F.conv2d(part, kernel.permute(2, 0, 1)[:, None], None, *shape)
        for part, kernel in zip(x.chunk(multiplier, 1) if summed else [x] * multiplier, filters, strict=True)
    ]
    joined: Tensor = sum(each[1:], each[0]) if summed else torch.cat(each, 1)
    return joined + depthwise.bias.reshape(-1, 1, 1)


def _windowed(x: Tensor, weight: Tensor, window: Window, groups: int, output: Shape) -> Tensor:
    """Convolve, where windows may reach beyond the padding at the far side, as "same" padding has them."""
    return F.conv2d(
        _fitted(x, window, (output[2], output[3]), 0.0), weight, None, window.stride, 0, window.dilation, groups
    )


def _fitted(x: Tensor, window: Window, output: tuple[int, int], value: float) -> Tensor:
    """Pad so that windows without padding give exactly ``output`` pixels."""
    (top, left), sizes = window.padding, x.shape[2:]
    below, right = (
        (o - 1) * s + d * (k - 1) + 1 - p - n
        for o, s, d, k, p, n in zip(
            output, window.stride, window.dilation, window.kernel, window.padding, sizes, strict=True
        )
    )
    return F.pad(x, (left, right, top, below), value=value)


def _windows(x: Tensor, window: Window, output: tuple[int, int], value: float) -> Tensor:
    """All windows: (N, C, H', W', entries)."""
    (kh, kw), (sh, sw), (dh, dw) = window.kernel, window.stride, window.dilation
    x = _fitted(x, window, output, value)
    h, w = (output[0] - 1) * sh + 1, (output[1] - 1) * sw + 1
    taps = [x[:, :, i * dh : i * dh + h : sh, j * dw : j * dw + w : sw] for i in range(kh) for j in range(kw)]
    return torch.stack(taps, -1)


def _float_pool(x: Tensor, node: Pool | Mean, shape: Shape) -> Tensor:
    if isinstance(node, Mean):
        return x.mean((2, 3), keepdim=True)
    output = (shape[2], shape[3])
    if node.maximum:
        return _windows(x, node.window, output, -math.inf).amax(-1)
    counts = window_counts(node.window, (x.shape[2], x.shape[3]), output, node.count_padding)
    return _windows(x, node.window, output, 0.0).sum(-1) / counts
