"""The Makefile's choice of PyTorch's build, with an index on disk instead of PyTorch's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MESSAGE = "PyTorch's CPU build cannot be fetched"
pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("nvidia-smi") is not None,
    reason="the CPU build is chosen on Linux without an NVIDIA driver",
)


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout") / ".venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder


def make(venv: Path, index: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run the Makefile's rule that installs PyTorch into the environment."""
    (venv / ".torch").unlink(missing_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment = {**kept, "PATH": f"{path}:{os.environ['PATH']}", "PIP_CONFIG_FILE": os.devnull}
    command = ["make", "--directory", str(ROOT), f"VENV={venv}", f"CPU_WHEELS={index}", f"{venv}/.torch"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def installed(venv: Path) -> list[str]:
    return [path.name for path in venv.glob("lib/python*/site-packages/torch-*.dist-info")]


def test_cpu_build_is_installed_unless_there_is_a_driver_or_no_index(venv: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    unreachable = make(venv, "http://127.0.0.1:9/simple")
    assert unreachable.returncode == 0
    assert MESSAGE in unreachable.stdout
    assert time.monotonic() - start < 60
    assert installed(venv) == []

    index = write_index(tmp_path)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert make(venv, index, path=str(tmp_path)).returncode == 0
    assert installed(venv) == []

    found = make(venv, index)
    assert found.returncode == 0
    assert MESSAGE not in found.stdout
    assert installed(venv) == [f"torch-{version()}+cpu.dist-info"]


def version() -> str:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith("torch=="))


def write_index(folder: Path) -> str:
    """Write a package index with an empty CPU build of PyTorch, and return its address."""
    name, info = f"torch-{version()}+cpu", f"torch-{version()}+cpu.dist-info"
    place = folder / "simple" / "torch"
    place.mkdir(parents=True)
    with zipfile.ZipFile(place / f"{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version()}+cpu\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    (place / "index.html").write_text(f'<a href="{name}-py3-none-any.whl">{name}-py3-none-any.whl</a>')
    return (folder / "simple").as_uri()
