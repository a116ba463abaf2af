"""docs/conversion.md explains the method: its constants are those of the code, and its figures are on another page."""

from __future__ import annotations

from pathlib import Path

from torch_separable.conversion.calibration import calibrate
from torch_separable.conversion.solvers import alternating

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "conversion.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())


def test_sampled_pixels_are_those_of_the_code() -> None:
    assert f"up to {calibrate._ENOUGH_PIXELS:,} output pixels" in TEXT
    assert f"up to {calibrate._MOST_PIXELS:,}." in TEXT


def test_conjugate_gradient_steps_are_those_of_the_code() -> None:
    assert alternating._STEPS == 3
    assert "Three steps of conjugate gradients" in TEXT


def test_results_are_on_the_page_that_is_generated() -> None:
    assert "benchmarks.md#accuracy" in PAGE
    assert "|---" not in PAGE, "tables of results belong to docs/benchmarks.md"
    assert "%" not in PAGE
