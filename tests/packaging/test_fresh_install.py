"""The wheel as a user has it: in an empty environment, run from somewhere else. `make wheel-test` asks for it.

It installs PyTorch and all that the demo needs once more, which takes minutes: too long for every run of the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not os.environ.get("TORCH_SEPARABLE_WHEEL_TEST"), reason="installs PyTorch anew: make wheel-test asks for it"
)


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        command, cwd=folder, env={**clean, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_wheel_in_an_empty_environment_runs_the_demo_elsewhere(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "empty", with_pip=True, system_site_packages=False)
    python = tmp_path / "empty" / "bin" / "python"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(
        python, "-m", "pip", "install", "--quiet", f"{wheel}[demo]",
        folder=elsewhere, PIP_CONSTRAINT=str(ROOT / "constraints.txt"),
    )  # fmt: skip
    place = run(python, "-c", "import torch_separable; print(torch_separable.__file__)", folder=elsewhere)
    assert place.startswith(str(tmp_path / "empty"))
    printed = run(python.with_name("separable"), "demo", "--json", folder=elsewhere, OMP_WAIT_POLICY="PASSIVE")
    steps = {step["name"]: step for step in json.loads(printed)["steps"]}
    assert steps["after distillation"]["accuracy"] > 0.98
    assert steps["dense"]["macs"] > 5 * steps["after distillation"]["macs"]
    assert (elsewhere / "runs" / "demo" / "index.html").stat().st_size > 10_000
    assert sys.prefix not in place
