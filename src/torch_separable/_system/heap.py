"""Return freed memory to the operating system."""

from __future__ import annotations

import ctypes


def trim_heap() -> bool:
    """Return the free memory of the C library's heap to the operating system; do nothing where it offers no such call.

    glibc keeps freed blocks of up to 32 MB for later allocations, which weights that were packed do not need.

    Returns:
        Whether memory was returned.
    """
    process = ctypes.CDLL(None)
    return hasattr(process, "malloc_trim") and bool(process.malloc_trim(ctypes.c_size_t(0)))
