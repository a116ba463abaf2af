"""Facts about one convolution: its shape, its padding, the patches of its input, its kernel by group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from torch_separable.conversion.variants import CONVOLUTIONS, effective_weight, pads_same, same_padding
from torch_separable.cost.formulas import ConvSpec

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


def describe_convolution(conv: nn.Module) -> str:
    """Return class, channels, kernel and every setting that differs from its default.

    Example:
        >>> describe_convolution(nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4))
        'Conv2d(8, 16, 3x3/2, groups 4)'
    """
    shape: Any = conv
    stride = "" if set(shape.stride) == {1} else f"/{_join_sizes(shape.stride)}"
    parts = [str(shape.in_channels), str(shape.out_channels), f"{'x'.join(map(str, shape.kernel_size))}{stride}"]
    if set(shape.dilation) != {1}:
        parts.append(f"dilation {_join_sizes(shape.dilation)}")
    if shape.groups > 1:
        parts.append(f"groups {shape.groups}")
    return f"{type(conv).__name__}({', '.join(parts)})"


def _join_sizes(sizes: tuple[int, ...]) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else "x".join(map(str, sizes))


def spec_of(conv: Conv) -> ConvSpec:
    """Return the shape of a convolution as a `ConvSpec`.

    "Same" padding may pad one side more than the other; the spec holds the smaller side.
    """
    return ConvSpec(
        conv.in_channels,
        conv.out_channels,
        kernel_size=tuple(conv.kernel_size),
        stride=tuple(conv.stride),
        padding=tuple(before for before, _ in paddings(conv)),
        dilation=tuple(conv.dilation),
        groups=conv.groups,
        bias=conv.bias is not None,
    )


def paddings(conv: Conv, size: Sequence[int] | None = None) -> list[tuple[int, int]]:
    """Return the padding before and after each spatial dimension, in pixels.

    Args:
        conv: the convolution.
        size: spatial size of its input. A subclass that pads as TensorFlow's "same" may pad differently for each size;
            without a size, the padding of one that is a multiple of the stride is returned.
    """
    if pads_same(conv):
        flat = same_padding(conv).amounts(conv.stride if size is None else size)
        return [(flat[i], flat[i + 1]) for i in range(len(flat) - 2, -1, -2)]
    if conv.padding == "valid":
        return [(0, 0)] * len(conv.kernel_size)
    if conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return [(n // 2, n - n // 2) for n in total]
    assert not isinstance(conv.padding, str)
    return [(n, n) for n in conv.padding]


def patches_of(conv: Conv, inputs: Tensor) -> Tensor:
    """Return the input patch of every output pixel, as a view of the padded input.

    Args:
        conv: the convolution.
        inputs: its input, (N, C, *size).

    Returns:
        Shape (N, *output size, C, *kernel size). The product of entry ``[n, p]`` with the kernel is output pixel ``p``
        of image ``n``.
    """
    pad = [n for pair in reversed(paddings(conv, inputs.shape[2:])) for n in pair]
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    view = F.pad(inputs, pad, mode=mode) if any(pad) else inputs
    dimensions = len(conv.kernel_size)
    for i, (k, s, d) in enumerate(zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)):
        view = view.unfold(2 + i, d * (k - 1) + 1, s)
    taps: tuple[Any, ...] = tuple(slice(None, None, d) for d in conv.dilation)
    view = view[(..., *taps)]
    return view.movedim(1, 1 + dimensions)


def convolve(conv: Conv, inputs: Tensor, weight: Tensor) -> Tensor:
    """Convolve inputs as ``conv`` does, with its bias and another weight."""
    base: Any = next(base for base in CONVOLUTIONS if isinstance(conv, base))
    if not pads_same(conv):
        result: Tensor = base._conv_forward(conv, inputs, weight, conv.bias)
        return result
    padded = same_padding(conv)(inputs)
    function: Any = (F.conv1d, F.conv2d, F.conv3d)[len(conv.kernel_size) - 1]
    convolved: Tensor = function(padded, weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
    return convolved


def grouped_weight(conv: Conv) -> Tensor:
    """Return the kernel by group in float64 on the CPU, shape (groups, M/groups, C/groups, K)."""
    weight = effective_weight(conv).cpu().double()
    return weight.view(conv.groups, conv.out_channels // conv.groups, conv.in_channels // conv.groups, -1)


def patch_entries(conv: Conv) -> int:
    """Return the number of entries of one group's input patch, C/groups · K."""
    return conv.in_channels // conv.groups * math.prod(conv.kernel_size)
