"""Engine beside engine: how fast a network runs here, each in a process of its own and at its fastest settings."""

from torch_separable.bench.engines import ENGINES
from torch_separable.bench.harness import Benchmark, Case, Timing, benchmark

__all__ = ["ENGINES", "Benchmark", "Case", "Timing", "benchmark"]
