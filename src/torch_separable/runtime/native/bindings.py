"""Calls into the kernel library: run operations, count their tasks, and measure the machine's peak."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import torch

from torch_separable.errors import SeparableError
from torch_separable.runtime.native.instruction_sets import InstructionSet
from torch_separable.runtime.native.library import load
from torch_separable.runtime.native.operations import PRECISIONS, Operation, ThreadTaskLists


@cache
def parallel_for() -> ctypes.c_void_p | None:
    """Return the address of PyTorch's ``torch_parallel_for``, which uses PyTorch's threads; ``None`` if it has none."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        if (folder / name).is_file():
            library = ctypes.CDLL(str(folder / name))
            if hasattr(library, "torch_parallel_for"):
                return ctypes.cast(library.torch_parallel_for, ctypes.c_void_p)
    return None


def thread_pool() -> ctypes.c_void_p | None:
    """Choose the threads that run operations: ``None`` for the library's own pool, or PyTorch's `parallel_for`.

    ``TORCH_SEPARABLE_THREADS=torch`` chooses PyTorch's.

    Raises:
        SeparableError: The variable has another value, or this PyTorch has no ``torch_parallel_for``.
    """
    wanted = os.environ.get("TORCH_SEPARABLE_THREADS", "own")
    if wanted not in ("own", "torch"):
        raise SeparableError(f"TORCH_SEPARABLE_THREADS={wanted}: must be own or torch")
    if wanted == "torch" and parallel_for() is None:
        raise SeparableError(
            f"TORCH_SEPARABLE_THREADS=torch: PyTorch {torch.__version__} has no torch_parallel_for; unset the variable"
        )
    return parallel_for() if wanted == "torch" else None


def available_cpus() -> int:
    """Count the CPUs that this process may use, by its affinity and its control group's quota."""
    count: int = load().ts_available_cpus()
    return count


def pool_statistics() -> tuple[int, int]:
    """Count the threads that the library's pool has started, and how often one of them has joined a run."""
    library = load()
    return library.ts_pool_threads(), library.ts_pool_joined()


def tasks(operation: Operation) -> int:
    """Return the number of tasks of an operation."""
    count: int = load().ts_tasks(ctypes.addressof(operation))
    return count


def run(
    operations: ctypes.Array[Operation],
    workspace: torch.Tensor,
    external: int,
    threads: int,
    task_lists: ThreadTaskLists | None = None,
    parallel: ctypes.c_void_p | None = None,
) -> None:
    """Run prepared operations, without the global interpreter lock.

    Args:
        operations: The operations in order.
        workspace: Memory for all activations, of the operations' type.
        external: Address of the tensor that `Kind.IMPORT` reads, or 0.
        threads: Largest number of threads that take part, including the calling one.
        task_lists: Tasks of the first operations in another order, such as depth first.
        parallel: Address of a ``ts_parallel_for`` whose threads run the operations; by default that of `thread_pool`.
    """
    load().ts_run(
        ctypes.addressof(operations),
        len(operations),
        None if task_lists is None else ctypes.addressof(task_lists.parts),
        None if task_lists is None else ctypes.addressof(task_lists.ends),
        0 if task_lists is None else len(task_lists.ends),
        0 if task_lists is None else task_lists.covered,
        workspace.data_ptr(),
        external,
        threads,
        (parallel or thread_pool()) if threads > 1 else None,
    )


def measure(kernels: InstructionSet, rounds: int, threads: int, values: torch.Tensor | None = None) -> int:
    """Run multiply-adds in registers, or read memory, on each thread; the caller times the call.

    Args:
        kernels: Instruction set that computes.
        rounds: Rounds of multiply-adds, or of reading, of each thread.
        threads: Number of threads, on PyTorch's thread pool.
        values: Memory to read, divided among the threads; ``None`` to compute instead.

    Returns:
        Floating-point operations (two for each multiply-add) or bytes read, of all threads.
    """
    part = 0 if values is None else values.numel() // threads // 256 * 256  # whole vectors of any set
    done: int = load().ts_measure(
        kernels.number,
        PRECISIONS.index(kernels.dtype),
        rounds,
        None if values is None else values.data_ptr(),
        part,
        threads,
        parallel_for() if threads > 1 else None,
    )
    return done
