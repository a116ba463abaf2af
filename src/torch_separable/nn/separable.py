"""Depthwise separable convolution in both orders and in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch._jit_internal import is_scripting

from torch_separable.errors import SeparableError
from torch_separable.nn._arguments import (
    built,
    callable_or_none,
    divides,
    flag,
    one_of,
    per_dimension,
    placement,
    whole,
    window,
)
from torch_separable.nn.conv import DEPTHWISE, POINTWISE, Size
from torch_separable.nn.padding import SamePadding

Order = Literal["depthwise_first", "pointwise_first"]
_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class _DepthwiseSeparableConv(nn.Module):
    _dimensions: int
    __jit_unused_properties__ = ("weight", "bias")  # TorchScript compiles properties, and supports no `try`

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        depth_multiplier: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        order: Order = "depthwise_first",
        norm_layer: Callable[[int], nn.Module] | None = None,
        act_layer: Callable[[], nn.Module] | None = None,
        *,
        groups: int = 1,
        bias_between: bool | None = None,
        norm_between: bool = True,
        act_between: bool = True,
        norm_after: bool = True,
        act_after: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        n = self._dimensions
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "groups": groups}
        for name, value in (*sizes.items(), ("depth_multiplier", depth_multiplier)):
            whole(name, value)
        divides("groups", groups, "in_channels", in_channels)
        divides("groups", groups, "out_channels", out_channels)
        one_of("order", order, get_args(Order))
        callable_or_none("norm_layer", norm_layer)
        callable_or_none("act_layer", act_layer)
        if bias_between is None:
            bias_between = bias
        switches = {
            "bias": bias,
            "bias_between": bias_between,
            "norm_between": norm_between,
            "act_between": act_between,
            "norm_after": norm_after,
            "act_after": act_after,
        }
        for name, value in switches.items():
            flag(name, value)
        strided_same = padding == "same" and any(step != 1 for step in per_dimension("stride", stride, n))
        where = window(n, kernel_size, stride, 0 if strided_same else padding, dilation, padding_mode)

        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.dilation = where["kernel_size"], where["stride"], where["dilation"]
        self.padding, self.padding_mode = "same" if strided_same else where["padding"], padding_mode
        self.depth_multiplier = depth_multiplier
        self.order: Order = order

        placed = placement(device, dtype)
        pad = SamePadding(self.kernel_size, self.stride, self.dilation, padding_mode) if strided_same else None
        if order == "depthwise_first":
            inner = in_channels * depth_multiplier
            if pad is not None:
                self.pad = pad
            self.conv_dw = DEPTHWISE[n](
                in_channels, depth_multiplier=depth_multiplier, bias=bias_between, **where, **placed
            )
        else:
            inner = out_channels * depth_multiplier
            self.conv_pw = POINTWISE[n](in_channels, inner, groups=groups, bias=bias_between, **placed)
        if norm_layer is not None and norm_between:
            self.bn1 = built("norm_layer", norm_layer, inner, **placed)
        if act_layer is not None and act_between:
            self.act1 = built("act_layer", act_layer, **placed)
        if order == "depthwise_first":
            self.conv_pw = POINTWISE[n](inner, out_channels, groups=groups, bias=bias, **placed)
        else:
            if pad is not None:
                self.pad = pad
            self.conv_dw = _CONV[n](inner, out_channels, groups=out_channels, bias=bias, **where, **placed)
        if norm_layer is not None and norm_after:
            self.bn2 = built("norm_layer", norm_layer, out_channels, **placed)
        if act_layer is not None and act_after:
            self.act2 = built("act_layer", act_layer, **placed)

    def forward(self, input: Tensor) -> Tensor:  # the argument has the name that `torch.nn` uses
        """Apply the layers in order: (N, C, *size) to (N, M, *size')."""
        x = input
        if is_scripting():  # TorchScript unrolls children() and knows no _modules
            for child in self.children():
                x = child(x)
            return x
        for layer in self._modules.values():  # children() would skip a layer that has two names
            x = layer(x) if layer is not None else x
        return x

    def reset_parameters(self) -> None:
        """Initialize all parameters again, each layer by its own ``reset_parameters``."""
        for layer in self.children():
            reset: Any = getattr(layer, "reset_parameters", None)
            if reset is not None:
                reset()

    def merged_weight(self) -> Tensor:
        """Return the dense kernel that is equivalent to the two convolutions, (M, C/groups, *kernel_size).

        Raises:
            SeparableError: a norm or an activation stands between them, or the first has a bias.
        """
        first = self.conv_dw if self.order == "depthwise_first" else self.conv_pw
        if hasattr(self, "bn1") or hasattr(self, "act1") or first.bias is not None:
            raise SeparableError(
                "no dense kernel is equivalent to this layer: a norm, an activation or a bias stands between its two "
                "convolutions"
            )
        rank, taps = self.depth_multiplier, self.conv_dw.weight.flatten(2)
        point = self.conv_pw.weight.flatten(1)
        if self.order == "depthwise_first":
            depth = taps.view(self.groups, self.in_channels // self.groups, rank, -1)
            mix = point.view(self.groups, self.out_channels // self.groups, -1, rank)
            merged = torch.einsum("gmcd,gcdk->gmck", mix, depth).flatten(0, 1)
        else:
            depth = taps.view(self.out_channels, rank, -1)
            merged = torch.einsum("mdc,mdk->mck", point.view(self.out_channels, rank, -1), depth)
        return merged.reshape(*merged.shape[:2], *self.kernel_size)

    @property
    def weight(self) -> Tensor:
        """The kernel of `merged_weight`; networks read ``conv.weight`` for its dtype and device."""
        try:
            return self.merged_weight()
        except SeparableError as error:
            raise AttributeError(str(error)) from error

    @property
    def bias(self) -> Tensor | None:
        """The bias of the second convolution; networks read ``conv.bias``."""
        last: Any = self.conv_pw if self.order == "depthwise_first" else self.conv_dw
        bias: Tensor | None = last.bias
        return bias

    def extra_repr(self) -> str:
        """Show the channels, the multiplier and the order."""
        return (
            f"{self.in_channels}, {self.out_channels}, depth_multiplier={self.depth_multiplier}, order={self.order!r}"
        )


class DepthwiseSeparableConv1d(_DepthwiseSeparableConv):
    """Depthwise separable convolution over a sequence; see `DepthwiseSeparableConv2d`. Input (N, C, L)."""

    _dimensions = 1


class DepthwiseSeparableConv2d(_DepthwiseSeparableConv):
    """Depthwise separable convolution: a depthwise and a pointwise convolution (arXiv 1704.04861, section 3.1).

    ``order="depthwise_first"``: each of the ``C`` input channels has ``D`` kernels, then a 1x1 convolution mixes the
    ``C·D`` channels to ``M``: ``C·D·k² + C·D·M`` weights. ``order="pointwise_first"`` (blueprint separable, BSConv,
    CVPR 2020): a 1x1 convolution returns ``M·D`` channels, then each output channel is the sum of ``D`` of them, each
    filtered by its own kernel: ``C·M·D + M·D·k²`` weights. With ``D = k²`` either order can represent any dense
    convolution.

    The children have timm's names: ``conv_dw``, ``conv_pw``, and if requested ``bn1``, ``act1`` between them and
    ``bn2``, ``act2`` after them. Input (N, C, H, W), output (N, M, H', W').

    Args:
        in_channels: ``C``.
        out_channels: ``M``.
        kernel_size: size of the depthwise kernels; stride, padding and dilation are the depthwise convolution's, too.
        stride: stride of the convolution.
        padding: zeros on both sides of each dimension, or ``"same"`` as in Keras and TensorFlow: the output has
            ``ceil(size / stride)`` pixels. With a stride above 1, a `SamePadding` stands before ``conv_dw``.
        dilation: distance between kernel taps.
        depth_multiplier: ``D``.
        bias: whether the second convolution has a bias.
        padding_mode: as in ``torch.nn.Conv2d``.
        order: which convolution runs first.
        norm_layer: builds a norm from a number of channels, such as ``nn.BatchNorm2d``.
        act_layer: builds an activation, such as ``nn.ReLU``.
        groups: groups of the pointwise convolution; both channel counts must be multiples of it.
        bias_between: whether the first convolution has a bias; ``None`` for the value of ``bias``.
        norm_between: whether ``norm_layer`` is used between the convolutions.
        act_between: whether ``act_layer`` is used between the convolutions.
        norm_after: whether ``norm_layer`` is used after the second convolution.
        act_after: whether ``act_layer`` is used after the second convolution.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        SeparableValueError: an argument breaks its rule.

    Example:
        >>> layer = DepthwiseSeparableConv2d(4, 8, 3, padding=1)
        >>> layer(torch.zeros(1, 4, 3, 3)).shape
        torch.Size([1, 8, 3, 3])
        >>> sum(p.numel() for p in layer.parameters())  # (3·3·4 + 4) + (4·8 + 8); a dense one has 296
        80
        >>> DepthwiseSeparableConv2d(32, 64, 3, norm_layer=nn.BatchNorm2d, act_layer=nn.ReLU, bias=False)
        DepthwiseSeparableConv2d(
          32, 64, depth_multiplier=1, order='depthwise_first'
          (conv_dw): DepthwiseConv2d(32, 32, kernel_size=(3, 3), stride=(1, 1), groups=32, bias=False)
          (bn1): BatchNorm2d(32, ...)
          (act1): ReLU()
          (conv_pw): PointwiseConv2d(32, 64, kernel_size=(1, 1), stride=(1, 1), bias=False)
          (bn2): BatchNorm2d(64, ...)
          (act2): ReLU()
        )
    """

    _dimensions = 2


class DepthwiseSeparableConv3d(_DepthwiseSeparableConv):
    """Depthwise separable convolution over a volume; see `DepthwiseSeparableConv2d`. Input (N, C, D, H, W)."""

    _dimensions = 3


SEPARABLE: dict[int, type[_DepthwiseSeparableConv]] = {
    1: DepthwiseSeparableConv1d,
    2: DepthwiseSeparableConv2d,
    3: DepthwiseSeparableConv3d,
}
