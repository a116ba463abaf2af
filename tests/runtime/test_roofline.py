"""The machine's ceilings: what is counted, and that more work is not counted for less."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from torch_separable._system.hardware import cache_bytes
from torch_separable.runtime import instruction_sets
from torch_separable.runtime.native.bindings import measure
from torch_separable.runtime.profiling.roofline import Peak, measured_peak


def test_operations_and_bytes_are_counted_over_all_threads() -> None:
    for kernels in instruction_sets().values():
        one = measure(kernels, 1, 1)
        assert one % (2 * kernels.lanes) == 0
        assert measure(kernels, 7, 3) == 21 * one
        assert measure(kernels, 2, 2, torch.zeros(4096)) == 2 * 4 * 4096


def test_roofline_is_bandwidth_then_peak() -> None:
    peak = Peak("avx2", 1, gflops=100.0, cache=50.0, memory=10.0)
    assert [peak.attainable(intensity) for intensity in (0.5, 2.0, 8.0)] == [25.0, 100.0, 100.0]


def test_the_machine_computes_and_reads() -> None:
    peak = measured_peak(next(iter(instruction_sets().values())), 1)
    assert peak.gflops > 1
    assert peak.cache > 0.1
    assert peak.memory > 0.1
    assert Peak(**peak.to_dict()) == peak


@pytest.mark.parametrize("level", [2, 3])
def test_cache_sizes_are_what_the_system_says_or_usual_ones(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_bytes(level) >= 64 * 1024
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    assert cache_bytes.__wrapped__(level) == {2: 512 * 1024, 3: 16 * 2**20}[level]
