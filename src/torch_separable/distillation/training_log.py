"""The log of a run: one JSON object per line, each with the optimizer step after which it was written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch_separable._system.files import write_text
from torch_separable.errors import SeparableError


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append one line.

    Raises:
        SeparableError: the file cannot be written, for example because the disk is full.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
    except OSError as error:
        raise SeparableError(
            f"cannot write {path}: {error.strerror or error}. The last checkpoint is complete: run again to resume"
        ) from error


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return all complete lines; an incomplete last line, left by a killed process, is skipped.

    Raises:
        SeparableError: another line is not a log record.
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
            raise SeparableError(f"line {number} of {path} is damaged: remove the line, or choose another folder")
        records.append(record)
    return records


def keep_records(path: Path, last_step: int) -> None:
    """Drop the records after ``last_step``, because a resumed run writes them again."""
    kept = [record for record in read_records(path) if record["step"] <= last_step]
    write_text(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in kept))
