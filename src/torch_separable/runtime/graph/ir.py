"""Intermediate representation between a captured graph and the kernels: typed nodes on named values.

A value is an activation (N, C, H, W); a vector (N, C) is an image of one pixel. Nodes hold their weights, with batch
norms folded. An operator without a node is a fallback to PyTorch: `TorchCall`.

Values are float32, except those in `Program.quantized`: these are uint8 and mean ``(stored - zero_point) · scale``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

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
    """A depthwise convolution by itself.

    Attributes:
        depthwise: weights and window; the activation is this node's own.
        summed: False: ``multiplier`` outputs for each channel, in blocks, multiplier outermost. True: the input is
            ``multiplier`` blocks of channels, which are filtered and summed (the second half of pointwise-first).
    """

    name: str
    input: str
    output: str
    depthwise: Depthwise
    summed: bool = False
    residual: str | None = None

    @property
    def activation(self) -> Activation:
        """Of the result."""
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
    """A strided copy of the pixels, with ``before`` zero channels in front and zeros up to the output's channels."""

    name: str
    input: str
    output: str
    stride: Pair = (1, 1)
    before: int = 0


class BinaryOperator(IntEnum):
    """Numbers are those of ``ts_binary_operator`` in the kernel library."""

    ADD = 0
    SUBTRACT = 1
    MULTIPLY = 2
    DIVIDE = 3
    MAXIMUM = 4
    MINIMUM = 5
    PRELU = 6


