"""Channel shuffle and the ShuffleNet unit (Zhang et al., "ShuffleNet", arXiv 1707.01083)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_separable.errors import SeparableValueError
from torch_separable.nn._arguments import divides, odd_kernel, placement, whole
from torch_separable.nn.conv import DepthwiseConv2d, PointwiseConv2d, Size


class ChannelShuffle(nn.Module):
    """Interleave the channels of all groups, so that the next grouped convolution mixes them (section 3.1).

    The channels are reshaped from (g·n) to (g, n), transposed to (n, g) and flattened. Input (N, C, *size), with any
    number of spatial dimensions.

    Args:
        groups: ``g``; must divide the channels of the input.

    Raises:
        SeparableValueError: ``groups`` is not a positive integer, or does not divide the input's channels.

    Example:
        >>> ChannelShuffle(2)(torch.arange(6.0).view(1, 6, 1, 1)).flatten().tolist()
        [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = whole("groups", groups)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *size) to the same shape."""
        divides("groups", self.groups, "the input's channels", x.shape[1])
        grouped: Tensor = x.unflatten(1, (self.groups, -1))
        return grouped.transpose(1, 2).flatten(1, 2)

    def extra_repr(self) -> str:
        """Show the number of groups."""
        return f"groups={self.groups}"


class ShuffleUnit(nn.Module):
    """ShuffleNet unit: grouped 1x1, shuffle, depthwise 3x3 and grouped 1x1 convolution (section 3.2, figures 2b, 2c).

    With stride 1 the result is added to the input. With stride 2 it is concatenated with the average-pooled input, so
    that only ``out_channels − in_channels`` channels are computed. Input (N, C, H, W), output (N, M, H', W').

    Args:
        in_channels: ``C``.
        out_channels: ``M``; equal to ``C`` with stride 1, larger with stride 2.
        groups: groups of the pointwise convolutions; must divide ``C`` and the bottleneck's channels, and so ``M``.
        stride: 1 or 2.
        kernel_size: size of the depthwise kernels, odd.
        bottleneck_ratio: the bottleneck has ``M / bottleneck_ratio`` channels.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        SeparableValueError: an argument breaks its rule.

    Example:
        >>> ShuffleUnit(24, 48, groups=3, stride=2)(torch.zeros(1, 24, 8, 8)).shape
        torch.Size([1, 48, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int = 3,
        stride: int = 1,
        kernel_size: Size = 3,
        bottleneck_ratio: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "groups": groups}
        for name, value in (*sizes.items(), ("bottleneck_ratio", bottleneck_ratio)):
            whole(name, value)
        kernel = odd_kernel(kernel_size, 2)
        if stride not in (1, 2) or isinstance(stride, bool):
            raise SeparableValueError(f"stride={stride!r}: must be 1 or 2")
        if stride == 1 and in_channels != out_channels:
            raise SeparableValueError(
                f"out_channels={out_channels} with stride=1: must equal in_channels={in_channels}, which it is added to"
            )
        if stride == 2 and out_channels <= in_channels:
            raise SeparableValueError(
                f"out_channels={out_channels} with stride=2: must exceed in_channels={in_channels}, "
                "which are concatenated to it"
            )
        computed = out_channels if stride == 1 else out_channels - in_channels
        divides("bottleneck_ratio", bottleneck_ratio, "out_channels", out_channels)
        inner = out_channels // bottleneck_ratio
        divides("groups", groups, "in_channels", in_channels)
        divides("groups", groups, "out_channels / bottleneck_ratio", inner)
        placed = placement(device, dtype)
        self.stride = stride
        self.conv_pw = PointwiseConv2d(in_channels, inner, groups=groups, bias=False, **placed)
        self.bn1 = nn.BatchNorm2d(inner, **placed)
        self.shuffle = ChannelShuffle(groups)
        padding = tuple(k // 2 for k in kernel)
        self.conv_dw = DepthwiseConv2d(inner, kernel, stride=stride, padding=padding, bias=False, **placed)
        self.bn2 = nn.BatchNorm2d(inner, **placed)
        self.conv_pwl = PointwiseConv2d(inner, computed, groups=groups, bias=False, **placed)
        self.bn3 = nn.BatchNorm2d(computed, **placed)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, M, H/stride, W/stride)."""
        y = F.relu(self.bn1(self.conv_pw(x)))
        y = self.bn2(self.conv_dw(self.shuffle(y)))
        y = self.bn3(self.conv_pwl(y))
        if self.stride == 1:
            return F.relu(x + y)
        return F.relu(torch.cat([F.avg_pool2d(x, 3, stride=2, padding=1), y], dim=1))
