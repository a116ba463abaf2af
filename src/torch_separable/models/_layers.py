"""Layers that several networks share, and the conventions in which pretrained weights differ."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, get_args

from torch import nn

from torch_separable.errors import SeparableValueError
from torch_separable.nn import InvertedResidual, SamePadding
from torch_separable.nn._arguments import one_of

Padding = Literal["symmetric", "same"]
Activation = Literal["relu", "relu6"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "relu6": nn.ReLU6}


def conv_norm_act(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int,
    norm: Callable[[int], nn.Module],
    act: Callable[[], nn.Module],
    padding: Padding = "symmetric",
) -> nn.Sequential:
    """Build a dense convolution without bias, its norm and its activation, as children ``0``, ``1`` and ``2``.

    With ``padding="same"`` and a stride above 1, a `SamePadding` named ``pad`` precedes them.
    """
    by_hand = padding == "same" and stride > 1
    around = 0 if by_hand else kernel_size // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=around, bias=False)
    layers: dict[str, nn.Module] = {"0": conv, "1": norm(out_channels), "2": act()}
    if by_hand:
        layers = {"pad": SamePadding((kernel_size,) * 2, (stride,) * 2, (1, 1)), **layers}
    return nn.Sequential(OrderedDict(layers))


def inverted_residuals(
    channels: int,
    stages: Iterable[tuple[int, int, int, int, int]],
    norm: Callable[[int], nn.Module],
    padding: Padding,
) -> nn.Sequential:
    """Build stages of inverted residuals; the first block of a stage has the stage's stride.

    Args:
        channels: input channels of the first block.
        stages: expansion ratio, kernel size, output channels, number of blocks and stride of each stage.
        norm: builds a norm from a number of channels.
        padding: ``"symmetric"`` or ``"same"``.
    """
    blocks: list[nn.Module] = []
    for expand_ratio, kernel_size, out_channels, repeats, first_stride in stages:
        for i in range(repeats):
            stride = first_stride if i == 0 else 1
            blocks.append(
                InvertedResidual(
                    channels, out_channels, kernel_size, stride, expand_ratio, norm_layer=norm, padding=padding
                )
            )
            channels = out_channels
    return nn.Sequential(*blocks)


def batch_norm(eps: float) -> Callable[[int], nn.Module]:
    """Return a function that builds a batch norm with ``eps``."""
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < 1:
        raise SeparableValueError(f"batch_norm_eps={eps!r}: must be a number between 0 and 1, such as 1e-5 or 1e-3")
    return partial(nn.BatchNorm2d, eps=eps)


def activation_of(name: str) -> Callable[[], nn.Module]:
    """Return the class of the activation ``name``."""
    one_of("activation", name, get_args(Activation))
    return _ACTIVATIONS[name]


def check_padding(padding: str) -> None:
    """Require ``"symmetric"`` or ``"same"``."""
    one_of("padding", padding, get_args(Padding))


def check_probability(name: str, value: object) -> None:
    """Require a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise SeparableValueError(f"{name}={value!r}: must be a probability, from 0 to 1")
