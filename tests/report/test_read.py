"""A run that lacks something, or holds it damaged: what is missing is said, and the rest is shown."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torch_separable.conversion import Plan
from torch_separable.errors import SeparableError
from torch_separable.report import Page, RunFiles, build_page, read_run

Documents = dict[str, Any]


@pytest.fixture
def documents(results: Documents, plan_document: Documents, config: Documents) -> Documents:
    return {"results.json": copy.deepcopy(results), "plan.json": plan_document, "config.json": config}


@pytest.fixture
def folder(tmp_path: Path, documents: Documents) -> Path:
    for name, document in documents.items():
        (tmp_path / name).write_text(json.dumps(document))
    return tmp_path


def test_complete_run_is_read(folder: Path, documents: Documents) -> None:
    read = read_run(folder)
    assert read.problems == ()
    assert (read.results, read.config) == (documents["results.json"], documents["config.json"])
    assert read.plan == Plan.from_dict(documents["plan.json"])
    assert build_page(read).problems == ()


@pytest.mark.parametrize("name", ["results.json", "plan.json", "config.json"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is missing: "),
        (b"", "is damaged ("),
        (b'{"half', "is damaged ("),
        (b"\xff\xfe", "is damaged ("),
        (b"[" * 100_000, "is damaged ("),
        (b"[1]", "is damaged (it is not a JSON object): "),
    ],
)
def test_unreadable_file_is_reported_and_the_others_are_shown(
    folder: Path, name: str, content: bytes | None, said: str
) -> None:
    whole = read_run(folder)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    read = read_run(folder)
    assert len(read.problems) == 1
    assert read.problems[0].startswith(f"{name} {said}")
    assert read.problems[0].endswith("not shown.")
    lost = {"results.json": "results", "plan.json": "plan", "config.json": "config"}[name]
    for part in ("results", "plan", "config"):
        assert getattr(read, part) == (getattr(whole, part) if part != lost else {} if part != "plan" else None)
    page = build_page(read)
    assert page.problems == read.problems
    assert page.problems[0].split(" (")[0] in page.html


def test_plan_of_another_version_is_reported(folder: Path, documents: Documents) -> None:
    (folder / "plan.json").write_text(json.dumps({**documents["plan.json"], "version": 99}))
    (problem,) = read_run(folder).problems
    assert problem.startswith("plan.json is damaged (the plan has version 99")


@pytest.mark.parametrize("make", [lambda folder: folder, lambda folder: folder / "nowhere"])
def test_folder_without_run_files_is_refused(tmp_path: Path, make: Any) -> None:
    with pytest.raises(
        SeparableError, match=r"is not a run: .*Give a folder written by demo, convert, quantize, distill or bench"
    ):
        read_run(make(tmp_path))


def test_damaged_lines_of_the_log_are_skipped(folder: Path) -> None:
    lines = ['{"kind": "epoch", "epoch": 1}', "{half", "[3]", '{"kind": "epoch", "epoch": 2}', '{"cut']
    (folder / "log.jsonl").write_text("\n".join(lines))
    read = read_run(folder)
    assert [record["epoch"] for record in read.records] == [1, 2]
    assert read.problems == ("log.jsonl has damaged lines (3 of 5), which are left out.",)


def built(documents: Documents, path: tuple[str | int, ...], change: Callable[[Any, Any], None]) -> Page:
    """The page after one change of the results, to what stands at the end of ``path``."""
    holder: Any = documents["results.json"]
    for key in path[:-1]:
        holder = holder[key]
    change(holder, path[-1])
    return build_page(
        RunFiles(documents["results.json"], Plan.from_dict(documents["plan.json"]), documents["config.json"])
    )


BROKEN = [
    (("steps",), "none", "The headline cannot be shown: results.steps is not a list."),
    (("steps",), [], "The headline cannot be shown: results.steps has fewer than two steps."),
    (("steps", 0, "macs"), "many", "The headline cannot be shown: steps[0].macs is 'many', not a count."),
    (("steps", 0, "macs"), -5, "The headline cannot be shown: steps[0].macs is -5, not a count."),
    (("steps", 2, "macs"), 0, "The headline cannot be shown: after distillation has no MACs"),
    (("steps", 1, "accuracy"), "high", "The headline cannot be shown: steps[1].accuracy is 'high', not a number."),
    (("steps", 1, "accuracy"), float("nan"), "The headline cannot be shown: steps[1].accuracy is nan, not a number."),
    (("steps", 1), None, "The headline cannot be shown: steps[1] is None, not a JSON object."),
    (("steps", 1, "name"), ["x"], "The headline cannot be shown: steps[1].name is ['x'], not a string."),
    (("milliseconds", "separable"), 0, "The headline cannot be shown: milliseconds are not above 0."),
    (("milliseconds", "rounds"), None, "The headline cannot be shown: milliseconds.rounds is None, not a count."),
    (("milliseconds",), [1], "The headline cannot be shown: milliseconds is [1], not a JSON object."),
    (("data", "train"), "many", "The headline cannot be shown: data.train is 'many', not a count."),
    (("layers",), {}, "The layers cannot be shown: results.layers is not a list."),
    (("layers", 1, "macs"), [1], "The layers cannot be shown: layers[1].macs is [1], not two numbers."),
    (("layers", 1, "macs"), [1, -1], "The layers cannot be shown: layers[1].macs is [1, -1]: neither may be negative."),
    (("layers", 2, "name"), None, "The layers cannot be shown: layers[2].name is None, not a string."),
    (("curve", 0, "accuracy"), "low", "The curve cannot be shown: curve[0].accuracy is 'low', not a number."),
    (("curve", 0), 3, "The curve cannot be shown: curve[0] is 3, not a JSON object."),
    (("history", 1, "loss"), True, "The training cannot be shown: history[1].loss is True, not a number."),
    (("history", 1), "x", "The training cannot be shown: history[1] is 'x', not a JSON object."),
    (("history", 1, "validation"), 1, "The training cannot be shown: history[1].validation is 1, not a JSON object."),
]
SECTIONS = {"headline": "steps-table", "layers": "layers-table", "curve": "curve-table", "training": "epochs-table"}


@pytest.mark.parametrize(("path", "value", "problem"), BROKEN, ids=lambda value: str(value)[:40])
def test_invalid_value_removes_only_its_section(
    documents: Documents, path: tuple[str | int, ...], value: Any, problem: str
) -> None:
    page = built(documents, path, lambda holder, key: holder.__setitem__(key, value))
    assert page.problems[0].startswith(problem)
    lost = {text.split()[1] for text in page.problems}
    assert lost == {problem.split()[1]} | ({"layers"} if path[0] == "milliseconds" else set())
    if "headline" in lost:
        lost.add("curve")  # stands beside the steps
    for section, table in SECTIONS.items():
        assert (f'id="{table}"' in page.html) == (section not in lost)
    assert "a &lt;fast&gt; one" in page.html, "the machine"


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        (("steps", 0, "macs"), "The headline cannot be shown: steps[0] lacks macs."),
        (("steps", 1, "accuracy"), "The headline cannot be shown: steps[1] lacks accuracy."),
        (("steps",), "The headline cannot be shown: results lacks steps."),
        (("layers", 0, "type"), "The layers cannot be shown: layers[0] lacks type."),
        (("curve", 1, "method"), "The curve cannot be shown: curve[1] lacks method."),
        (("history", 0, "epoch"), "The training cannot be shown: history[0] lacks epoch."),
    ],
)
def test_missing_value_is_named(documents: Documents, path: tuple[str | int, ...], problem: str) -> None:
    assert built(documents, path, lambda holder, key: holder.__delitem__(key)).problems == (problem,)


@pytest.mark.parametrize("path", [("title",), ("kind",), ("data",), ("commands",)])
@pytest.mark.parametrize("value", [None, 7, ["x"], {"x": 1}])
def test_invalid_optional_strings_are_ignored(documents: Documents, path: tuple[str], value: Any) -> None:
    assert built(documents, path, lambda holder, key: holder.__setitem__(key, value)).problems == ()
