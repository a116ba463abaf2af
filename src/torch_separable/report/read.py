"""Reading a run directory for its page: everything that can be read, and in words what cannot."""

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
    """What a run directory holds; a file that is missing or damaged is empty here, and told in ``problems``.

    Attributes:
        results: of ``results.json``.
        plan: of ``plan.json``.
        config: of ``config.json``.
        records: of ``log.jsonl``, which only a distillation writes.
        problems: a sentence for everything that is missing or damaged.
    """

    results: dict[str, Any] = field(default_factory=dict)
    plan: Plan | None = None
    config: dict[str, Any] = field(default_factory=dict)
    records: tuple[dict[str, Any], ...] = ()
    problems: tuple[str, ...] = ()


def read_run(folder: Path) -> RunFiles:
    """Read what a run left.

    Raises:
        SeparableError: there is nothing of a run in the folder.
    """
    names = (run_directory.RESULTS, run_directory.PLAN, run_directory.CONFIG, LOG)
    if not any((folder / name).exists() for name in names):
        what = "there is no such folder" if not folder.is_dir() else f"it has none of {', '.join(names)}"
        raise SeparableError(f"{folder} is not a run: {what}. Give a folder that demo, convert, distill or bench wrote")
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
    benchmark = results.get("kind") == "bench"  # which converts nothing
    document = {} if benchmark else read(run_directory.PLAN, "what was chosen for each layer, and why, is not shown")
    config = read(run_directory.CONFIG, "settings, machine and command are not shown")
    plan = None
    if document:
        try:
            plan = Plan.from_dict(document)
        except (SeparableError, TypeError) as error:
            problems.append(f"{run_directory.PLAN} is damaged ({error}): what was chosen for each layer is not shown.")
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
