"""The page about limits: its figures are those that were measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "conversion.json").read_text(encoding="utf-8"))


def test_accuracies_are_the_measured_ones() -> None:
    dense = RESULTS["dense resnet20"]["accuracy"]
    assert f"dense {dense:.2f} %" in PAGE
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 5
    for divisor, accuracy, lost in rows:
        measured = RESULTS[f"free resnet20 {divisor} ours"]["accuracy"]
        assert (accuracy, lost) == (f"{measured:.2f}", f"{dense - measured:.2f}")


def test_what_is_said_of_the_losses_follows_from_the_rows() -> None:
    dense = RESULTS["dense resnet20"]["accuracy"]
    lost = {divisor: dense - RESULTS[f"free resnet20 {divisor} ours"]["accuracy"] for divisor in ("1.5", "2", "6")}
    assert "Up to half of the multiply-accumulates the loss is below a point" in PAGE
    assert max(lost["1.5"], lost["2"]) < 1 < lost["6"]
