"""Workers and callers in threads that really run at the same time give what one thread gives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import pytest
import torch
from torch import Tensor, nn

from torch_separable.runtime import available, compile

pytestmark = pytest.mark.skipif(not available(), reason="the package was built without its kernel library")

under_tsan = "libtsan" in os.environ.get("LD_PRELOAD", "")


class RunningThreads(Protocol):
    """What a test reads of the fixture's value."""

    seen: Sequence[tuple[int, int]]


class Layers(nn.Module):
    """A dense, two separable and a linear layer: tiles, splits of the output channels, and means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=width), nn.ReLU(), nn.Conv2d(width, 2 * width, 1), nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width), nn.Conv2d(2 * width, width, 1),
        )  # fmt: skip
        self.classifier = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_every_worker_runs_in_a_thread_of_its_own(running_threads: RunningThreads, threads: int) -> None:
    model, x = Layers(24).eval(), torch.randn(1, 3, 32, 32)
    one, many = compile(model, x, threads=1), compile(model, x, threads=threads)
    before = len(running_threads.seen)
    assert torch.equal(many(x), one(x))
    assert running_threads.seen[before:] == [(threads, threads)]


@pytest.mark.parametrize("threads", [1, 3])
def test_eight_callers_of_one_network_get_what_one_caller_gets(running_threads: RunningThreads, threads: int) -> None:
    model, images = Layers(16).eval(), torch.randn(8, 1, 3, 24, 24)
    compiled = compile(model, images[0], threads=threads)
    expected = [compiled(image) for image in images]
    with ThreadPoolExecutor(8) as callers:
        for _ in range(5):
            got = list(callers.map(compiled, images))
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_callers_of_several_networks_do_not_disturb_each_other(running_threads: RunningThreads) -> None:
    networks = [Layers(width).eval() for width in (8, 20, 33)]
    x = torch.randn(1, 3, 24, 24)
    compiled = [compile(network, x, threads=threads) for network, threads in zip(networks, (1, 2, 3), strict=True)]
    expected = [network(x) for network in compiled]
    with ThreadPoolExecutor(6) as callers:
        got = list(callers.map(lambda i: compiled[i % 3](x), range(36)))
    assert all(torch.equal(result, expected[i % 3]) for i, result in enumerate(got))


RACE = """
import sys, threading
sys.path.insert(0, {folder!r})
import torch
import torch_separable
from conftest import RunningThreads
from torch_separable.runtime.native import bindings
from torch_separable.runtime.native.bindings import run
from torch_separable.runtime.native.instruction_sets import instruction_sets
from torch_separable.runtime.native.operations import Operation, Part, ThreadTaskLists
from torch_separable.runtime.graph.ir import Convolution, Program, Window
from torch_separable.runtime.planning.schedule import schedule

running = RunningThreads()
bindings.thread_pool = lambda: running.address
kernels = instruction_sets()["baseline"]
node = Convolution("y", "x", "y", torch.randn(32, 64, 1, 1), torch.zeros(32), Window())
shapes = dict(x=(1, 64, 24, 24), y=(1, 32, 24, 24))
plan = schedule(Program("x", (node,), shapes, dict(), frozenset(), ("y",), None), kernels, 2)
x, (step,) = torch.randn(1, 64, 24, 24), plan.steps
step.operations[0].external.strides[:] = x.stride()
workspace = torch.zeros(plan.size)
# So many repetitions that the second thread starts before the first has ended.
lists = [[Part(0, 0, 24)] * 3000, [Part(0, 0, {end})] * 3000]
run(step.operations, workspace, x.data_ptr(), 2, ThreadTaskLists.of(lists, 1))
print("done")
"""


@pytest.mark.skipif(not under_tsan, reason="make tsan runs it")
@pytest.mark.parametrize("end", [0, 24])
def test_thread_sanitizer_sees_two_threads_write_the_same_rows(end: int) -> None:
    code = RACE.format(folder=str(Path(__file__).parent), end=end)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ("data race" in done.stderr) == (end > 0), done.stderr
    assert ("done" in done.stdout) == (end == 0)
