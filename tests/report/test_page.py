"""The page: one file that opens anywhere, shows the numbers of the run, and escapes what the run names."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torch_separable import runs
from torch_separable.convert import apply, calibrate, plan
from torch_separable.errors import SeparableError
from torch_separable.report import build_report, write_report

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """The page as a browser sees it: its elements, the cells of its tables, its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.cards: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "li":
            self.cards.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data
        if "li" in self.open:
            self.cards[-1] += data
        if "style" not in self.open:
            self.text += data


def test_numbers_on_the_page_are_those_of_the_results(
    results: dict[str, Any], plan_document: dict[str, Any], config: dict[str, Any]
) -> None:
    page = Page(build_report(results, plan_document, config))
    steps, layers = page.tables
    assert steps[1:] == [
        ["1", "dense", "99.56 %", "11,944,576", "75,002", "305,576"],
        ["2", "converted by least squares", "97.78 %", "2,237,056", "14,266", ""],
        ["3", "recovered by distillation", "99.33 %", "2,237,056", "14,266", "63,744"],
    ]
    macs, parameters, size, accuracy, speed = page.cards
    assert macs == "5.34x fewer MACs11,944,576 → 2,237,056"
    assert parameters == "5.26x fewer parameters75,002 → 14,266"
    assert size == "4.79x smaller file305,576 → 63,744 bytes"
    assert accuracy == "99.33 % accuracy99.56 % dense"
    assert speed == "2.33x speed7.51 → 3.22 ms"
    assert "1,347 training images, 450 held out" in page.text
    assert "The clock does not follow the arithmetic: 5.3x fewer MACs" in page.text
    for row, layer in zip(layers[1:], plan_document["layers"], strict=True):
        name, kernel, becomes, rank, dense, planned, error, reason = row
        assert name == layer["name"]
        assert kernel == "·".join(map(str, layer["weight_shape"]))
        assert reason == layer["reason"]
        if layer["order"] is None:
            assert (becomes, rank, error) == ("kept", "", "")
            continue
        assert (becomes, rank) == (layer["order"].replace("_", " "), str(layer["rank"]))
        assert (dense, planned) == tuple(f"{n:,}" for n in layer["macs"])
        assert error == f"{100 * layer['error']:.2f} %"


def test_names_and_titles_are_escaped(
    results: dict[str, Any], plan_document: dict[str, Any], config: dict[str, Any]
) -> None:
    results["title"] = "<b>Digits</b> & </title><script>alert(2)</script>"
    results["steps"][1]["name"] = '<img src=x onerror="alert(3)">'
    html = build_report(results, plan_document, config)
    page = Page(html)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "img", "b"})
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    steps, layers = page.tables
    assert [row[0] for row in layers[1:]] == ["<script>alert(1)</script>", "$x$&amp;", "pointwise"]
    assert steps[2][1] == '<img src=x onerror="alert(3)">'
    assert page.text.count("<script>alert(1)</script>") == 2, "in the table and on the axis of the figure"
    assert page.text.count("$x$&amp;") == 2
    assert "a <fast> one" in page.text
    assert "separable demo --output 'a & b'" in page.text


def test_page_needs_nothing_but_itself(
    results: dict[str, Any], plan_document: dict[str, Any], config: dict[str, Any]
) -> None:
    html = build_report(results, plan_document, config)
    page = Page(html)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "iframe", "object", "img", "base"})
    for _, attributes in page.elements:
        for name, value in attributes.items():
            if name.rpartition(":")[2] in ("src", "href", "srcset", "action", "data"):
                assert str(value).startswith("#"), (name, value)
    assert not re.search(r"@import|url\((?!#)", html)
    assert html.startswith("<!doctype html>")
    assert '<meta charset="utf-8">' in html
    assert sum(tag == "svg" for tag, _ in page.elements) == 2
    assert "generated" not in html, "no clock goes into the page: the same run gives the same page"
    assert html == build_report(results, plan_document, config)


def test_page_of_a_conversion_shows_its_report(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3))
    statistics = calibrate(model, torch.randn(16, 3, 8, 8))
    chosen = plan(model, statistics, rank=1)
    conversion = {"macs": list(chosen.macs), "parameters": list(chosen.parameters), "agreement": 0.9375}
    runs.write_run(
        tmp_path,
        apply(model, chosen, statistics),
        chosen,
        runs.Network("a:b", {}),
        {},
        {"kind": "convert", "title": "Sequential, converted", "conversion": conversion},
    )
    path = write_report(tmp_path)
    assert path == tmp_path / "index.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.cards[0] == (
        f"{chosen.macs[0] / chosen.macs[1]:.2f}x fewer MACs{chosen.macs[0]:,} → {chosen.macs[1]:,}"
    )
    assert page.cards[2] == "93.75 % same answerson the calibration images"
    assert len(page.tables) == 1
    assert write_report(tmp_path, tmp_path / "elsewhere.html").read_text() == path.read_text()


def test_run_without_times_has_no_speed(
    results: dict[str, Any], plan_document: dict[str, Any], config: dict[str, Any]
) -> None:
    del results["milliseconds"]
    page = Page(build_report(results, plan_document, config))
    assert not any("speed" in card for card in page.cards)
    assert "No times were taken." in page.text


def test_plan_without_layers_has_a_page(results: dict[str, Any], config: dict[str, Any]) -> None:
    page = Page(build_report(results, {"layers": []}, config))
    assert page.tables[1][1:] == []


ABSENT = object()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("results title", ABSENT),
        ("results data", ABSENT),
        ("results data train", "many"),
        ("results steps", []),
        ("results steps", 3),
        ("results steps 0 macs", ABSENT),
        ("results steps 2 macs", 0),
        ("results steps 1 accuracy", None),
        ("results steps 2 bytes", None),
        ("results milliseconds separable", ABSENT),
        ("results milliseconds separable", "few"),
        ("results milliseconds rounds", ABSENT),
        ("plan layers", ABSENT),
        ("plan layers", 3),
        ("plan layers 0 macs", ABSENT),
        ("plan layers 1 order", 7),
        ("plan layers 2 reason", ABSENT),
        ("config command", ABSENT),
        ("config machine", "fast"),
    ],
)
def test_files_that_lack_something_or_hold_it_otherwise_are_refused(
    results: dict[str, Any], plan_document: dict[str, Any], config: dict[str, Any], path: str, value: object
) -> None:
    documents = {"results": results, "plan": plan_document, "config": config}
    *way, last = (int(key) if key.isdecimal() else key for key in path.split())
    holder: Any = documents
    for key in way:
        holder = holder[key]
    if value is ABSENT:
        del holder[last]
    else:
        holder[last] = value
    with pytest.raises(SeparableError, match="the run's files lack something that the page shows"):
        build_report(**documents)


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SeparableError, match=r"cannot read a run's results from .*results\.json"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text("not JSON")
    with pytest.raises(SeparableError, match="is not JSON"):
        write_report(tmp_path)
    for name in ("results.json", "plan.json", "config.json"):
        (tmp_path / name).write_text(json.dumps([1]))
    with pytest.raises(SeparableError, match="the run's files lack something"):
        write_report(tmp_path)
    assert not (tmp_path / "index.html").exists()
