"""The "same" padding of TensorFlow and Keras, at any stride."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class SamePadding(nn.Module):
    """Pad an input so that the following convolution returns ``ceil(size / stride)`` pixels.

    In each dimension of size ``n`` the kernel needs ``max((ceil(n/s) - 1)·s + d·(k - 1) + 1 - n, 0)`` more pixels; half
    of them, rounded down, are added before the image and the rest after it (TensorFlow's guide to convolutions,
    "SAME"). At stride 1 this is the "same" of ``torch.nn``. At stride 2 and an even size, a 3x3 kernel needs padding
    only after the image; PyTorch's ``padding=1`` would also pad before it and so sample other pixels.

    Args:
        kernel_size: ``k``, one integer for each spatial dimension.
        stride: ``s``, one integer for each spatial dimension.
        dilation: ``d``, one integer for each spatial dimension.
        padding_mode: as in ``torch.nn.Conv2d``.

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
        # TorchScript cannot index a tuple by a variable, so the loop in `_amounts` reads a list.
        self._windows = [list(window) for window in zip(kernel_size, stride, dilation, strict=True)]
        self._mode = "constant" if padding_mode == "zeros" else padding_mode

    def amounts(self, size: Sequence[int]) -> list[int]:
        """Return the padding for images of this spatial size, in the order of `torch.nn.functional.pad`."""
        return self._amounts(list(size))

    def _amounts(self, size: list[int]) -> list[int]:
        amounts: list[int] = []
        for i in range(len(size)):
            n = size[i]
            k, s, d = self._windows[i]
            outputs = -(-n // s)
            needed = max((outputs - 1) * s + d * (k - 1) + 1 - n, 0)
            amounts = [needed // 2, needed - needed // 2] + amounts
        return amounts

    def forward(self, x: Tensor) -> Tensor:
        """Pad (N, C, *size), or one image (C, *size)."""
        return F.pad(x, self._amounts(list(x.shape[-len(self._windows) :])), self._mode)

    def extra_repr(self) -> str:
        """Show kernel size and stride."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}"
