"""Zeroed memory in huge pages of 2 MB, for weights and activations.

A call reads megabytes of both. With pages of 4 KB, address translation misses the TLB often; in a virtual machine each
miss also walks the host's page tables. The physical addresses of such pages are arbitrary, so many may map to the same
cache sets. Huge pages need 512 times fewer TLB entries, and the lines of a page are spread evenly over the cache.
"""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

_HUGE_PAGE = 2 << 20  # bytes, on x86-64, and on ARM64 with base pages of 4 KB
ENOUGH = _HUGE_PAGE // 2  # smaller tensors would leave most of a huge page unused


def zeros(count: int, dtype: torch.dtype) -> Tensor:
    """Return zeros of shape (count,), in huge pages if the tensor is large and Linux provides them on request."""
    size = count * dtype.itemsize
    if size < ENOUGH or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(count, dtype=dtype)
    pages = -(-size // _HUGE_PAGE) + 1  # one more, because the mapping need not begin at a huge page
    mapping = mmap.mmap(-1, pages * _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # this kernel was built without huge pages: use ordinary ones
        mapping.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(mapping, dtype=torch.uint8)
    first = -whole.data_ptr() % _HUGE_PAGE
    return whole[first : first + size].view(dtype)
