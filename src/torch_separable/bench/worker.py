"""A process that runs one engine: ``python -m torch_separable.bench.worker DESCRIPTOR``, started by `Worker`.

The process receives a `Job` over the pipe and sends the output or an `Exception`. Then it receives a number of calls
and sends their times in milliseconds, repeatedly, until the pipe is closed.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection, Pipe
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from torch_separable.bench.engines import ENGINES, Job
from torch_separable.errors import SeparableError


class Worker:
    """The parent's end of a worker process; the process runs one round of calls at a time and sleeps in between.

    Raises:
        SeparableError: the network cannot be sent to another process, or the engine cannot run it.
    """

    def __init__(self, job: Job) -> None:
        self.engine = ENGINES[job.engine]
        self._pipe, theirs = Pipe()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        paths = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "OMP_NUM_THREADS": str(job.threads), "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the network's own code may print
            stderr=self._errors,
        )
        theirs.close()
        try:
            # Not `send`: torch makes it share the memory of tensors, which only works between forked processes.
            self._pipe.send_bytes(pickle.dumps(job))
        except BrokenPipeError:
            pass  # the process has ended; `outputs` reports why
        except Exception as error:  # objects that cannot be pickled raise many types
            self.close()
            raise SeparableError(
                f"{type(job.model).__name__} cannot be sent to another process ({error}): define its classes in a "
                "module that can be imported"
            ) from error

    def outputs(self) -> Tensor:
        """Wait until the engine is prepared, and return its outputs."""
        answer = self._answer()
        if isinstance(answer, Exception):
            raise SeparableError(str(answer)) from answer
        return torch.from_numpy(answer)

    def round(self, calls: int) -> list[float]:
        """Run the engine ``calls`` times after one untimed call, and return the milliseconds of each call."""
        self._pipe.send(calls)
        times: list[float] = self._answer()
        return times

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            code = self._process.wait()
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
            why = last[0] if last else f"exit code {code}"
            raise SeparableError(f"{self.engine.title} ended its process: {why}") from error

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def serve(connection: Connection) -> None:
    """Serve rounds of calls until the other end is closed."""
    job: Job = pickle.loads(connection.recv_bytes())  # sent by the parent process
    torch.set_num_threads(job.threads)
    with torch.inference_mode():
        try:
            call = ENGINES[job.engine].prepare(job)
            answer: Any = call().float().numpy().copy()
        except Exception as error:
            answer = SeparableError(f"{ENGINES[job.engine].title}: {_line(error)}")
        connection.send(answer)
        while True:
            try:
                calls = connection.recv()
            except EOFError:
                return
            call()
            times = []
            for _ in range(calls):
                start = time.perf_counter()
                call()
                times.append(1e3 * (time.perf_counter() - start))
            connection.send(times)


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
