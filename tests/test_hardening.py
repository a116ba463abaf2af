"""Commands killed at a random moment, one of each; `benchmarks/hardening.py` does twenty of each."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

HARDENING: dict[str, Any] = runpy.run_path(str(Path(__file__).resolve().parents[1] / "benchmarks" / "hardening.py"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed here")
    HARDENING["prepare"](folder)
    return folder


@pytest.mark.parametrize("name", ["convert", "distill", "export"])
def test_killed_command_leaves_whole_files_and_finishes_when_it_is_run_again(place: Path, name: str) -> None:
    (outcome,) = HARDENING["survive"](name, place, moments=1, seed=3)
    assert outcome.problem is None
