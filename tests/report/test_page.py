"""The page: one file that opens anywhere, shows the numbers of the run, and escapes what the run names."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vl_convert", reason="vl-convert-python is not installed: pip install '.[report]'")

from torch_separable.conversion.planning.plan import Latency
from torch_separable.conversion.reduction import Reduction
from torch_separable.report import RunFiles, build_page, write_report
from torch_separable.report.facts import facts_of, speed_sentence

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """The page as a browser sees it: its elements, the cells of its tables, its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.rows: list[list[str]] = []
        self.items: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables.setdefault(str(dict(attrs)["id"]), [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "li":
            self.items.append("")
        elif tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            self.scripts[-1] += data
            return
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if "li" in self.open:
            self.items[-1] += data
        if "style" not in self.open:
            self.text += data


def page_of(run: RunFiles) -> Page:
    return Page(build_page(run).html)


def specs(page: Page) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.scripts[0])
    return found


def test_numbers_on_the_page_are_those_of_the_run(run: RunFiles) -> None:
    page = page_of(run)
    assert page.tables["steps-table"][1:] == [
        ["1", "dense", "99.56 %", "11,944,576", "75,002", "305,576"],
        ["2", "converted by least squares", "97.78 %", "2,237,056", "14,266", ""],
        ["3", "after distillation", "99.33 %", "2,237,056", "14,266", "63,744"],
    ]
    assert page.items == [
        "99.33 % accuracy99.56 % → 99.33 % of 450 images",
        "5.26x fewer parameters75,002 → 14,266",
        "5.34x fewer MACs11,944,576 → 2,237,056",
        "4.79x smaller weights305,576 → 63,744 bytes",
        "4.80x as fast2.4 → 0.5 ms, compiled",
        "90 % of the MAC reduction realized5.34x fewer MACs, 4.80x the speed",
    ]
    assert page.tables["times-table"][1:] == [
        ["dense", "eager", "7.51", "1.00x"],
        ["separable", "eager", "3.22", "2.33x"],
        ["dense", "compiled", "2.4", "3.13x"],
        ["separable", "compiled", "0.5", "15.02x"],
    ]
    assert "1,347 training images; accuracies were measured on 450 held-out images" in page.text
    assert speed_sentence(facts_of(run.results)) in page.text
    assert page.tables["curve-table"][1:] == [
        ["least squares", "5,950,000", "98.89 %"],
        ["SVD of the weights (baseline)", "5,900,000", "66.67 %"],
    ]
    assert page.tables["epochs-table"][1:] == [
        ["distillation", "1", "0.5000", "90.00 %", "", "0.001"],
        ["distillation", "2", "0.2500", "95.00 %", "", "0.001"],
        ["distillation", "3", "0.1250", "97.50 %", "", "0.001"],
    ]


def test_each_layer_has_a_row_with_its_replacement(run: RunFiles) -> None:
    rows = page_of(run).tables["layers-table"][1:]
    plan = run.plan
    assert plan is not None
    assert [row[1] for row in rows] == [
        "<script>alert(1)</script>",
        "$x$&amp;",
        "pointwise",
        "everything else",
        "whole network",
    ]
    first, _, kept, rest, total = rows
    assert first[2] == f"Conv2d(3, 6, 3x3)⇒ {plan.layers[0].after}"
    assert first[3:7] == ["5,832 →to 3,240", "1.80", "168 →to 92", "3.00 →to 1.00"]
    assert first[7:] == [f"{100 * plan.layers[0].error:.2f} %", plan.layers[0].reason]
    assert kept[2:] == [
        "Conv2d(8, 4, 1x1) kept",
        "512",
        "",
        "36",
        "0.01 →to 0.02",
        "",
        "1x1: no spatial kernel to factorise",
    ]
    assert rest[2:7] == ["1 BatchNorm2d, 1 Linear", "40", "", "56", "0.50 →to 0.95"]
    assert total[3] == f"{plan.macs[0]:,} →to {plan.macs[1]:,}"
    assert total[6] == "7.51 →to 3.22"


def test_names_and_titles_are_escaped_everywhere(run: RunFiles) -> None:
    results = {**run.results, "title": "<b>Digits</b> & </title><script>alert(2)</script>"}
    results["steps"] = [
        {**one, "name": f'</script><img src=x onerror="alert({i})">'} for i, one in enumerate(results["steps"])
    ]
    built = build_page(replace(run, results=results))
    page = Page(built.html)
    assert built.problems == ()
    assert {tag for tag, _ in page.elements}.isdisjoint({"img", "b"})
    assert len(page.scripts) == 3, "the charts' data, the bundle and the page's own"
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.tables["steps-table"][2][1] == '</script><img src=x onerror="alert(1)">'
    assert "a <fast> one" in page.text
    assert "separable demo --output 'a & b'" in page.text
    data = json.dumps(specs(page), ensure_ascii=False)
    assert "<script>alert(1)</script>" in data
    assert "</script><img src=x" in data


def test_page_is_self_contained(run: RunFiles) -> None:
    html = build_page(run).html
    page = Page(html)
    assert {tag for tag, _ in page.elements}.isdisjoint({"link", "iframe", "object", "img", "base"})
    for tag, attributes in page.elements:
        assert not attributes.keys() & {"src", "href", "srcset", "action", "data", "style"}, tag
    assert not re.search(r"@import|url\(", html.partition("</style>")[0])
    assert html.startswith("<!doctype html>")
    assert '<meta charset="utf-8">' in html
    assert len(html.encode()) < 3 * 2**20
    assert html == build_page(run).html, "no clock goes into the page: the same run gives the same page"


def test_policy_names_exactly_the_pages_own_scripts(run: RunFiles) -> None:
    page = page_of(run)
    policy = next(str(a["content"]) for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    names = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in page.scripts[1:]}
    assert set(policy.partition("script-src ")[2].split()) == names
    assert policy.startswith("default-src 'none'")


def test_charts_hold_the_numbers_of_the_run(run: RunFiles) -> None:
    drawn = specs(page_of(run))
    assert set(drawn) == {"times", "shares", "accuracy", "layers", "loss", "agreement"}

    def values(name: str) -> list[dict[str, Any]]:
        return [row for rows in drawn[name]["datasets"].values() for row in rows]

    assert {(row["series"], row["macs"], row["accuracy"]) for row in values("accuracy")} == {
        ("dense", 11_944_576, 448 / 450),
        ("this run", 2_237_056, 440 / 450),
        ("this run", 2_237_056, 447 / 450),
        ("least squares", 5_950_000, 445 / 450),
        ("SVD of the weights (baseline)", 5_900_000, 300 / 450),
    }
    assert [bar["ms"] for bar in values("times")] == [7.51, 3.22, 2.4, 0.5]
    assert [(row["epoch"], row["value"]) for row in values("loss")] == [(1, 0.5), (2, 0.25), (3, 0.125)]
    layers = {(row["layer"], row["network"], row["metric"]): row["value"] for row in values("layers")}
    assert layers["$x$&amp;", "separable", "MACs"] == 3_456
    assert layers["$x$&amp;", "dense", "ms"] == 4.0
    assert layers["everything else", "dense", "parameters"] == 56
    shares = [row for row in values("shares") if row["bar"] == "ms, separable"]
    assert sum(row["share"] for row in shares) == pytest.approx(3.22 / 7.51)


def test_names_of_colours_in_charts_are_those_of_the_style(run: RunFiles) -> None:
    html = build_page(run).html
    defined = set(re.findall(r"(--[a-z0-9-]+):", html))
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", json.dumps(specs(Page(html)))))
    assert used
    assert used <= defined


def test_accuracy_that_was_not_measured_is_not_shown(run: RunFiles) -> None:
    bare = {"accuracy": None, "correct": None, "count": None}
    results = {**run.results, "kind": "convert", "conversion": {"agreement": 0.9375}}
    results["steps"] = [{**one, **bare} for one in results["steps"]]
    del results["curve"], results["data"]
    page = page_of(replace(run, results=results))
    assert page.items[0] == "93.75 % same classon held-out calibration images; accuracy was not measured"
    assert "accuracy was not measured." in page.text
    assert "accuracy" not in specs(page)
    assert [row[2] for row in page.tables["steps-table"][1:]] == ["", "", ""]


def test_run_without_times_has_no_speed(run: RunFiles) -> None:
    results = {key: value for key, value in run.results.items() if key not in ("milliseconds", "layers")}
    page = page_of(replace(run, results=results))
    assert not any("as fast" in item or "realized" in item for item in page.items)
    assert "No times were measured." in page.text
    assert "ms" not in page.tables["layers-table"][0]


def test_old_run_planned_for_the_compiled_engine_is_not_called_slower(run: RunFiles) -> None:
    """Earlier releases timed only eager PyTorch, in which the converted network may be slower."""
    assert run.plan is not None
    eager = {"dense": 0.6, "separable": 1.45, "images": 8, "rounds": 60, "threads": 1}
    old = replace(run, results={**run.results, "milliseconds": eager})
    assert "2.42x as long" in page_of(old).text
    latency = Latency(Reduction(0.715, 0.354), "compiled", 1)
    planned = page_of(replace(old, plan=replace(run.plan, latency=latency)))
    assert "2.02x as fast0.715 → 0.354 ms, compiled" in planned.items
    assert not any("as long" in item for item in planned.items)


def test_networks_that_cannot_be_compiled_are_timed_in_eager_pytorch(run: RunFiles) -> None:
    times = {**run.results["milliseconds"], "compiled": None, "problem": "no kernel library"}
    page = page_of(replace(run, results={**run.results, "milliseconds": times}))
    assert len(page.tables["times-table"]) == 3
    assert "The networks were not compiled: no kernel library." in page.text


def test_plan_without_layers_has_a_page(run: RunFiles, plan_document: dict[str, Any]) -> None:
    assert run.plan is not None
    page = page_of(replace(run, plan=replace(run.plan, layers=())))
    assert [row[1] for row in page.tables["layers-table"][1:]] == ["everything else", "whole network"]


def test_saved_network_without_measurements_has_a_page(run: RunFiles) -> None:
    built = build_page(replace(run, results={"kind": "network", "title": "Mine"}))
    assert built.problems == ()
    page = Page(built.html)
    assert "steps-table" not in page.tables
    assert [row[1] for row in page.tables["layers-table"][1:4]] == [
        "<script>alert(1)</script>",
        "$x$&amp;",
        "pointwise",
    ]


def test_page_without_the_extra_lacks_only_the_charts(run: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = page_of(run)
    monkeypatch.setitem(sys.modules, "altair", None)
    built = build_page(run)
    assert built.problems == (
        "The charts are not shown: altair is not installed: pip install 'torch-separable[report]'.",
    )
    page = Page(built.html)
    assert page.tables == whole.tables
    assert len(page.scripts) == 2
    assert built.problems[0] in page.items


def test_report_is_written_into_the_run_or_to_a_given_path(
    tmp_path: Path, results: dict[str, Any], plan_document: dict[str, Any], config: dict[str, Any]
) -> None:
    for name, document in (("results", results), ("plan", plan_document), ("config", config)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    assert write_report(tmp_path) == tmp_path / "index.html"
    assert write_report(tmp_path, tmp_path / "a" / "b.html").read_text() == (tmp_path / "index.html").read_text()
