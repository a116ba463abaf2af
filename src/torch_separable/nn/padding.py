"""Padding as TensorFlow and Keras mean it by "same", at any stride."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class SamePadding(nn.Module):
    """Pad so that the convolution that follows gives ``ceil(size / stride)`` pixels.

    In each dimension of size ``n`` the kernel needs ``max((ceil(n/s) - 1)·s + d·(k - 1) + 1 - n, 0)`` more pixels; half
    of them, rounded down, stand before the image and the others after it (TensorFlow's guide to convolutions, "SAME").
    At stride 1 it is what ``torch.nn`` calls "same"; at stride 2 a 3x3 kernel over an even size is padded after the
    image alone, where PyTorch's ``padding=1`` would pad before it as well: another grid of pixels.

    Args:
        kernel_size: ``k``, one number for each spatial dimension.
        stride: ``s``, likewise.
        dilation: ``d``, likewise.
        padding_mode: as ``torch.nn.Conv2d``.

    Example:
        >>> import torch
        >>> pad = SamePadding((3, 3), (2, 2), (1, 1))
        >>> pad(torch.zeros(1, 4, 8, 7)).shape  # one row after; one column on either side
        torch.Size([1, 4, 9, 9])
    """

    def __init__(
        self,
        kernel_size: tuple[int, ...],
        stride: tuple[int, ...],
        dilation: tuple[int, ...],
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation, self.padding_mode = kernel_size, stride, dilation, padding_mode

    def amounts(self, size: Sequence[int]) -> list[int]:
        """Return the pixels before and after the last dimension of images of this size, then the one before it, ..."""
        amounts: list[int] = []
        for n, k, s, d in zip(size, self.kernel_size, self.stride, self.dilation, strict=True):
            outputs = -(-n // s)
            needed = max((outputs - 1) * s + d * (k - 1) + 1 - n, 0)
            amounts = [needed // 2, needed - needed // 2, *amounts]  # F.pad begins with the last dimension
        return amounts

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *size), or one image (C, *size), to as many with the padded size."""
        size = x.shape[-len(self.kernel_size) :]
        return F.pad(x, self.amounts(size), "constant" if self.padding_mode == "zeros" else self.padding_mode)

    def extra_repr(self) -> str:
        """Say what it pads for."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}"