@dataclass(frozen=True)
class Binary:
    """An elementwise operator whose operands are broadcast against each other.

    Attributes:
        second: name of the second operand, or ``None`` where it is a constant.
        constant: the second operand, (N, C, H, W) with 1 wherever it is repeated.
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
    """Which two rows (or columns) of the input each row of the output is made of.

    Attributes:
        indices: (size, 2), int32; the first is negative where the row lies outside of the input.
        weights: (size, 2), float32.
    """

    indices: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Resample:
    """Interpolation, padding, or a choice of rows and columns.

    Attributes:
        rows: of each output row; ``columns`` likewise.
        blends: whether both taps count; otherwise the first alone.
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
        sizes: of the axes that both orders consist of.
        input_axes: of the stored N, C, H and W of the input; ``output_axes`` likewise.
    """

    name: str
    input: str
    output: str
    sizes: tuple[int, ...]
    input_axes: tuple[tuple[int, ...], ...]
    output_axes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Rename:
    """A value under another shape: the elements lie as they did."""

    name: str
    input: str
    output: str


@dataclass(frozen=True)
class Concat:
    """Values one after the other along a dimension of the stored (N, C, H, W)."""

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
        groups: of channels that share their statistics over all pixels; ``None``: those of each pixel's channels.
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
class Quantization:
    """What a uint8 value stands for: ``(stored - zero_point) · scale``.

    Attributes:
        scale: positive.
        zero_point: 0 to 255; padded pixels hold it.
    """

    scale: float
    zero_point: int

    def bounds(self, activation: Activation = IDENTITY, lowest: int = 0, highest: int = 255) -> tuple[float, float]:
        """Return the range of a result before the zero point is added, as a clamp (ReLU, ReLU6, none) leaves it.

        Args:
            activation: a clamp.
            lowest: of the stored values, where fewer than 256 are used.
            highest: of the stored values.

        Example:
            >>> Quantization(0.05, 3).bounds(RELU)
            (0.0, 252.0)
        """
        if activation.kind is not ActivationKind.CLAMP:
            raise ValueError(f"{activation} is not a clamp")

        def stored(bound: float) -> float:
            return min(max(float(round(bound / self.scale)) + self.zero_point, lowest), highest)

        low = float(lowest) if activation.alpha == -math.inf else stored(activation.alpha)
        high = float(highest) if activation.beta == math.inf else stored(activation.beta)
        return low - self.zero_point, high - self.zero_point


@dataclass(frozen=True)
class QuantizedConvolution:
    """A convolution (dense, pointwise, grouped, depthwise) or linear layer of uint8 by int8 with exact int32 sums.

    ``sum = Σ (input - zero point) · weight``; padding adds nothing. Then in float32, every operation rounded by itself
    (a multiply and an add, never a fused multiply-add)::

        v = float32(sum) · multiplier[m] + offset[m]
        v = v + float32(residual - its zero point) · residual_multiplier        where there is a residual
        v = min(max(v, low), high)
        output = round_half_to_even(v) + zero point of the output               uint8
        output = v                                                              where the output is float32

    Attributes:
        weight: int8 (M, C/groups, kernel height, kernel width). Networks quantized here use -127 to 127, foreign ones
            may use -128. The order of the channels of a value in `Program.blocks` is that of its blocks (multiplier
            outermost) for ``groups`` 1; for more groups weight, multiplier and offset have PyTorch's order
            (channel · blocks + block) of the value's channels.
        multiplier: float32 (M,): input scale · weight scale / output scale; without the last for a float output.
        offset: float32 (M,): bias / output scale; the bias for a float output.
        low: lowest v.
        high: highest v.
        residual: a uint8 value that is added.
        residual_multiplier: float32: its scale / output scale.
        groups: as in PyTorch; all channels for a depthwise convolution.
        depthwise: the depthwise convolution before, fused; reads ``input``. Then ``window`` is that of one pixel, and
            the columns of ``weight`` have the multiplier outermost.
        between: of the uint8 result of ``depthwise``.
    """

    name: str
    input: str
    output: str
    weight: Tensor
    multiplier: Tensor
    offset: Tensor
    window: Window
    low: float
    high: float
    residual: str | None = None
    residual_multiplier: float = 0.0
    groups: int = 1
    depthwise: QuantizedConvolution | None = None
    between: Quantization | None = None


@dataclass(frozen=True)
class Quantize:
    """float32 to uint8: ``clamp(round_half_to_even(x · float32(1 / scale)) + zero point)``.

    Attributes:
        low: smallest stored value.
        high: largest stored value.
    """

    name: str
    input: str
    output: str
    low: int = 0
    high: int = 255


@dataclass(frozen=True)
class Dequantize:
    """uint8 to float32: ``(x - zero point) · scale``."""

    name: str
    input: str
    output: str


@dataclass(frozen=True)
class QuantizedAdd:
    """Sum of two uint8 values of one shape.

    ``v = float32(input - za) · multiplier + float32(residual - zb) · residual_multiplier``, each operation rounded to
    float32; then clamped, rounded and moved by the zero point as in `QuantizedConvolution`.

    Attributes:
        multiplier: float32: scale of the input / scale of the output.
        residual_multiplier: float32: scale of the residual / scale of the output.
    """

    name: str
    input: str
    residual: str
    output: str
    multiplier: float
    residual_multiplier: float
    low: float
    high: float


@dataclass(frozen=True)
class QuantizedScale:
    """A uint8 value times one uint8 factor for each channel of each image (N, C, 1, 1).

    ``v = float32((input - za) · (residual - zb)) · multiplier``; then as in `QuantizedConvolution`.

    Attributes:
        multiplier: float32: scale of the input · scale of the factors / scale of the output.
    """

    name: str
    input: str
    residual: str
    output: str
    multiplier: float
    low: float
    high: float


@dataclass(frozen=True)
class LookUp:
    """A uint8 value through a table: an activation, or another scale.

    Attributes:
        table: uint8 (256,).
    """

    name: str
    input: str
    output: str
    table: Tensor


@dataclass(frozen=True)
class QuantizedConcat:
    """uint8 values one behind the other along the channels; all have the scale and zero point of the output."""

    name: str
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class TorchCall:
    """A fallback: an operator that PyTorch runs.

    Attributes:
        function: the operator.
        args: its arguments, with a `Reference` for each value.
        kwargs: its keyword arguments, likewise.
        reason: why no kernel runs it.
        layout: how PyTorch sees its result, one of ``arrangement.LAYOUTS``, if kernels can read it.
    """

    name: str
    output: str
    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    reason: str
    layout: str = ""


@dataclass(frozen=True)
class Reference:
    """A value among the arguments of a `TorchCall`, or among the outputs.

    Attributes:
        layout: how PyTorch sees it, one of ``arrangement.LAYOUTS``; empty if the value has only one.
    """

    value: str
    layout: str = ""


Native = (
    Convolution | DepthwiseConv | Pool | Mean | Add | Scale | Activate | Copy
    | Binary | Resample | Rearrange | Rename | Concat | Slice | Normalize | Softmax
)  # fmt: skip
# Pool, Mean and Copy work on uint8 values, too. Maximum pooling and Copy keep scale and zero point, and zero channels
# hold the zero point. Averages are float32(Σ (x - zx)) · float32(sx / (sy · count)), then clamped to
# Quantization.bounds(activation) of the output, rounded half to even and moved by its zero point.
Quantized = QuantizedConvolution | Quantize | Dequantize | QuantizedAdd | QuantizedScale | LookUp | QuantizedConcat
Node = Native | Quantized | TorchCall


@dataclass(frozen=True)
class Program:
    """A network for inputs of one shape.

    Attributes:
        input: name and shape of the input.
        nodes: in the order of execution.
        shapes: shape (N, C, H, W) of every value that kernels read or write.
        blocks: number of blocks of the values whose channels are stored in several blocks; each block begins at a
            multiple of the vector width.
        vectors: values with shape (N, C) in the network.
        outputs: names of the returned values.
        output_layouts: how the network sees each of them, one of ``arrangement.LAYOUTS``; empty if there is only one.
        structure: pytree specification of the network's output.
        layers: name of the module that each node comes from, by node name.
        quantized: scale and zero point of the values that are uint8; all others are float32.
        weight_scales: float64 (M,) scales of the weights that were dequantized from int8, by node name, in PyTorch's
            order of channels.
        unquantized: reason why a node runs in float32 although an input was dequantized, by node name.
    """

    input: str
    nodes: tuple[Node, ...]
    shapes: Mapping[str, Shape]
    blocks: Mapping[str, int]
    vectors: frozenset[str]
    outputs: tuple[str, ...]
    structure: Any
    layers: Mapping[str, str] = field(default_factory=dict)
    quantized: Mapping[str, Quantization] = field(default_factory=dict)
    weight_scales: Mapping[str, Tensor] = field(default_factory=dict)
    unquantized: Mapping[str, str] = field(default_factory=dict)
    output_layouts: tuple[str, ...] = ()


def inputs_of(node: Node) -> tuple[str, ...]:
    """Return the names of the values that a node reads."""
    if isinstance(node, TorchCall):
        from torch.utils._pytree import tree_leaves

        leaves = tree_leaves((node.args, dict(node.kwargs)), is_leaf=lambda leaf: isinstance(leaf, Reference))
        return tuple(leaf.value for leaf in leaves if isinstance(leaf, Reference))
    if isinstance(node, Concat | QuantizedConcat):
        return node.inputs
    others = (getattr(node, "residual", None), getattr(node, "second", None))
    return (node.input, *(other for other in others if other is not None))


def with_inputs(node: Native | Quantized, names: Mapping[str, str]) -> Native | Quantized:
    """Let a node read other values, by their old names."""
    if isinstance(node, Concat | QuantizedConcat):
        return replace(node, inputs=tuple(names.get(name, name) for name in node.inputs))
    renamed: dict[str, Any] = {
        field: names[value]
        for field in ("input", "residual", "second")
        if (value := getattr(node, field, None)) is not None and value in names
    }
    return replace(node, **renamed)
