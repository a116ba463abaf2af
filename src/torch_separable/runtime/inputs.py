"""Inputs of two to five dimensions as images (N, C, H, W), which kernels read and `Program` describes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from torch_separable.errors import SeparableValueError

_EXPECTED = "expected (N, C, H, W), or vectors (N, C), sequences of three or volumes of five dimensions"


def checked(x: Any) -> Tensor:
    """Return an input without gradient history.

    Raises:
        SeparableValueError: It is no float32 tensor of two to five dimensions on the CPU.
    """
    if not isinstance(x, Tensor):
        raise SeparableValueError(f"the input is a {type(x).__name__}: expected a tensor (N, C, H, W)")
    if not 2 <= x.dim() <= 5:
        raise SeparableValueError(f"the input has shape {tuple(x.shape)}: {_EXPECTED}")
    if x.dtype != torch.float32 or x.device.type != "cpu":
        raise SeparableValueError(f"the input is {x.dtype} on {x.device}: expected torch.float32 on the CPU")
    return x.detach().resolve_neg()  # kernels read memory and ignore a lazy negation


def as_image(x: Tensor) -> Tensor:
    """Return an input as (N, C, H, W), as the lowering stores it.

    The last dimension of a vector or sequence becomes the channels, because PyTorch's layers for tokens mix it. Depth
    and height of a volume become one dimension.

    Example:
        >>> [tuple(as_image(torch.zeros(2, *sizes)).shape) for sizes in ((5,), (7, 5), (5, 3, 8, 9))]
        [(2, 5, 1, 1), (2, 5, 1, 7), (2, 5, 24, 9)]
    """
    match x.dim():
        case 2:
            return x[:, :, None, None]
        case 3:
            return x.transpose(1, 2).unsqueeze(2)
        case 5:
            return x.flatten(2, 3)
        case _:
            return x


@contextmanager
def taking_images(model: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """Let a network for volumes take them as images within the block, and yield the input to capture it with."""
    if x.dim() != 5:
        yield x
        return
    depth = x.shape[2]

    def as_volume(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0].unflatten(2, (depth, -1)),)

    hook = model.register_forward_pre_hook(as_volume, prepend=True)
    try:
        yield as_image(x)
    finally:
        hook.remove()
