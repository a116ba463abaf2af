"""The page of a benchmark: its times, its roofline, and nothing of a document that is damaged."""

from __future__ import annotations

import copy
from typing import Any

import pytest

pytest.importorskip("altair", reason="altair is not installed: pip install '.[report]'")

from torch_separable.errors import SeparableError
from torch_separable.report import RunFiles, build_page
from torch_separable.report.charts import roofline_chart
from torch_separable.report.engines import engine_cases, roof

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def document() -> dict[str, Any]:
    def timing(engine: str, title: str, milliseconds: float) -> dict[str, Any]:
        return {
            "engine": engine, "title": title, "precision": "float32", "milliseconds": milliseconds,
            "gflops": 2 / milliseconds,
        }  # fmt: skip

    peak = {"instruction_set": "avx2", "threads": 1, "gflops": 8.0, "cache": 4.0, "memory": 1.0}
    case = {"threads": 1, "batch": 8, "peak": peak, "realized_speedup": 0.5}
    case["timings"] = [timing("eager", "PyTorch eager", 4.0), timing("separable", "torch-separable", 0.5)]
    nodes = [
        {"name": "conv", "layer": SCRIPT, "kind": "separable", "milliseconds": 0.3, "flops": 6, "bytes": 2,
         "gflops": 4.0, "intensity": 3.0},
        {"name": "fc", "layer": "", "kind": "pointwise", "milliseconds": 0.1, "flops": 1, "bytes": 2, "gflops": 2.0,
         "intensity": 0.5},
        {"name": "mean", "layer": "", "kind": "mean", "milliseconds": 0.1, "flops": 0, "bytes": 2, "gflops": 0.0,
         "intensity": 0.0},
    ]  # fmt: skip
    return {
        "kind": "bench",
        "title": "A benchmark",
        "bench": {"network": SCRIPT, "cases": [case], "problems": [f"{SCRIPT} is missing."], "dense": None},
        "operations": {"nodes": nodes, "peak": dict(peak)},
    }


def test_engines_are_sorted_by_time(document: dict[str, Any]) -> None:
    (case,) = engine_cases(document)
    assert [(time.title, time.slower, time.share) for time in case.times] == [
        ("torch-separable", None, 0.5),
        ("PyTorch eager", 8.0, 0.0625),
    ]


def test_the_roof_is_the_bandwidth_up_to_the_peak(document: dict[str, Any]) -> None:
    shown = roof(document)
    assert shown is not None
    assert [node.name for node in shown.nodes] == [SCRIPT, "fc"]  # what counts no operations has no rate
    chart = roofline_chart(shown)
    assert chart is not None
    rows = [row for rows in chart.spec["datasets"].values() for row in rows]
    lines = [row for row in rows if "roof" in row]
    rates = {"from the second-level cache": 4.0, "from memory": 1.0}
    assert all(row["gflops"] == min(8.0, rates[row["roof"]] * row["intensity"]) for row in lines)
    assert {row["intensity"] for row in lines} >= {2.0, 8.0}  # where each roof becomes flat
    assert {(row["intensity"], row["gflops"]) for row in rows if "layer" in row} == {(3.0, 4.0), (0.5, 2.0)}
    assert "the peak is 8 GFLOP/s" in chart.words


def test_the_page_escapes_every_name(document: dict[str, Any]) -> None:
    page = build_page(RunFiles(document))
    assert page.problems == ()
    assert SCRIPT not in page.html
    assert page.html.count("&lt;script&gt;alert(1)") >= 3
    assert 'id="chart-roofline"' in page.html
    assert ">50 %<" in page.html


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("bench", "cases"), 3, "bench.cases is not a list"),
        (("bench", "cases", 0, "timings", 0, "milliseconds"), 0, r"bench.cases\[0\].milliseconds is 0, not above 0"),
        (("operations", "peak", "gflops"), "fast", "operations.peak.gflops is 'fast', not a number"),
        (("operations", "nodes", 0, "intensity"), -1, r"operations.nodes\[0\].intensity is -1, not above 0"),
    ],
)
def test_damaged_sections_are_left_out_and_named(
    document: dict[str, Any], where: tuple[Any, ...], value: object, message: str
) -> None:
    damaged = copy.deepcopy(document)
    holder = damaged
    for key in where[:-1]:
        holder = holder[key]
    holder[where[-1]] = value
    with pytest.raises(SeparableError, match=message):
        _ = (engine_cases(damaged), roof(damaged))
    assert len(build_page(RunFiles(damaged)).problems) == 1
