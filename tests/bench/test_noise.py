"""Noise of a benchmark is detected, and impossible shares of the peak are not shown."""

from __future__ import annotations

import json
import multiprocessing
import time
from dataclasses import replace

import pytest

from torch_separable.bench import Benchmark, Case, Timing
from torch_separable.bench.noise import CpuTimes, NoiseMeter, load_sentences
from torch_separable.report.engines import engine_cases, engine_problems
from torch_separable.runtime.profiling.roofline import Peak

FAST = Timing("separable", "float32", 0.5, (0.49, 0.51), 10, 0.0)
CASE = Case(1, 1, 1_000_000, (FAST, replace(FAST, engine="eager", milliseconds=4.0)), Peak("avx2", 1, 10.0, 5.0, 1.0))


def busy(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_shares_are_of_the_peak_unless_an_engine_exceeds_it() -> None:
    assert CASE.share_of_peak(FAST) == 0.4
    assert CASE.peak is not None
    low = replace(CASE, peak=replace(CASE.peak, gflops=1.77))  # 4 GFLOP/s would be 226 % of it
    assert [low.share_of_peak(timing) for timing in low.timings] == [None, None]
    done = Benchmark("network", (3, 8, 8), 1_000_000, 10, (low,))
    assert "226" not in str(done)
    assert "gave 2 GFLOP/s, less than an engine reached" in str(done)
    results = {"bench": json.loads(json.dumps(done.to_dict()))}
    assert [time.share for time in engine_cases(results)[0].times] == [None, None]


def test_stolen_time_and_other_processes_are_named() -> None:
    start = CpuTimes(100, 1, 200)
    assert load_sentences(start, CpuTimes(110, 1, 220), seconds=10, threads=1) == []
    (stolen,) = load_sentences(start, CpuTimes(110, 3, 220), seconds=10, threads=1)
    assert "10 %" in stolen
    (others,) = load_sentences(start, CpuTimes(120, 1, 220), seconds=10, threads=1)
    assert "1.0 cores" in others


@pytest.mark.skipif(CpuTimes.now() is None, reason="this system has no /proc/stat")
def test_busy_processes_are_noticed() -> None:
    meter = NoiseMeter(threads=1)
    workers = [multiprocessing.get_context("fork").Process(target=busy, args=(1.0,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    busy(1.0)
    for worker in workers:
        worker.join()
    sentences = " ".join(meter.sentences({"engine": (1.0, (0.99, 1.01))}))
    assert "processes used" in sentences
    assert "Load average" in sentences


def test_spread_is_named_with_its_engine_and_reaches_the_page() -> None:
    sentences = NoiseMeter(threads=64).sentences({"a": (1.0, (0.99, 1.01)), "b": (1.0, (0.9, 1.3))})
    assert any("quartiles of b are 40 %" in sentence for sentence in sentences)
    noisy = replace(CASE, noise=tuple(sentences))
    document = Benchmark("network", (3, 8, 8), 1_000_000, 10, (noisy,)).to_dict()
    assert set(sentences) <= set(engine_problems({"bench": document}))
