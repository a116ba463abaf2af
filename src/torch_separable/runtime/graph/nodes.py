"""Nodes of float32 values: typed operators that hold their weights, with batch norms folded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor

Shape = tuple[int, int, int, int]
Pair = tuple[int, int]


class ActivationKind(IntEnum):
    """Elementwise functions, numbered as ``ts_activation`` in the kernel library."""

    CLAMP = 0
    LEAKY_RELU = 1
    SILU = 2
    HARDSWISH = 3
    GELU = 4
    GELU_TANH = 5
    SIGMOID = 6
    HARDSIGMOID = 7
    TANH = 8
    ELU = 9
    SOFTPLUS = 10
    MISH = 11
    EXP = 12
    ABSOLUTE = 13
    SQUARE_ROOT = 14


@dataclass(frozen=True)
class Activation:
    """An elementwise function; ``alpha`` and ``beta`` are the bounds of a clamp (identity, ReLU, ReLU6)."""

    kind: ActivationKind = ActivationKind.CLAMP
    alpha: float = -math.inf
    beta: float = math.inf

    @property
    def is_identity(self) -> bool:
        """Whether it is the identity."""
        return self == IDENTITY

    def __str__(self) -> str:
        if self.kind is not ActivationKind.CLAMP:
            return self.kind.name.lower()
        if self.is_identity:
            return ""
        return {(0.0, math.inf): "relu", (0.0, 6.0): "relu6"}.get((self.alpha, self.beta), "clamp")


IDENTITY = Activation()
RELU = Activation(alpha=0.0)


@dataclass(frozen=True)
class Window:
    """Kernel size, stride, padding and dilation of a convolution or pooling, each as (vertical, horizontal)."""

    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    @property
    def is_pointwise(self) -> bool:
        """Whether each output pixel depends on the input pixel at the same position only."""
        return self == Window()


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution with ``multiplier`` kernels per channel.

    Attributes:
        weight: (multiplier, kernel entries, C).
        bias: (multiplier, C).
        window: kernel size, stride, padding and dilation.
        activation: applied to the result.
    """

    weight: Tensor
    bias: Tensor
    window: Window
    activation: Activation = IDENTITY


@dataclass(frozen=True)
class Convolution:
    """A dense or pointwise convolution, a linear layer, or (with ``depthwise``) a depthwise separable convolution.

    Attributes:
        weight: (M, C, kernel height, kernel width); with ``depthwise`` (M, multiplier · C, 1, 1), multiplier outermost.
        bias: (M,).
        window: window of the dense kernel; with ``depthwise`` that of a pointwise one.
        residual: a value that is added before the activation.
        groups: groups of the convolution; with several, the weight is (M, C/groups, ...).
    """

    name: str
    input: str
    output: str
    weight: Tensor
    bias: Tensor
    window: Window
    activation: Activation = IDENTITY
    residual: str | None = None
    depthwise: Depthwise | None = None
    groups: int = 1


@dataclass(frozen=True)
class DepthwiseConv:
    """A depthwise convolution that is not fused with a pointwise one.

    Attributes:
        depthwise: weights and window; the activation is this node's own.
        summed: False: ``multiplier`` outputs for each channel, in blocks, multiplier outermost. True: the input is
            ``multiplier`` blocks of channels, which are filtered and summed (the depthwise part of a pointwise-first
            layer).
    """

    name: str
    input: str
    output: str
    depthwise: Depthwise
    summed: bool = False
    residual: str | None = None

    @property
    def activation(self) -> Activation:
        """The activation of the result."""
        return self.depthwise.activation


@dataclass(frozen=True)
class Pool:
    """Max or average pooling."""

    name: str
    input: str
    output: str
    window: Window
    maximum: bool
    count_padding: bool = True
    activation: Activation = IDENTITY


@dataclass(frozen=True)
class Mean:
    """Global average pooling: the mean over all pixels of each image."""

    name: str
    input: str
    output: str
    activation: Activation = IDENTITY


@dataclass(frozen=True)
class Add:
    """Sum of two values of the same shape."""

    name: str
    input: str
    residual: str
    output: str
    activation: Activation = IDENTITY


