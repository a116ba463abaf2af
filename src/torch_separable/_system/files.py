"""Write files atomically, and read JSON.

Every file is written to a temporary file in the same directory and then renamed, so a reader sees the old file or the
new one, never part of one.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch_separable.errors import SeparableError

_ASIDE: dict[Path, Path] = {}  # temporary files that are being written now, and the files that they will replace


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path`` that replaces it when the block ends without an exception.

    If the block raises, ``path`` is unchanged and the temporary file is removed. Given a temporary file of an outer
    block, an inner block yields it unchanged. A symbolic link stays, and its target is replaced; permissions stay.

    Raises:
        SeparableError: the directory cannot be created or written, or the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder) / "a.txt") as aside:
        ...         _ = aside.write_text("whole")
        ...     [p.name for p in Path(folder).iterdir()]
        ['a.txt']
    """
    path = Path(path)
    if path in _ASIDE:
        try:
            yield path
        except OSError as error:
            raise _cannot_write(_ASIDE[path], error) from error
        return
    if path.is_symlink():
        path = path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(descriptor)
    except OSError as error:
        raise _cannot_write(path, error) from error
    aside = Path(name)
    _ASIDE[aside] = path
    try:
        yield aside
        flush(aside)
        aside.chmod(_mode_of(path))
        aside.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        del _ASIDE[aside]
        aside.unlink(missing_ok=True)


def _mode_of(path: Path) -> int:
    """Return the permissions of a file, or those that a new file gets."""
    with contextlib.suppress(FileNotFoundError):
        return stat.S_IMODE(path.stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files that killed writers left in ``folder``.

    Call it only while no other process writes there.

    Args:
        folder: the directory.
        name: the file whose temporary files are removed; ``None`` for those of all files.

    Raises:
        SeparableError: a file cannot be removed.
    """
    for leftover in folder.glob(f".{'*' if name is None else glob.escape(name)}.????????.part"):
        try:
            leftover.unlink(missing_ok=True)
        except OSError as error:
            raise _cannot_write(leftover, error) from error


def flush(path: Path) -> None:
    """Flush the file ``path`` to disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _cannot_write(path: Path, error: OSError) -> SeparableError:
    return SeparableError(
        f"cannot write {path}: {error.strerror or error}; an existing file is unchanged. "
        "Free disk space, or choose another folder"
    )


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with replacing(path) as aside:
        # The text may contain a file name that is not UTF-8; in JSON, the escape reads back as the same name.
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, document: object) -> None:
    """Write ``document`` as indented JSON, atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path, what: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        what: what it should hold, for the message.

    Raises:
        SeparableError: the file is absent, unreadable or not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SeparableError(f"cannot read {what} from {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise SeparableError(f"{path} should hold {what} as JSON, but is not JSON: {error}") from error
