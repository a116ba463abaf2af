"""The inverted residual of MobileNetV2 (Sandler et al., arXiv 1801.04381, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._jit_internal import is_scripting

from torch_separable.nn._arguments import built, callable_or_none, odd_kernel, one_of, per_dimension, placement, whole
from torch_separable.nn.conv import DepthwiseConv2d, PointwiseConv2d, Size
from torch_separable.nn.padding import SamePadding


class InvertedResidual(nn.Module):
    """Pointwise expansion, depthwise convolution and pointwise projection, with a residual if the shapes are equal.

    The children have timm's names: ``conv_pw``, ``bn1``, ``act1`` (absent if ``expand_ratio`` is 1), ``conv_dw``,
    ``bn2``, ``act2``, ``conv_pwl``, ``bn3``. The projection has no activation ("linear bottleneck").
    Input (N, C, H, W), output (N, M, H', W').

    Args:
        in_channels: ``C``.
        out_channels: ``M``.
        kernel_size: size of the depthwise kernels, odd; padding keeps the size at stride 1.
        stride: stride of the depthwise convolution.
        expand_ratio: ``t``; the depthwise convolution has ``t·C`` channels.
        dilation: dilation of the depthwise convolution.
        norm_layer: builds a norm from a number of channels; without one the convolutions have biases.
        act_layer: builds an activation.
        padding: ``"symmetric"``, or TensorFlow's ``"same"`` (`SamePadding`); they differ if the stride is above 1.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        SeparableValueError: an argument breaks its rule.

    Example:
        >>> block = InvertedResidual(16, 16, expand_ratio=6)
        >>> block(torch.zeros(1, 16, 8, 8)).shape, block.has_residual
        (torch.Size([1, 16, 8, 8]), True)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size = 3,
        stride: Size = 1,
        expand_ratio: int = 6,
        dilation: Size = 1,
        norm_layer: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
        act_layer: Callable[[], nn.Module] | None = nn.ReLU6,
        padding: str = "symmetric",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("expand_ratio", expand_ratio),
        ):
            whole(name, value)
        callable_or_none("norm_layer", norm_layer)
        callable_or_none("act_layer", act_layer)
        kernel = odd_kernel(kernel_size, 2)
        steps = per_dimension("stride", stride, 2)
        spread = per_dimension("dilation", dilation, 2)
        one_of("padding", padding, ("symmetric", "same"))
        strided_same = padding == "same" and steps != (1, 1)
        around = (0, 0) if strided_same else tuple(d * (k - 1) // 2 for k, d in zip(kernel, spread, strict=True))
        inner = in_channels * expand_ratio
        self.has_residual = in_channels == out_channels and steps == (1, 1)
        bias = norm_layer is None
        placed = placement(device, dtype)

        def follow(norm: str, act: str | None, channels: int) -> None:
            if norm_layer is not None:
                self.add_module(norm, built("norm_layer", norm_layer, channels, **placed))
            if act is not None and act_layer is not None:
                self.add_module(act, built("act_layer", act_layer, **placed))

        if expand_ratio > 1:
            self.conv_pw = PointwiseConv2d(in_channels, inner, bias=bias, **placed)
            follow("bn1", "act1", inner)
        if strided_same:
            self.pad = SamePadding(kernel, steps, spread)
        self.conv_dw = DepthwiseConv2d(inner, kernel, steps, around, spread, bias=bias, **placed)
        follow("bn2", "act2", inner)
        self.conv_pwl = PointwiseConv2d(inner, out_channels, bias=bias, **placed)
        follow("bn3", None, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers in order, and add the input if there is a residual."""
        y = x
        if is_scripting():  # TorchScript unrolls children() and knows no _modules
            for child in self.children():
                y = child(y)
            return x + y if self.has_residual else y
        for layer in self._modules.values():  # children() would skip a layer that has two names
            y = layer(y) if layer is not None else y
        return x + y if self.has_residual else y
