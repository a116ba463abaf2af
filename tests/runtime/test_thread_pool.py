"""The library's own threads: they take part, are shared by all callers, survive a fork, and keep nobody waiting."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_separable.errors import SeparableError
from torch_separable.runtime import available, compile
from torch_separable.runtime.native import bindings

pytestmark = pytest.mark.skipif(not available(), reason="the package was built without its kernel library")

under_tsan = "libtsan" in os.environ.get("LD_PRELOAD", "")


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


@pytest.mark.skipif(under_tsan, reason="ThreadSanitizer cannot see how the threads of libgomp synchronize")
def test_threads_of_pytorch_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Layers(24).eval(), torch.randn(1, 3, 32, 32)
    one, three = (compile(model, x, threads=threads) for threads in (1, 3))
    expected, before, joined = one(x), torch.get_num_threads(), bindings.pool_statistics()
    monkeypatch.setenv("TORCH_SEPARABLE_THREADS", "torch")
    torch.set_num_threads(3)
    try:
        assert torch.equal(three(x), expected)
    finally:
        torch.set_num_threads(before)
    assert bindings.pool_statistics() == joined
    monkeypatch.setenv("TORCH_SEPARABLE_THREADS", "openmp")
    with pytest.raises(SeparableError, match="TORCH_SEPARABLE_THREADS=openmp"):
        three(x)


def test_threads_of_the_librarys_pool_take_part() -> None:
    model, x = Layers(64).eval(), torch.randn(1, 3, 96, 96)
    one, three = (compile(model, x, threads=threads) for threads in (1, 3))
    expected, (_, before) = one(x), bindings.pool_statistics()
    for _ in range(200):
        assert torch.equal(three(x), expected)
        if bindings.pool_statistics()[1] > before:
            break
    threads, joined = bindings.pool_statistics()
    assert joined > before
    assert threads >= 2


def test_callers_share_the_threads_of_one_pool() -> None:
    networks = [Layers(width).eval() for width in (8, 20, 33)]
    images = torch.randn(8, 1, 3, 24, 24)
    compiled = [compile(network, images[0], threads=3) for network in networks]
    expected = [[network(image) for image in images] for network in compiled]
    before, _ = bindings.pool_statistics()
    with ThreadPoolExecutor(8) as callers:
        got = list(callers.map(lambda i: compiled[i % 3](images[i % 8]), range(240)))
    assert all(torch.equal(result, expected[i % 3][i % 8]) for i, result in enumerate(got))
    assert bindings.pool_statistics()[0] <= max(before, 2)  # each call asks for two helpers


@pytest.mark.parametrize("order", [[2], [2, 1, 0], [1, 1]])
def test_workers_that_never_come_keep_nobody_waiting(order: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    body_type = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    arguments = (ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, body_type, ctypes.c_void_p)

    @ctypes.CFUNCTYPE(ctypes.c_int32, *arguments)
    def one_after_the_other(begin: int, end: int, grain: int, body: Any, context: int) -> int:
        for worker in order:
            body(worker, worker + 1, context)
        return 0

    model, x = Layers(24).eval(), torch.randn(2, 3, 32, 32)
    one, three = (compile(model, x, threads=threads) for threads in (1, 3))
    expected = one(x)
    monkeypatch.setattr(bindings, "thread_pool", lambda: ctypes.cast(one_after_the_other, ctypes.c_void_p))
    assert torch.equal(three(x), expected)


FORK = """
import os, signal
import torch, torch_separable as ts
model, x = ts.models.mobilenet_v1(0.25).eval(), torch.randn(1, 3, 64, 64)
compiled = ts.compile(model, x, threads=3)
expected = compiled(x)
for _ in range(3):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if torch.equal(compiled(x), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(compiled(x), expected)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.skipif(under_tsan, reason="ThreadSanitizer refuses new threads in the child of a process with threads")
def test_a_child_process_has_threads_of_its_own() -> None:
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=240)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not let a program choose its CPUs")
def test_cpus_that_the_process_may_not_use_are_not_counted() -> None:
    allowed = os.sched_getaffinity(0)
    assert 1 <= bindings.available_cpus() <= len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert bindings.available_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)
