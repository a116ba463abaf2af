"""Reading a run directory for its page, with a list of the files that are missing or damaged."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch_separable._system.files import read_json
from torch_separable.artifacts import run_directory
from torch_separable.conversion import Plan
from torch_separable.errors import SeparableError

LOG = "log.jsonl"


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run directory; a missing or damaged file is empty here and listed in ``problems``.

    Attributes:
        results: contents of ``results.json``.
        plan: contents of ``plan.json``.
        config: contents of ``config.json``.
        records: lines of ``log.jsonl``, which only a distillation writes.
        problems: one sentence per missing or damaged file.
    """

    results: dict[str, Any] = field(default_factory=dict)
    plan: Plan | None = None
    config: dict[str, Any] = field(default_factory=dict)
    records: tuple[dict[str, Any], ...] = ()
    problems: tuple[str, ...] = ()


def read_run(folder: Path) -> RunFiles:
    """Read a run directory.

    Raises:
        SeparableError: the folder has none of the files of a run.
    """
    names = (run_directory.RESULTS, run_directory.PLAN, run_directory.CONFIG, LOG)
    if not any((folder / name).exists() for name in names):
        what = "there is no such folder" if not folder.is_dir() else f"it has none of {', '.join(names)}"
        raise SeparableError(
            f"{folder} is not a run: {what}. Give a folder written by demo, convert, quantize, distill or bench"
        )
    problems: list[str] = []

    def read(name: str, loss: str) -> dict[str, Any]:
        if not (folder / name).exists():
            problems.append(f"{name} is missing: {loss}.")
            return {}
        try:
            document = read_json(folder / name, name)
        except SeparableError as error:
            problems.append(f"{name} is damaged ({error.__cause__}): {loss}.")
            return {}
        if not isinstance(document, dict):
            problems.append(f"{name} is damaged (it is not a JSON object): {loss}.")
            return {}
        return document

    results = read(run_directory.RESULTS, "accuracies, sizes, times and curves are not shown")
    # A benchmark converts no network and has no plan; a quantized network has one if it was converted before.
    no_plan = results.get("kind") == "bench" or (
        "quantization" in results and not (folder / run_directory.PLAN).exists()
    )
    document = {} if no_plan else read(run_directory.PLAN, "the plan of each layer is not shown")
    config = read(run_directory.CONFIG, "settings, machine and command are not shown")
    plan = None
    if document:
        try:
            plan = Plan.from_dict(document)
        except (SeparableError, TypeError) as error:
            problems.append(f"{run_directory.PLAN} is damaged ({error}): the plan of each layer is not shown.")
    return RunFiles(results, plan, config, tuple(_records(folder / LOG, problems)), tuple(problems))


def _records(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        problems.append(f"{path.name} cannot be read ({error.strerror or error}): the training curves are not shown.")
        return []
    records, damaged = [], 0
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            damaged += 1
    if damaged:
        problems.append(f"{path.name} has damaged lines ({damaged} of {len(lines)}), which are left out.")
    return records
