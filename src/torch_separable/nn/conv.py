"""Depthwise and pointwise convolutions, as subclasses of the ``torch.nn`` convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from torch_separable.nn._arguments import divides, flag, placement, whole, window

Size = int | tuple[int, ...]


def _depthwise_arguments(
    dimensions: int, in_channels: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any,
    depth_multiplier: Any, bias: Any, padding_mode: Any, device: Any, dtype: Any,
) -> dict[str, Any]:  # fmt: skip
    whole("in_channels", in_channels)
    whole("depth_multiplier", depth_multiplier)
    flag("bias", bias)
    return {
        "in_channels": in_channels,
        "out_channels": in_channels * depth_multiplier,
        "groups": in_channels,
        "bias": bias,
        **window(dimensions, kernel_size, stride, padding, dilation, padding_mode),
        **placement(device, dtype),
    }


def _pointwise_arguments(
    dimensions: int, in_channels: Any, out_channels: Any, stride: Any, groups: Any, bias: Any, device: Any, dtype: Any
) -> dict[str, Any]:
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
        whole(name, value)
    divides("groups", groups, "in_channels", in_channels)
    divides("groups", groups, "out_channels", out_channels)
    flag("bias", bias)
    step = window(dimensions, 1, stride, 0, 1, "zeros")["stride"]
    return {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "kernel_size": 1,
        "stride": step,
        "groups": groups,
        "bias": bias,
        **placement(device, dtype),
    }


class DepthwiseConv1d(nn.Conv1d):
    """Depthwise convolution over a sequence; see `DepthwiseConv2d`. Input (N, C, L), output (N, C·D, L')."""

    def __init__(
        self,
        in_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        depth_multiplier: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        arguments = _depthwise_arguments(
            1, in_channels, kernel_size, stride, padding, dilation, depth_multiplier, bias, padding_mode, device, dtype
        )
        super().__init__(**arguments)
        self.depth_multiplier = depth_multiplier


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution: ``D`` kernels for each input channel, ``groups=in_channels``.

    Input channel ``c`` gives the output channels ``c·D … c·D + D − 1``. The arguments are those of
    ``torch.nn.Conv2d``, and ``depth_multiplier`` as in Keras. Input (N, C, H, W), output (N, C·D, H', W').

    Args:
        in_channels: ``C``.
        kernel_size: size of the kernels.
        stride: stride of the convolution.
        padding: zeros on both sides of each dimension, or ``"same"`` (stride 1).
        dilation: distance between kernel taps.
        depth_multiplier: ``D``, kernels per input channel.
        bias: whether each output channel has a bias.
        padding_mode: as in ``torch.nn.Conv2d``.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        SeparableValueError: an argument breaks its rule.

    Example:
        >>> import torch
        >>> conv = DepthwiseConv2d(4, 3, padding=1, depth_multiplier=2)
        >>> conv(torch.zeros(1, 4, 3, 3)).shape, conv.weight.shape
        (torch.Size([1, 8, 3, 3]), torch.Size([8, 1, 3, 3]))
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        depth_multiplier: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        arguments = _depthwise_arguments(
            2, in_channels, kernel_size, stride, padding, dilation, depth_multiplier, bias, padding_mode, device, dtype
        )
        super().__init__(**arguments)
        self.depth_multiplier = depth_multiplier


class DepthwiseConv3d(nn.Conv3d):
    """Depthwise convolution over a volume; see `DepthwiseConv2d`. Input (N, C, D, H, W)."""

    def __init__(
        self,
        in_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        depth_multiplier: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        arguments = _depthwise_arguments(
            3, in_channels, kernel_size, stride, padding, dilation, depth_multiplier, bias, padding_mode, device, dtype
        )
        super().__init__(**arguments)
        self.depth_multiplier = depth_multiplier


class PointwiseConv1d(nn.Conv1d):
    """Pointwise convolution over a sequence; see `PointwiseConv2d`. Input (N, C, L), output (N, M, L')."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Size = 1,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        arguments = _pointwise_arguments(1, in_channels, out_channels, stride, groups, bias, device, dtype)
        super().__init__(**arguments)


class PointwiseConv2d(nn.Conv2d):
    """Pointwise (1x1) convolution, which mixes channels only. Input (N, C, H, W), output (N, M, H', W').

    Args:
        in_channels: ``C``.
        out_channels: ``M``.
        stride: stride of the convolution.
        groups: number of groups; both channel counts must be multiples of it.
        bias: whether each output channel has a bias.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        SeparableValueError: an argument breaks its rule.

    Example:
        >>> PointwiseConv2d(4, 8).weight.shape
        torch.Size([8, 4, 1, 1])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Size = 1,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        arguments = _pointwise_arguments(2, in_channels, out_channels, stride, groups, bias, device, dtype)
        super().__init__(**arguments)


class PointwiseConv3d(nn.Conv3d):
    """Pointwise convolution over a volume; see `PointwiseConv2d`. Input (N, C, D, H, W)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Size = 1,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        arguments = _pointwise_arguments(3, in_channels, out_channels, stride, groups, bias, device, dtype)
        super().__init__(**arguments)


DEPTHWISE: dict[int, Any] = {1: DepthwiseConv1d, 2: DepthwiseConv2d, 3: DepthwiseConv3d}
POINTWISE: dict[int, Any] = {1: PointwiseConv1d, 2: PointwiseConv2d, 3: PointwiseConv3d}
