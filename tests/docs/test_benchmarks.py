"""docs/benchmarks.md is what docs/make_benchmarks.py generates from benchmarks/results/*.json."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
SCRIPT = runpy.run_path(str(ROOT / "docs" / "make_benchmarks.py"))


def results(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))
    return document


def test_the_page_is_the_one_that_is_generated_today() -> None:
    assert SCRIPT["page"]() == PAGE, "out of date: run python docs/make_benchmarks.py"


def test_every_case_that_was_measured_is_a_row() -> None:
    cases = sum(len(entry["cases"]) for entry in results("runtime").values())
    assert len(re.findall(r"^\| [\w., -]+, \d+×\d+ \| [18] \| [12] \|", PAGE, re.MULTILINE)) == cases >= 100


def test_a_row_holds_the_measured_times() -> None:
    case = results("runtime")["mobilenet_v2-1.0-224, AMD EPYC (family 26, model 2), avx512bf16"]["cases"][0]
    times = {timing["engine"]: timing["milliseconds"] for timing in case["timings"]}
    section = PAGE.partition("### AMD Zen 5, AVX-512 with BF16")[2].partition("###")[0]
    row = re.search(r"^\| MobileNetV2 1.0, 224×224 \| 1 \| 1 \| (.*) \|$", section, re.MULTILINE)
    assert row is not None
    cells = row[1].split(" | ")
    assert cells[:2] == [f"{times['separable']:.2f}", f"{times['openvino']:.2f}"]
    peers = min(times["openvino"], times["onnxruntime"], times["channels_last"])
    assert cells[4] == f"{peers / times['separable']:.2f}"


@pytest.mark.parametrize("name", ["runtime", "conversion"])
def test_every_entry_says_when_and_how_it_was_measured(name: str) -> None:
    for key, entry in results(name).items():
        source = entry["provenance"]
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", source["date"]), key
        assert source["command"].startswith("python benchmarks/"), key
        assert source["commit"] in PAGE or key.startswith("distilled "), key


def test_a_wide_spread_is_marked() -> None:
    timing = {"milliseconds": 10.0, "quartiles": [9.0, 10.5]}
    assert SCRIPT["time"](timing) == "10.0 †"
    assert SCRIPT["time"]({**timing, "quartiles": [9.9, 10.1]}) == "10.0"
    assert SCRIPT["time"](None) == "–"
