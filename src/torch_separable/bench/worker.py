"""A process that runs one engine: ``python -m torch_separable.bench.worker DESCRIPTOR``, started by `Worker`.

Over the pipe comes a `Job` and goes the output, or an `Exception`; then comes a number of calls and go their
milliseconds, again and again, until the pipe is closed.
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
    """A process of its own for a job; it answers one round of calls at a time, and sleeps in between.

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
            stdout=subprocess.DEVNULL,  # what a network's own code prints
            stderr=self._errors,
        )
        theirs.close()
        try:
            # Not `send`: torch has it share the tensors' memory, which only processes of one family can.
            self._pipe.send_bytes(pickle.dumps(job))
        except BrokenPipeError:
            pass  # it has ended: `outputs` says why
        except Exception as error:  # whatever a network holds that cannot be pickled
            self.close()
            raise SeparableError(
                f"{type(job.model).__name__} cannot be sent to another process ({error}): define its classes in a "
                "module that can be imported"
            ) from error

    def outputs(self) -> Tensor:
        """Wait until the engine is prepared, and return what it computes."""
        answer = self._answer()
        if isinstance(answer, Exception):
            raise SeparableError(str(answer)) from answer
        return torch.from_numpy(answer)

    def round(self, calls: int) -> list[float]:
        """Run the engine ``calls`` times, after once that does not count, and return the milliseconds of each."""
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
    """Answer until the other end is closed."""
    job: Job = pickle.loads(connection.recv_bytes())  # of the process that started this one
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
