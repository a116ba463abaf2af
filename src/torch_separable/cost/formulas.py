"""Cost of one convolution as a function of its shape; no tensors are involved.

The formulas are those of Howard et al., "MobileNets" (arXiv 1704.04861, section 3.1), for any number of spatial
dimensions: a convolution with ``C`` input channels, ``M`` output channels, a kernel of ``k`` entries and ``g`` groups
has ``k · (C/g) · M`` weights, and applies each of them once per output pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from torch_separable.errors import SeparableValueError


@dataclass(frozen=True)
class ConvSpec:
    """The shape of a convolution: everything that determines its cost, except the size of its input.

    Attributes:
        in_channels: channels of the input, ``C``.
        out_channels: channels of the output, ``M``.
        kernel_size: size of the kernel in each spatial dimension.
        stride: stride in each dimension.
        padding: zeros added on both sides of each dimension.
        dilation: distance between kernel taps.
        groups: number of groups; both channel counts must be multiples of it.
        bias: whether each output channel has a bias.
        transposed: whether this is a transposed convolution.
        output_padding: additional output size of a transposed convolution.

    Raises:
        SeparableValueError: a size is not positive, or ``groups`` does not divide both channel counts.

    Example:
        >>> conv = ConvSpec(4, 8, kernel_size=(3, 3), padding=(1, 1), groups=2)
        >>> conv.weights, conv.parameters, conv.macs((3, 3))
        (144, 152, 1296)
        >>> conv.formula()
        '3·3·(4/2)·8 = 144 (+8 bias)'
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = True
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        dimensions = len(self.kernel_size)
        if not dimensions:
            raise SeparableValueError("kernel_size=(): give one entry for each spatial dimension")
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1), ("output_padding", 0)):
            value = getattr(self, name) or (default,) * dimensions
            if len(value) != dimensions:
                raise SeparableValueError(
                    f"{name}={value} has {len(value)} entries; kernel_size={self.kernel_size} has {dimensions}: "
                    "give one entry for each spatial dimension"
                )
            object.__setattr__(self, name, tuple(value))
        for name in ("in_channels", "out_channels", "groups"):
            if getattr(self, name) < 1:
                raise SeparableValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for name, least in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1), ("output_padding", 0)):
            if min(getattr(self, name)) < least:
                raise SeparableValueError(f"{name}={getattr(self, name)}: every entry must be at least {least}")
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise SeparableValueError(
                    f"groups={self.groups} does not divide {name}={getattr(self, name)}: "
                    "both channel counts must be multiples of groups"
                )

    @property
    def is_depthwise(self) -> bool:
        """Whether every group has one input channel (and there is more than one group)."""
        return self.groups == self.in_channels > 1

    @property
    def is_pointwise(self) -> bool:
        """Whether the kernel has a single entry, so that each output pixel depends on one input pixel."""
        return math.prod(self.kernel_size) == 1

    @property
    def weights(self) -> int:
        """Number of weights, ``k · (C/g) · M``."""
        return math.prod(self.kernel_size) * (self.in_channels // self.groups) * self.out_channels

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return self.weights + (self.out_channels if self.bias else 0)

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial size of the output, by the formulas of ``torch.nn.Conv2d`` and ``ConvTranspose2d``.

        Args:
            input_size: spatial size of the input, such as (H, W).

        Raises:
            SeparableValueError: the number of dimensions differs from the kernel's, or the output would be empty.
        """
        if len(input_size) != len(self.kernel_size):
            raise SeparableValueError(
                f"input_size={tuple(input_size)} has {len(input_size)} spatial dimensions; "
                f"kernel_size={self.kernel_size} has {len(self.kernel_size)}"
            )
        if min(input_size) < 1:
            raise SeparableValueError(f"input_size={tuple(input_size)}: every entry must be at least 1")
        per_dimension = zip(
            input_size, self.kernel_size, self.stride, self.padding, self.dilation, self.output_padding, strict=True
        )
        if self.transposed:
            output = tuple((n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, d, o in per_dimension)
        else:
            output = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d, _ in per_dimension)
        if min(output) < 1 and self.transposed:
            raise SeparableValueError(
                f"padding {self.padding} removes the whole output of input_size={tuple(input_size)}: "
                "nothing is left to compute"
            )
        if min(output) < 1:
            raise SeparableValueError(
                f"input_size={tuple(input_size)} is smaller than the kernel {self.kernel_size} "
                f"with dilation {self.dilation} and padding {self.padding}: nothing is left to compute"
            )
        return output

    def macs(self, input_size: Sequence[int]) -> int:
        """Return the multiply-accumulates for one input of spatial size ``input_size``.

        Biases are additions and are not counted. Taps that fall on padding are counted, as in other FLOP counters.
        """
        output = self.output_size(input_size)
        return self.weights * math.prod(input_size if self.transposed else output)

    def dense(self) -> ConvSpec:
        """Return the convolution of the same shape with ``groups=1``."""
        return replace(self, groups=1)

    def formula(self) -> str:
        """Return the number of weights as a formula, such as ``3·3·(4/2)·8 = 144 (+8 bias)``."""
        inputs = f"({self.in_channels}/{self.groups})" if self.groups > 1 else str(self.in_channels)
        factors = "·".join([*map(str, self.kernel_size), inputs, str(self.out_channels)])
        return f"{factors} = {self.weights}" + (f" (+{self.out_channels} bias)" if self.bias else "")


def separable_cost_ratio(out_channels: int, kernel_size: Sequence[int], depth_multiplier: int = 1) -> float:
    """Return the MACs of depthwise + pointwise divided by those of the dense convolution (stride 1), ``D/M + D/k``.

    The ratio of weights is the same. For ``D = 1`` it is the ``1/N + 1/D_K²`` of arXiv 1704.04861, section 3.1.

    Example:
        >>> round(separable_cost_ratio(8, (3, 3)), 4)  # 68 weights instead of 288
        0.2361
    """
    return depth_multiplier / out_channels + depth_multiplier / math.prod(kernel_size)


def matmul_macs(rows: int, inner: int, columns: int, batch: int = 1) -> int:
    """Return the MACs of ``batch`` products of (rows × inner) and (inner × columns) matrices.

    Example:
        >>> matmul_macs(1, 64, 10)  # a linear layer from 64 to 10, one image
        640
    """
    return batch * rows * inner * columns


def attention_macs(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> int:
    """Return the MACs of scaled dot-product attention: ``Q Kᵀ`` and the product with ``V``.

    Vaswani et al., "Attention Is All You Need" (arXiv 1706.03762), equation 1. A causal mask does not reduce the count.
    Key and value may have fewer heads than the query (grouped-query attention), and dimensions of 1 are broadcast.

    Args:
        query: shape (..., heads, queries, width).
        key: shape (..., heads, keys, width).
        value: shape (..., heads, keys, value width).
    """
    *batch, queries, width = query
    broadcast = zip_longest(reversed(batch), reversed(key[:-2]), fillvalue=1)
    return math.prod(min(pair) and max(pair) for pair in broadcast) * queries * key[-2] * (width + value[-1])
