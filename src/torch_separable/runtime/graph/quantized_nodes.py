"""Nodes of uint8 values: quantized operators, with their scales and zero points."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from torch_separable.runtime.graph.nodes import IDENTITY, Activation, ActivationKind, Window


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
            >>> from torch_separable.runtime.graph.nodes import RELU
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
        weight: int8 (M, C/groups, kernel height, kernel width). `quantize` writes -127 to 127; networks quantized by
            other tools may hold -128. For ``groups`` 1, the channels of a value in `Program.blocks` are in the order of
            its blocks (multiplier outermost); for more groups, weight, multiplier and offset have PyTorch's order of
            the value's channels (channel · blocks + block).
        multiplier: float32 (M,): input scale · weight scale / output scale; without the last for a float output.
        offset: float32 (M,): bias / output scale; the bias for a float output.
        low: lowest v.
        high: highest v.
        residual: a uint8 value that is added.
        residual_multiplier: float32: its scale / output scale.
        groups: as in PyTorch; all channels for a depthwise convolution.
        depthwise: the depthwise convolution before, fused; reads ``input``. Then ``window`` is that of one pixel, and
            the columns of ``weight`` have the multiplier outermost.
        between: scale and zero point of the uint8 result of ``depthwise``.
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
    """A table of 256 entries applied to a uint8 value: an activation, or a change of scale.

    Attributes:
        table: uint8 (256,).
    """

    name: str
    input: str
    output: str
    table: Tensor


@dataclass(frozen=True)
class QuantizedConcat:
    """uint8 values concatenated along the channels; all have the scale and zero point of the output."""

    name: str
    inputs: tuple[str, ...]
    output: str
