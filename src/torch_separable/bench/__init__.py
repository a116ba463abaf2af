"""Benchmarks: time a network in several inference engines, each in its own process with its fastest settings."""

from torch_separable.bench.engines import ENGINES
from torch_separable.bench.harness import Benchmark, Case, Timing, benchmark

__all__ = ["ENGINES", "Benchmark", "Case", "Timing", "benchmark"]
