"""What this machine can do at best, measured: the ceilings that kernels are compared with."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from torch_separable._system.hardware import cache_bytes
from torch_separable.runtime.native.bindings import InstructionSet, measure

_TURNS = 5
_SECONDS = 0.01  # of one turn


@dataclass(frozen=True)
class Peak:
    """The ceilings of a roofline (Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009).

    Attributes:
        instruction_set: that was measured.
        threads: that ran at the same time.
        gflops: billions of operations a second of multiply-adds in registers, two for each.
        cache: gigabytes a second read from the second-level caches.
        memory: gigabytes a second read from memory.
        precision: of what is multiplied, ``float32`` or ``bfloat16``.
    """

    instruction_set: str
    threads: int
    gflops: float
    cache: float
    memory: float
    precision: str = "float32"

    def attainable(self, intensity: float) -> float:
        """Billions of operations a second that data from the cache allow at ``intensity`` operations a byte.

        Example:
            >>> Peak("avx2", 1, gflops=50.0, cache=20.0, memory=10.0).attainable(0.5)
            10.0
        """
        return min(self.gflops, self.cache * intensity)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return asdict(self)


@cache
def measured_peak(kernels: InstructionSet, threads: int) -> Peak:
    """Measure once in a process, the best of some turns: nothing makes a processor faster than it is.

    It takes about half a second.
    """
    values = torch.ones(max(4 * cache_bytes(3), 64 * 2**20) // 4)
    near = values[: threads * cache_bytes(2) // 2 // 4]
    gflops, cache, memory = (_best(kernels, threads, read) for read in (None, near, values))
    return Peak(kernels.name, threads, gflops, cache, memory, kernels.precision)


def _best(kernels: InstructionSet, threads: int, read: Tensor | None) -> float:
    """Return billions a second, of operations or of bytes."""

    def turn(rounds: int, workers: int) -> tuple[float, float]:
        start = time.perf_counter()
        done = measure(kernels, rounds, workers, read)
        spent = time.perf_counter() - start
        return spent, done / spent / 1e9

    rounds = 1
    # As many that the waking of other threads is nothing beside them; found on one thread, which need not wake.
    while min(turn(rounds, 1)[0] for _ in range(3)) < _SECONDS:
        rounds *= 2
    return max(turn(rounds, threads)[1] for _ in range(_TURNS))