@dataclass(frozen=True)
class Scale:
    """Product of a value with a factor per image and channel (N, C, 1, 1), as in squeeze-and-excitation."""

    name: str
    input: str
    residual: str
    output: str
    activation: Activation = IDENTITY


@dataclass(frozen=True)
class Activate:
    """An activation that could not be fused into its producer."""

    name: str
    input: str
    output: str
    activation: Activation


@dataclass(frozen=True)
class Copy:
    """A strided copy of the pixels after ``before`` zero channels; zeros fill the output's remaining channels."""

    name: str
    input: str
    output: str
    stride: Pair = (1, 1)
    before: int = 0


class BinaryOperator(IntEnum):
    """Elementwise operators of two operands, numbered as ``ts_binary_operator`` in the kernel library."""

    ADD = 0
    SUBTRACT = 1
    MULTIPLY = 2
    DIVIDE = 3
    MAXIMUM = 4
    MINIMUM = 5
    PRELU = 6
    SECOND = 7


@dataclass(frozen=True)
class Binary:
    """An elementwise operator of two operands that broadcast.

    Attributes:
        operator: the operator. ``SECOND`` returns the second operand: it writes a constant into the workspace.
        second: name of the second operand, or ``None`` where it is a constant.
        constant: the second operand, (N, C, H, W), of size 1 where it is broadcast.
    """

    name: str
    input: str
    second: str | None
    output: str
    operator: BinaryOperator
    constant: Tensor | None = None
    activation: Activation = IDENTITY


@dataclass(frozen=True)
class Taps:
    """The two input rows (or columns) that each output row is interpolated from.

    Attributes:
        indices: (size, 2), int32; the first is negative for a row outside of the input.
        weights: (size, 2), float32.
    """

    indices: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Resample:
    """Interpolation, padding, or a selection of rows and columns.

    Attributes:
        rows: taps of each output row; ``columns`` likewise.
        blends: whether both taps are used; otherwise only the first.
        fill: the value outside of the input.
    """

    name: str
    input: str
    output: str
    rows: Taps
    columns: Taps
    blends: bool = False
    fill: float = 0.0
    activation: Activation = IDENTITY


@dataclass(frozen=True)
class Rearrange:
    """The same elements in another order; see arrangement.py.

    Attributes:
        sizes: sizes of the axes that both layouts consist of.
        input_axes: axes of the input's stored N, C, H and W; ``output_axes`` likewise.
    """

    name: str
    input: str
    output: str
    sizes: tuple[int, ...]
    input_axes: tuple[tuple[int, ...], ...]
    output_axes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Rename:
    """The same memory under another stored shape."""

    name: str
    input: str
    output: str


@dataclass(frozen=True)
class Concat:
    """Concatenation along a dimension of the stored (N, C, H, W)."""

    name: str
    inputs: tuple[str, ...]
    output: str
    axis: int


@dataclass(frozen=True)
class Slice:
    """Every ``step``-th element of a dimension of the stored (N, C, H, W), from ``start`` on."""

    name: str
    input: str
    output: str
    axis: int
    start: int
    step: int = 1


@dataclass(frozen=True)
class Normalize:
    """Layer, group or instance norm.

    Attributes:
        weight: (C,); ``bias`` likewise.
        groups: number of channel groups, each normalized over all pixels; ``None`` normalizes the channels of each
            pixel (layer norm).
    """

    name: str
    input: str
    output: str
    weight: Tensor
    bias: Tensor
    epsilon: float
    groups: int | None
    activation: Activation = IDENTITY


@dataclass(frozen=True)
class Softmax:
    """Softmax over the channels of each pixel."""

    name: str
    input: str
    output: str


@dataclass(frozen=True)
class MatrixProduct:
    """``scale · first @ second`` for each row of the stored pixels (N, C, H, W): matrices (W, C), N · H of them.

    Attributes:
        input: the first operand, matrices (M, K).
        second: the second operand, matrices (K, N); with ``transposed`` (N, K).
        transposed: whether the second operand is transposed before it is multiplied.
        scale: factor of the product.
    """

    name: str
    input: str
    second: str
    output: str
    transposed: bool = False
    scale: float = 1.0
