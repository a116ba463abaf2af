"""Memory in large pages, where there is enough of it to fill some.

Networks read megabytes of weights and activations in a call. Pages of 4 KB are looked up again and again, twice over in
virtual machines, and lie anywhere, so that more of them than there is room for may compete for the same lines of the
cache. Pages of 2 MB are 512 times fewer, and what lies in one is spread over the cache evenly.
"""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

_LARGE = 2 << 20  # bytes of such a page on x86-64, and on ARM64 with pages of 4 KB
ENOUGH = _LARGE // 2  # bytes from which on a page is worth its room


def zeros(count: int, dtype: torch.dtype) -> Tensor:
    """Return ``count`` zeros (count,), where Linux gives large pages to those who ask, in such pages."""
    size = count * dtype.itemsize
    if size < ENOUGH or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(count, dtype=dtype)
    room = mmap.mmap(-1, -(-size // _LARGE) * _LARGE + _LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel that was built without them: ordinary pages hold the same
        room.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(room, dtype=torch.uint8)
    first = -whole.data_ptr() % _LARGE
    return whole[first : first + size].view(dtype)
