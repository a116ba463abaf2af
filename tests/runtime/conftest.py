"""The runtime's tests need the kernel library; if the package was built without it, they are skipped.

With ``TORCH_SEPARABLE_TEST_RUNNER`` that command runs the operations: ``runner.cpp`` with a library for another kind of
processor, emulated (``make arm64``). The package then needs no library of its own, and a run in which no test passes
fails.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import pytest
import torch
from torch import Tensor

import torch_separable.runtime
from torch_separable.runtime.native import bindings, library
from torch_separable.runtime.native import instruction_sets as native_sets
from torch_separable.runtime.native.instruction_sets import InstructionSet
from torch_separable.runtime.native.operations import PRECISIONS, Operation

RUNNER = os.environ.get("TORCH_SEPARABLE_TEST_RUNNER")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch_separable.runtime.available():  # looked up here: the runner below replaces it
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(
                pytest.mark.skip(reason="this installation has no kernel library: no C++ compiler built it")
            )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run of the other processor's kernels in which no test passed: skipped tests have tested nothing."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if RUNNER is not None and reporter is not None and not reporter.stats.get("passed") and not session.exitstatus:
        print("\nno test passed: the kernels of the test runner were not tested")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


_Body = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
_ParallelFor = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, _Body, ctypes.c_void_p)


class RunningThreads:
    """A ``parallel_for`` for the library that runs every part in a thread of its own, all of them at the same time.

    The library's own pool does not wait for its threads, so the calling thread may have done everything before one of
    them joins; PyTorch's runs all parts in the calling thread under ``torch.set_num_threads(1)``, which the tests set.
    These threads are POSIX threads that Python starts, so ThreadSanitizer, which cannot see how libgomp's threads
    synchronize, knows when they begin and end.

    Attributes:
        seen: the parts of each call, and the distinct ids of the threads that ran them.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self._function = _ParallelFor(self._parallel_for)  # ctypes does not keep it alive

    @property
    def address(self) -> ctypes.c_void_p:
        """What takes the place of the result of `bindings.thread_pool`."""
        return ctypes.cast(self._function, ctypes.c_void_p)

    def _parallel_for(self, begin: int, end: int, grain: int, body: Any, context: int) -> int:
        parts = range(begin, end, grain)
        ids: set[int] = set()
        all_started = threading.Barrier(len(parts))

        def run(first: int) -> None:
            ids.add(threading.get_native_id())
            all_started.wait(timeout=60)
            body(first, min(first + grain, end), context)

        threads = [threading.Thread(target=run, args=(first,)) for first in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.seen.append((len(parts), len(ids)))
        return 0


@pytest.fixture(scope="module")
def running_threads() -> Iterator[RunningThreads]:
    """Let the library's workers run in threads of their own, and check at the end that they did."""
    running = RunningThreads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bindings, "thread_pool", lambda: running.address)
        patch.setattr("torch_separable.runtime.prepared.parallel_for", lambda: running.address)
        yield running
    assert all(parts == threads for parts, threads in running.seen)


class Elsewhere:
    """A process with the kernels of another processor, which takes the library's place."""

    def __init__(self, command: str) -> None:
        self.process = subprocess.Popen(shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.constants: WeakValueDictionary[int, Tensor] = WeakValueDictionary()

    def ask(
        self, precision: int, operations: bytes, *others: bytes, at: int = 0, threads: int = 1, answer: int
    ) -> bytes:
        """Send a request, as runner.cpp says, and return its answer of so many bytes."""
        constants, memory, external = others or (b"", b"", b"")
        count = len(operations) // ctypes.sizeof(Operation)
        request = (precision, count, len(constants), len(memory), at, len(external) // 4, threads)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        for part in (bytes((ctypes.c_int64 * 7)(*request)), operations, constants, memory, external):
            self.process.stdin.write(part)
        self.process.stdin.flush()
        got = self.process.stdout.read(answer)
        assert len(got) == answer, "the runner has stopped"
        return got

    @cache  # noqa: B019 - it lives as long as the tests
    def instruction_sets(self, dtype: torch.dtype = torch.float32) -> dict[str, InstructionSet]:
        """Do what `library.instruction_sets` does."""
        answer = self.ask(PRECISIONS.index(dtype), b"", answer=72)
        *sizes, even_odd, paired_tail, shift = (ctypes.c_int64 * 9).from_buffer_copy(answer)
        shape = (*sizes, bool(even_odd), bool(paired_tail))
        return {"baseline": InstructionSet(0, "baseline", dtype, *shape, shift=shift)}

    def keep(self, kept: Callable[[Any, Tensor], int]) -> Callable[[Any, Tensor], int]:
        """See the constants that operations will point to."""

        def keep(builder: Any, tensor: Tensor) -> int:
            self.constants[tensor.data_ptr()] = tensor
            return kept(builder, tensor)

        return keep

    def run(
        self,
        operations: Any,
        workspace: Tensor,
        external: int,
        threads: int,
        task_lists: Any = None,
        parallel: Any = None,
    ) -> None:
        """Do what `library.run` does."""
        assert task_lists is None
        assert parallel is None
        sent, constants = type(operations)(*operations), b""
        for operation in sent:
            for params, name in operation.addresses():
                if getattr(params, name):
                    tensor = self.constants[getattr(params, name)]
                    setattr(params, name, len(constants) + 1)
                    constants += _lines(bytes(tensor.flatten().view(torch.uint8).numpy()))
        x = sent[0]
        sizes = (x.batch, x.in_channels, x.in_height, x.in_width)
        span = 1 + sum((size - 1) * stride for size, stride in zip(sizes, x.external.strides, strict=True))
        # With what is before and after the workspace, which is not to change.
        memory = torch.as_strided(workspace, (workspace.untyped_storage().nbytes() // workspace.itemsize,), (1,), 0)
        before = bytes(memory.view(torch.uint8).numpy())
        after = self.ask(
            PRECISIONS.index(workspace.dtype), bytes(sent),
            constants, _lines(before), ctypes.string_at(external, 4 * span),
            at=workspace.storage_offset() * workspace.itemsize, threads=threads, answer=len(_lines(before)),
        )  # fmt: skip
        memory.view(torch.uint8).copy_(torch.frombuffer(bytearray(after[: len(before)]), dtype=torch.uint8))


def _lines(data: bytes) -> bytes:
    """Fill up to whole cache lines."""
    return data + bytes(-len(data) % 64)


if RUNNER is not None:
    from torch_separable.runtime.planning import operation_builder, schedule

    _elsewhere = Elsewhere(RUNNER)
    bindings.run = _elsewhere.run
    torch_separable.runtime.available = library.available = lambda: True
    torch_separable.runtime.instruction_sets = native_sets.instruction_sets = _elsewhere.instruction_sets
    operation_builder.instruction_sets = _elsewhere.instruction_sets  # type: ignore[attr-defined]
    builder = operation_builder.OperationBuilder
    builder._keep = _elsewhere.keep(builder._keep)  # type: ignore[assignment, method-assign]
    # Each constant is sent by itself, so they are not to move into one allocation.
    schedule.ENOUGH = sys.maxsize  # type: ignore[attr-defined]
