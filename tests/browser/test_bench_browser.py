"""The page of a benchmark as a reader has it: a roofline that is drawn, a table that fits, names that stay text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")
pytest.importorskip("vl_convert", reason="vl-convert-python is not installed: pip install '.[report]'")
from playwright.sync_api import Page, expect

from torch_separable.artifacts import run_directory
from torch_separable.bench import Benchmark, Case, Timing
from torch_separable.report import write_report
from torch_separable.runtime import Breakdown, NodeTime, Peak

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    peak = Peak("avx2", 1, gflops=100.0, cache=80.0, memory=10.0)

    def case(macs: int, *milliseconds: float) -> Case:
        engines = ("separable", "onnxruntime", "openvino", "eager")
        timings = tuple(
            Timing(engine, "float32", ms, (ms, ms), 9, 1e-6) for engine, ms in zip(engines, milliseconds, strict=True)
        )
        return Case(1, 1, macs, timings, peak)

    dense = Benchmark(f"{SCRIPT}, dense", (3, 96, 96), 60_000_000, 9, (case(60_000_000, 1.5, 1.8, 1.7, 9.0),))
    done = Benchmark(
        SCRIPT, (3, 96, 96), 8_000_000, 9, (case(8_000_000, 0.25, 0.3, 0.4, 6.0),), (f"{SCRIPT} is absent.",), dense
    )
    nodes = [
        NodeTime(f"conv{i}", f"blocks.{i}.{SCRIPT}", kind, 0.01 * (i + 1), 200_000 * (i + 1), 30_000 * (9 - i))
        for i, kind in enumerate(["dense", *["separable"] * 6, "pointwise"])
    ]
    results: dict[str, Any] = {
        "kind": "bench",
        "title": f"{SCRIPT}: engine beside engine",
        "bench": done.to_dict(),
        "operations": Breakdown(tuple(nodes), 0.4, 1, peak).to_dict(),
    }
    run_directory.write_results(folder, results, {"rounds": 9})
    return write_report(folder)


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_the_window_and_is_accessible(
    new_page: Callable[..., Page], axe: Callable[[Page], None], report: Path, width: int, scheme: str
) -> None:
    page = new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(report.as_uri())
    expect(page.locator("#chart-roofline svg")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("summary").click()
    axe(page)


def test_every_operation_is_a_point_and_every_name_is_text(page: Page, report: Path) -> None:
    page.goto(report.as_uri())
    points = page.locator("#chart-roofline svg .mark-symbol.role-mark path")
    expect(points).to_have_count(8)
    expect(page.locator("#engines-table tbody tr")).to_have_count(8)
    assert page.locator("#engines-table tbody tr").first.inner_text().split("\t")[0] == SCRIPT
    assert page.locator("#roof-table tbody th").all_text_contents() == [f"blocks.{i}.{SCRIPT}" for i in range(8)]
    expect(page.get_by_text("Missing on this page")).to_have_count(0)
