"""Memory in large pages holds the same as any other."""

from __future__ import annotations

import gc
import mmap
import weakref

import pytest
import torch

from torch_separable.runtime.native import huge_pages
from torch_separable.runtime.native.huge_pages import ENOUGH, zeros


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("size", [0, 1000, ENOUGH, ENOUGH + 4, 5 * ENOUGH + 68])
def test_memory_is_zero_and_ones_own(dtype: torch.dtype, size: int) -> None:
    count = size // dtype.itemsize
    first, second = zeros(count, dtype), zeros(count, dtype)
    assert first.shape == (count,)
    assert first.dtype == dtype
    assert not first.any()
    first.fill_(1)
    assert not second.any()
    assert size < ENOUGH or first.data_ptr() % 4096 == 0


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="large pages are asked for on Linux alone")
def test_much_memory_is_asked_for_in_large_pages_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[weakref.ref[mmap.mmap]] = []

    class Noted(mmap.mmap):
        def madvise(self, option: int, *rest: int) -> None:
            assert option == mmap.MADV_HUGEPAGE
            asked.append(weakref.ref(self))
            raise OSError("no large pages here")  # as kernels say that were built without them

    monkeypatch.setattr(huge_pages.mmap, "mmap", Noted)
    zeros(ENOUGH // 4 - 1, torch.float32)
    assert not asked
    memory = zeros(ENOUGH // 4, torch.float32)
    assert memory.data_ptr() % (2 << 20) == 0
    memory.fill_(2.0)
    assert asked[0]() is not None
    half = memory[5:]
    del memory
    gc.collect()
    assert float(half.sum()) == 2.0 * len(half)
    del half
    gc.collect()
    assert asked[0]() is None
