"""The depthwise separable convolution of the introductory article, with the article's class and attribute names."""

from __future__ import annotations

from torch import Tensor, nn

from torch_separable.nn._arguments import whole
from torch_separable.nn.conv import DepthwiseConv2d, PointwiseConv2d


class depthwise_separable_conv(nn.Module):  # noqa: N801 - the article's name
    """Depthwise 3x3 and pointwise 1x1 convolution, both with bias: the unit of a MobileNet, as tutorials write it.

    `DepthwiseSeparableConv2d` is the general layer. Input (N, ch_in, H, W), output (N, ch_out, H, W).

    Args:
        ch_in: channels of the input.
        ch_out: channels of the output.

    Raises:
        SeparableValueError: a number of channels is not a whole number, at least 1.

    Example:
        >>> import torch
        >>> conv = depthwise_separable_conv(4, 8)
        >>> conv(torch.zeros(1, 4, 3, 3)).shape
        torch.Size([1, 8, 3, 3])
        >>> list(conv.state_dict())
        ['depth_conv.weight', 'depth_conv.bias', 'point_conv.weight', 'point_conv.bias']
    """

    def __init__(self, ch_in: int, ch_out: int) -> None:
        super().__init__()
        whole("ch_in", ch_in)
        whole("ch_out", ch_out)
        self.depth_conv = DepthwiseConv2d(ch_in, kernel_size=3, padding=1)
        self.point_conv = PointwiseConv2d(ch_in, ch_out)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the depthwise convolution, then the pointwise one."""
        return self.point_conv(self.depth_conv(x))  # type: ignore[no-any-return]
