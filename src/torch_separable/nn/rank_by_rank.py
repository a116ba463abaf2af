"""A faster way through separable convolutions of multiplier D > 1, for training in plain PyTorch.

PyTorch's CPU kernels are quick for depthwise convolutions with one kernel a channel, and up to four times slower for
the same arithmetic with ``D`` of them (of either order). So the layer is computed as the sum of ``D`` convolutions of
multiplier 1: the same function of the same parameters, and the same gradients up to rounding. ResNet-20 converted to
half of its multiply-accumulates trains 2.3 times as fast so (``python benchmarks/conversion.py training``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from torch_separable.nn.separable import _DepthwiseSeparableConv

_CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_LAYER: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@contextmanager
def rank_by_rank(model: nn.Module) -> Iterator[nn.Module]:
    """Let the separable convolutions in ``model`` that can be be computed one rank after the other.

    Those with multiplier 1, with something between the two convolutions, hooks on them, or padding that is not the
    convolution's own zeros are left as they are; so are those that are not on a CPU, whose kernels this is about. The
    modules are as before when the context ends.

    Example:
        >>> import torch
        >>> from torch_separable.nn import DepthwiseSeparableConv2d
        >>> layer, image = DepthwiseSeparableConv2d(4, 8, 3, depth_multiplier=2), torch.randn(1, 4, 5, 5)
        >>> plain = layer(image)
        >>> with rank_by_rank(layer):
        ...     bool((layer(image) - plain).abs().max() < 1e-5)
        True
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _DepthwiseSeparableConv) and _can(layer)]
    for layer in layers:
        layer.forward = partial(_forward, layer)  # type: ignore[method-assign]
    try:
        yield model
    finally:
        for layer in layers:
            del layer.forward


def _can(layer: _DepthwiseSeparableConv) -> bool:
    pair = (layer.conv_dw, layer.conv_pw)
    plain = _LAYER[layer._dimensions].forward
    return (
        layer.depth_multiplier > 1
        and layer.padding_mode == "zeros"
        # What `_forward` takes the place of, and nothing that somebody has put there instead.
        and "forward" not in vars(layer)
        and type(layer).forward is _DepthwiseSeparableConv.forward
        and set(layer._modules) <= {"conv_dw", "conv_pw", "bn2", "act2"}
        and all(type(conv).forward is plain and "forward" not in vars(conv) for conv in pair)
        and all(conv.weight.device.type == "cpu" for conv in pair)
        and not any(conv._forward_hooks or conv._forward_pre_hooks or conv._backward_hooks for conv in pair)
    )


def _forward(layer: _DepthwiseSeparableConv, input: Tensor) -> Tensor:
    rank, conv = layer.depth_multiplier, _CONV[layer._dimensions]
    depthwise_first = layer.order == "depthwise_first"
    first, last = (layer.conv_dw, layer.conv_pw) if depthwise_first else (layer.conv_pw, layer.conv_dw)
    channels = layer.in_channels if depthwise_first else layer.out_channels

    def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = conv(x, weight, bias, layer.stride, layer.padding, layer.dilation, channels)
        return result

    def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = conv(x, weight, bias, groups=layer.groups)
        return result

    stages = (depthwise, pointwise) if depthwise_first else (pointwise, depthwise)
    # Between the two the channels are c·D + d: the first convolution gives them, the second takes them.
    first_weight = first.weight.unflatten(0, (channels, rank))
    first_bias = None if first.bias is None else first.bias.unflatten(0, (channels, rank))
    last_weight = last.weight.unflatten(1, (-1, rank))
    total: Tensor | None = None
    for d in range(rank):
        between = stages[0](input, first_weight[:, d], None if first_bias is None else first_bias[:, d])
        part = stages[1](between, last_weight[:, :, d], last.bias if d == 0 else None)
        total = part if total is None else total + part
    assert total is not None
    for name in ("bn2", "act2"):
        if getattr(layer, name, None) is not None:
            total = getattr(layer, name)(total)
    return total
