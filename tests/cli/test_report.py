"""The page of a run is its last step, and is made again whenever it is asked for."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torch_separable.data import load_data

SMALL = "networks_for_cli:small"
CONVERT = f"convert {SMALL} --weights small.safetensors --data digits --images 64 --rank 1 --quiet"


@pytest.fixture
def called(separable: Callable[..., Any]) -> Callable[[str], str]:
    def call(command: str) -> str:
        outcome = separable(*shlex.split(command))
        assert outcome.code == 0, outcome.err
        text: str = outcome.out
        return text

    return call


def results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


def test_report_makes_the_page_that_convert_left(called: Callable[[str], str], place: Path) -> None:
    left = place / "converted" / "index.html"
    assert called("report converted -o elsewhere/report.html") == "page: elsewhere/report.html\n"
    assert (place / "elsewhere" / "report.html").read_bytes() == left.read_bytes()
    before = left.read_bytes()
    left.unlink()
    assert called("report converted") == "page: converted/index.html\n"
    assert left.read_bytes() == before


def test_report_of_a_damaged_run_says_what_is_missing(called: Callable[[str], str], place: Path) -> None:
    shutil.copytree(place / "converted", place / "damaged")
    (place / "damaged" / "results.json").write_text("{")
    (place / "damaged" / "config.json").unlink()
    page, *problems = called("report damaged").splitlines()
    assert page == "page: damaged/index.html"
    assert problems[0].startswith("  results.json is damaged (")
    assert problems[1] == "  config.json is missing: settings, machine and command are not shown."
    html = (place / "damaged" / "index.html").read_text()
    assert all(problem.split(" (")[0].strip() in html for problem in problems)


def test_folder_that_is_no_run_is_refused(separable: Callable[..., Any], place: Path) -> None:
    outcome = separable("report", "nowhere")
    assert outcome.code == 2
    assert "nowhere is not a run: there is no such folder" in outcome.err
    outcome = separable("report", "converted", "-o", "small.pth/page.html")
    assert outcome.code == 2
    assert "cannot write small.pth/page.html" in outcome.err


def test_conversion_measures_both_networks(called: Callable[[str], str], place: Path) -> None:
    said = called(f"{CONVERT} -o tried --evaluate test")
    found = results(place / "tried")
    dense, converted = found["steps"]
    for one in (dense, converted):
        assert one["count"] == len(load_data("digits", "test"))
        assert f"{100 * one['accuracy']:.2f} % of {one['count']}" in said
    assert dense["macs"] == found["conversion"]["macs"][0]
    assert converted["parameters"] == found["conversion"]["parameters"][1]
    for key in ("macs", "parameters"):
        for which, one in enumerate((dense, converted)):
            assert sum(layer[key][which] for layer in found["layers"]) == one[key]
    for which, name in enumerate(("dense", "separable")):
        spent = sum(layer["milliseconds"][which] for layer in found["layers"])
        assert spent == pytest.approx(found["milliseconds"][name])


def test_conversion_leaves_accuracy_open_that_nobody_asked_for(called: Callable[[str], str], place: Path) -> None:
    assert "accuracy" not in called(f"{CONVERT} -o untried")
    assert [one["accuracy"] for one in results(place / "untried")["steps"]] == [None, None]
    assert "accuracy was not measured" in (place / "untried" / "index.html").read_text()


def test_distillation_compares_dense_converted_and_distilled(called: Callable[[str], str], place: Path) -> None:
    command = f"distill converted --model {SMALL} --teacher small.safetensors --data digits --epochs 2"
    said = called(f"{command} --set batch_size=128 --quiet -o compared")
    found = results(place / "compared")
    tried = [record["validation"]["correct"] for record in found["epochs"]]
    assert len(tried) == 3
    _, converted, distilled = found["steps"]
    assert {one["count"] for one in found["steps"]} == {450}
    assert converted["correct"] != distilled["correct"]
    assert [shlex.split(one)[1] for one in found["commands"]] == ["convert", "distill"]
    for one in found["steps"]:
        assert f"{100 * one['accuracy']:.2f} %" in said
    called(f"{command} --set batch_size=128 --quiet -o compared")  # everything is in the log already
    assert results(place / "compared")["epochs"] == found["epochs"]
