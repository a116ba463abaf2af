"""One writer a folder: two runs into the same place would mix their files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from torch_separable._system.files import remove_leftovers
from torch_separable.errors import SeparableError

LOCK = ".torch-separable.lock"


def is_first_process() -> bool:
    """Whether this is the first, or the only, process of its launch, as ``torchrun`` and ``accelerate`` number them."""
    return int(os.environ.get("RANK") or 0) == 0


@contextmanager
def sole_writer(folder: str | Path, *, wait: float = 0.2, leftovers_of: str | None = None) -> Iterator[None]:
    """Hold a folder for writing, and remove what a killed writer left half written in it.

    The operating system releases the lock of a process that dies, whatever it dies of. A thread that holds the folder
    may hold it once more. Of several processes of one launch, the first holds it for all.

    Args:
        folder: it is made where it does not exist, and removed again if nothing was put into it.
        wait: seconds to wait for another writer.
        leftovers_of: the file whose leftovers are removed, where others in the folder may be anybody's.

    Raises:
        SeparableError: another process is writing there, or the folder cannot be written.

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
        if outermost:  # while it is held: who finds it gone makes a new one, and nobody holds the old
            (place / LOCK).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # not empty
            for path in made if outermost else ():
                path.rmdir()
