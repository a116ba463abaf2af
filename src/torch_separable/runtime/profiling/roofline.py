"""Measure the machine's peak throughput and bandwidth, with which kernels are compared."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from torch_separable._system.hardware import cache_bytes
from torch_separable.runtime.native.bindings import measure
from torch_separable.runtime.native.instruction_sets import InstructionSet

_RUNS = 5
_SECONDS = 0.01  # per run


@dataclass(frozen=True)
class Peak:
    """The parameters of a roofline (Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009).

    Attributes:
        instruction_set: the measured instruction set.
        threads: number of concurrent threads.
        gflops: GFLOP/s of multiply-adds in registers, two operations each.
        cache: read bandwidth of the level-2 caches in GB/s.
        memory: read bandwidth of memory in GB/s.
        precision: dtype of the operands, ``float32`` or ``bfloat16``.
    """

    instruction_set: str
    threads: int
    gflops: float
    cache: float
    memory: float
    precision: str = "float32"

    def attainable(self, intensity: float) -> float:
        """Return the attainable GFLOP/s at ``intensity`` FLOPs per byte read from the level-2 cache.

        Example:
            >>> Peak("avx2", 1, gflops=50.0, cache=20.0, memory=10.0).attainable(0.5)
            10.0
        """
        return min(self.gflops, self.cache * intensity)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@cache
def measured_peak(kernels: InstructionSet, threads: int) -> Peak:
    """Measure the peak, once per process, as the maximum of several runs; it takes about half a second."""
    values = torch.ones(max(4 * cache_bytes(3), 64 * 2**20) // 4)
    near = values[: threads * cache_bytes(2) // 2 // 4]
    gflops, cache, memory = (_best(kernels, threads, read) for read in (None, near, values))
    return Peak(kernels.name, threads, gflops, cache, memory, kernels.precision)


def _best(kernels: InstructionSet, threads: int, read: Tensor | None) -> float:
    """Return GFLOP/s, or GB/s of reading ``read``."""

    def timed(rounds: int, workers: int) -> tuple[float, float]:
        start = time.perf_counter()
        done = measure(kernels, rounds, workers, read)
        spent = time.perf_counter() - start
        return spent, done / spent / 1e9

    rounds = 1
    # Long enough for the wake-up time of other threads to be negligible; calibrated on one thread, without wake-ups.
    while min(timed(rounds, 1)[0] for _ in range(3)) < _SECONDS:
        rounds *= 2
    return max(timed(rounds, threads)[1] for _ in range(_RUNS))
