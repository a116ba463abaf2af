"""The log of a run: one JSON document a line, in which each record carries the step after which it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch_separable._system.files import write_text
from torch_separable.errors import SeparableError


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line.

    Raises:
        SeparableError: it cannot be written, as on a full disk.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
    except OSError as error:
        raise SeparableError(
            f"cannot write {path}: {error.strerror or error}; the last checkpoint is whole. Free space, and run again"
        ) from error


def read_records(path: Path) -> list[dict[str, Any]]:
    """All whole lines; what a kill left of a last one is passed over.

    Raises:
        SeparableError: another line is not of a log.
    """
    if not path.is_file():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    records = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            record = json.loads(line)
            known = isinstance(record, dict) and isinstance(record["kind"], str) and type(record["step"]) is int
        except (ValueError, KeyError, RecursionError):
            known = False
        if not known:
            raise SeparableError(f"line {number} of {path} is damaged: remove the line, or begin in another folder")
        records.append(record)
    return records


def keep_records(path: Path, last_step: int) -> None:
    """Drop the records of steps after ``last_step``, which a resumed run will make again."""
    kept = [record for record in read_records(path) if record["step"] <= last_step]
    write_text(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in kept))
