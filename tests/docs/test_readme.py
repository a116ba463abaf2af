"""The README: its code runs, its figures are the measured ones, its commands exist and its links lead somewhere."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path

import pytest

from torch_separable.runtime import available

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


class Unmeasured(doctest.OutputChecker):
    """Compares outputs apart from milliseconds and speedups, which differ between machines."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return super().check_output(self.masked(want), self.masked(got), optionflags)

    @staticmethod
    def masked(text: str) -> str:
        return re.sub(r"\d+\.\d+(?= ms\b| times as fast)", "N", text)


@pytest.mark.skipif(not available(), reason="this installation has no kernel library: no C++ compiler built it")
def test_the_code_runs_and_prints_what_the_readme_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, README.name, str(README), 0)
    complaints: list[str] = []
    runner = doctest.DocTestRunner(checker=Unmeasured(), optionflags=doctest.NORMALIZE_WHITESPACE)
    result = runner.run(test, out=complaints.append, clear_globs=False)
    assert result.attempted > 8
    assert result.failed == 0, "".join(complaints)
    assert test.globs["after"] < test.globs["before"], "the compiled network is slower than eager PyTorch"


def test_the_speedup_that_it_prints_is_that_of_its_times() -> None:
    shown = re.search(r"^([\d.]+) ms -> ([\d.]+) ms: ([\d.]+) times as fast$", README.read_text("utf-8"), re.MULTILINE)
    assert shown is not None
    before, after, times = map(float, shown.groups())
    assert before / after == pytest.approx(times, abs=0.1)


def test_the_table_holds_what_was_measured() -> None:
    results = {
        name: json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("conversion", "runtime")
    }
    dense = results["runtime"]["resnet20-32, AMD EPYC, avx512bf16"]["cases"][0]
    assert (dense["batch"], dense["threads"]) == (1, 1)
    times = {timing["engine"]: timing["milliseconds"] for timing in dense["timings"]}
    accuracy = results["conversion"]["dense resnet20"]["accuracy"]
    rows = [(1.0, accuracy, times["channels_last"]), (1.0, accuracy, times["separable"])]
    rows += [
        (entry["macs"], entry["accuracy"], entry["measured"])
        for key, entry in sorted(results["conversion"].items(), reverse=True)
        if key.startswith("latency resnet20 ")
    ]
    shown = re.findall(r"\| ([\d.]+) % \| ([\d.]+) % \| ([\d.]+) ms \|$", README.read_text("utf-8"), re.MULTILINE)
    assert shown == [(f"{100 * macs:.1f}", f"{right:.2f}", f"{time:.2f}") for macs, right, time in rows]


def test_it_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8"))
    absent = [t for t in targets if not t.startswith("http") and not (document.parent / t).exists()]
    assert absent == []


def test_targets_that_the_readme_names_are_in_the_makefile() -> None:
    named = set(re.findall(r"make ([a-z]+)", README.read_text(encoding="utf-8")))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"demo", "test"} <= named
    assert [target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_every_command_is_in_the_readme() -> None:
    from torch_separable.cli.main import app

    text = README.read_text(encoding="utf-8")
    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    assert len(names) > 5
    assert [name for name in names if f"separable {name}" not in text and f"make {name}" not in text] == []
