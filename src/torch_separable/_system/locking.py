"""One writer per directory: two runs into the same directory would mix their files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from torch_separable._system.files import remove_leftovers
from torch_separable.errors import SeparableError

LOCK = ".torch-separable.lock"


def is_first_process() -> bool:
    """Whether this process has rank 0, as ``torchrun`` and ``accelerate`` number the processes of a launch."""
    return int(os.environ.get("RANK") or 0) == 0


@contextmanager
def sole_writer(folder: str | Path, *, wait: float = 0.2, leftovers_of: str | None = None) -> Iterator[None]:
    """Lock a directory for writing, and remove the temporary files of killed writers.

    The operating system releases the lock of a process that dies. The lock is reentrant within a thread. In a launch of
    several processes, only rank 0 takes the lock.

    Args:
        folder: created if it does not exist, and removed again if nothing was written into it.
        wait: seconds to wait for another writer.
        leftovers_of: remove only this file's temporary files, because others in the directory may belong to other
            programs; ``None`` removes all.

    Raises:
        SeparableError: another process is writing there, or the directory cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     with sole_writer(f"{place}/run"), sole_writer(f"{place}/run"):
        ...         pass
        ...     list(Path(place).iterdir())
        []
    """
    if not is_first_process():
        yield
        return
    place = Path(folder).absolute().resolve()
    made = [path for path in (place, *place.parents) if not path.exists()]
    lock = FileLock(place / LOCK, is_singleton=True)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass  # FileLock would wait where it cannot create its file, such as in /proc
        lock.acquire(timeout=wait, poll_interval=0.02)
    except Timeout as error:
        raise SeparableError(
            f"another process is writing into {folder}: wait until it has ended, or choose another folder"
        ) from error
    except OSError as error:
        raise SeparableError(f"cannot write into {folder}: {error.strerror or error}. Choose another folder") from error
    outermost = lock.lock_counter == 1
    try:
        if outermost:
            remove_leftovers(place, leftovers_of)
        yield
    finally:
        if outermost:  # unlink before the release: afterwards another process could already hold this file
            (place / LOCK).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # not empty
            for path in made if outermost else ():
                path.rmdir()
