"""What a notebook shows of a result: its own numbers in well-formed tables, names as text, no colours of ours."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import torch_separable as ts
from torch_separable._console.notebook import table
from torch_separable.bench import Benchmark, Case, Timing
from torch_separable.conversion import LayerPlan
from torch_separable.distillation.evaluation import Evaluation
from torch_separable.exporting import Exported
from torch_separable.runtime.engine import Verification

ATTACK = "<script>alert('&quot;')</script>"
XML_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C"]))


class Shown(Protocol):
    def _repr_html_(self) -> str: ...


def parsed(html: str) -> ET.Element:
    """The HTML as a tree: it is well-formed, so no cell can have broken out of its place."""
    return ET.fromstring(f"<div>{html.replace('<br>', '<br/>')}</div>")


def rows(result: Shown) -> list[list[str]]:
    return [["".join(cell.itertext()) for cell in line] for line in parsed(result._repr_html_()).iter("tr")]


@pytest.fixture(scope="module")
def conversion() -> ts.Conversion:
    torch.manual_seed(0)
    layers = OrderedDict({ATTACK: nn.Conv2d(3, 16, 3), "relu": nn.ReLU(), "second": nn.Conv2d(16, 16, 3)})
    return ts.convert(nn.Sequential(layers), torch.randn(32, 3, 10, 10), rank=1)


EXPORTED = Exported(
    Path("<b>.onnx"), "onnx", 1_234, (3, 8, 8), None, 18, {"Conv": 4}, 2, True, 3.0, {"ONNX": 1e-6}, ("logits",)
)
BENCHMARK = Benchmark(
    ATTACK,
    (3, 8, 8),
    1_000_000,
    10,
    (
        Case(
            threads=2,
            batch=1,
            macs=1_000_000,
            timings=(
                Timing("eager", "float32", 2.0, (1.9, 2.2), 30, 0.0),
                Timing("separable", "float32", 0.5, (0.4, 0.6), 30, 2e-7),
            ),
            peak=None,
        ),
    ),
    (f"{ATTACK} takes no part.",),
)
RESULTS: dict[str, Shown] = {
    "benchmark": BENCHMARK,
    "verification": Verification(2.5e-7, 0.99),
    "evaluation": Evaluation(1_946, 2_000, 0.0912),
    "exported": EXPORTED,
    "explanation": ts.explain(nn.Conv2d(4, 8, 3, padding=1, groups=2), (3, 3)),
    "summary": ts.analyze(nn.Conv2d(4, 8, 3), torch.zeros(1, 4, 5, 5)),
}


@given(cells=st.lists(st.tuples(XML_TEXT, XML_TEXT), min_size=1), head=st.tuples(XML_TEXT, XML_TEXT))
def test_table_contains_every_text_unchanged(cells: list[tuple[str, str]], head: tuple[str, str]) -> None:
    shown = parsed(table(head, cells, right=[False, True], foot=head))
    texts = [tuple("".join(cell.itertext()) for cell in line) for line in shown.iter("tr")]
    assert texts == [head, *cells, head]


def test_marked_rows_are_bold() -> None:
    shown = parsed(table((), [("a",), ("b",)], marked=[False, True]))
    assert [[cell.tag for cell in line] for line in shown.iter("tr")] == [["td"], ["th"]]


def test_row_of_another_length_raises() -> None:
    with pytest.raises(ValueError, match="zip"):
        table(("one", "two"), [("alone",)])


def test_a_conversion_shows_its_plan_and_its_report(conversion: ts.Conversion) -> None:
    shown = rows(conversion)
    assert shown[0][0] == "layer"
    assert [row[0] for row in shown[1:3]] == [layer.name for layer in conversion.plan.layers] == [ATTACK, "second"]
    lines = dict(row for row in shown if len(row) == 2)
    assert lines == dict(line.split(maxsplit=1) for line in str(conversion.report).splitlines())
    macs = conversion.report.macs
    assert lines["MACs"].startswith(f"{macs.dense:,} -> {macs.converted:,} ")


def test_plan_shows_every_field_of_each_layer(conversion: ts.Conversion) -> None:
    head, first, _ = rows(conversion.plan)
    row, layer = dict(zip(head, first, strict=True)), conversion.plan.layers[0]
    assert row["dense ⇒ planned"] == f"Conv2d(3, 16, 3x3) ⇒ {layer.after}"
    assert row["MACs"] == f"{layer.macs[0]:,} → {layer.macs[1]:,}"
    assert row["MACs ÷"] == f"{layer.macs[0] / layer.macs[1]:.2f}"
    assert row["reason"] == layer.reason


def test_names_from_networks_and_files_are_escaped(conversion: ts.Conversion) -> None:
    plan = ts.Plan("svd", (LayerPlan(ATTACK, (8, 4, 3, 3), None, reason=ATTACK, dense=f"{ATTACK}\x1b[31m"),))
    for result in (conversion, conversion.plan, plan, EXPORTED, BENCHMARK):
        html = result._repr_html_()
        assert not re.search(r"<(?!/?(?:table|thead|tbody|tr|th|td|p)\b)", html)
        assert "\x1b" not in html


def test_an_evaluation_and_an_export_show_their_numbers() -> None:
    assert rows(RESULTS["evaluation"]) == [["accuracy", "97.30 % (1,946 of 2,000)"], ["loss", "0.0912"]]
    assert rows(EXPORTED)[:4] == [
        ["file", "<b>.onnx"],
        ["format", "onnx, opset 18"],
        ["input", "Nx3x8x8"],
        ["size", "1,234 bytes"],
    ]
    assert rows(EXPORTED)[-1] == ["ONNX", "differs by at most 1.0e-06 for outputs up to 3.0 (2 images)"]


def test_benchmark_lists_engines_by_speed_and_its_conclusion() -> None:
    head, *timings = rows(BENCHMARK)
    assert [dict(zip(head, row, strict=True))["ms"] for row in timings] == ["0.5", "2"]
    assert [dict(zip(head, row, strict=True))["÷ ours"] for row in timings] == ["", "4.00x"]
    said = ["".join(sentence.itertext()) for sentence in parsed(BENCHMARK._repr_html_()).iter("p")]
    assert said == [
        f"{ATTACK}, 3x8x8, 1,000,000 MACs; medians of 10 alternating rounds",
        "2 threads, batch 1",
        f"float32: 4.00x the speed of the fastest peer, {BENCHMARK.cases[0].timings[0].title}.",
        f"{ATTACK} takes no part.",
    ]


@pytest.mark.skipif(not ts.runtime.available(), reason="this installation has no kernel library")
def test_a_verification_shows_what_was_measured() -> None:
    network, images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()).eval(), torch.randn(4, 3, 6, 6)
    measured = ts.compile(network, images).verify(images)
    assert rows(measured) == [
        ["precision", "float32"],
        ["largest difference", f"{measured.error:.2g} of the outputs' scale"],
        ["same answer", "100.0 %"],
    ]


@pytest.mark.parametrize("name", RESULTS)
def test_tables_set_no_colours(name: str) -> None:
    """So they are as readable in its dark theme as in the light one."""
    tables = list(parsed(RESULTS[name]._repr_html_()).iter("table"))
    attributes = [element.attrib for shown in tables for element in shown.iter()]
    styles = {rule for found in attributes for rule in found.get("style", "").split(";") if rule}
    assert styles <= {"text-align:left", "text-align:right", "white-space:pre"}
    assert set().union(*attributes) == {"style"}
