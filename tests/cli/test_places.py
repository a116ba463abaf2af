"""Commands where disks are full and names are no plain words, in processes of their own."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torch_separable._network.weights_file import read_weights

SMALL = "networks_for_cli:small"
CONVERT = f"convert {SMALL} --weights small.safetensors --data digits --images 16 --rank 1".split()
DISTILL = (
    f"distill converted --model {SMALL} --teacher small.safetensors --data digits --epochs 1 --set max_steps=6 "
    "--set checkpoint_every=1"
).split()
# Strictly the C locale: without the two ways in which Python makes UTF-8 of it.
C_LOCALE = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

pytestmark = pytest.mark.slow


def run(
    *arguments: str | Path, folder: Path, largest: int | None = None, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run the command; ``largest`` bytes are what one file may hold, as where a disk fills up."""

    def limit() -> None:
        if largest is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    return subprocess.run(
        [sys.executable, "-m", "torch_separable", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
        preexec_fn=limit,
    )


@pytest.mark.parametrize(
    ("command", "out", "largest"),
    [(CONVERT, "full-convert", 3_000), (DISTILL, "full-distill", 3_000), (DISTILL, "full-log", 100)],
)
def test_full_disk_is_one_line_and_leaves_nothing_half_written(
    place: Path, separable: Callable[..., Any], command: list[str], out: str, largest: int
) -> None:
    ended = run(*command, "-o", out, folder=place, largest=largest)
    assert ended.returncode == 2, ended.stderr
    line = ended.stderr.decode().splitlines()[-1]
    assert line.startswith("separable: error: cannot write ")
    assert f"{out}/" in line
    assert "File too large" in line
    assert "Free disk space" in line
    assert not list((place / out).glob(".*"))
    for path in (place / out).glob("*.safetensors"):
        assert read_weights(path)
    again = separable(*command, "-o", out)
    assert again.code == 0, again.err
    assert read_weights(place / out / "model.safetensors")


def test_export_onto_a_full_disk_leaves_the_file_that_was_there(place: Path) -> None:
    export = ("export", "converted", "--model", SMALL, "--to", "pt2", "-o", "full.pt2")
    assert run(*export, folder=place).returncode == 0
    before = (place / "full.pt2").read_bytes()
    ended = run(*export, folder=place, largest=5_000)
    assert ended.returncode == 2
    assert b"cannot write" in ended.stderr.splitlines()[-1]
    assert (place / "full.pt2").read_bytes() == before
    assert not list(place.glob(".*.part"))


def test_names_of_any_alphabet_are_read_and_written_where_the_locale_has_ascii_alone(place: Path) -> None:
    odd = place / "Daten größer, 数据 #1"
    odd.mkdir()
    random = np.random.default_rng(0)
    np.savez(odd / "Bilder é.npz", images=random.random((40, 32, 32), dtype=np.float32), labels=np.arange(40) % 10)
    shutil.copy(place / "small.safetensors", odd / "größer.safetensors")
    shutil.copy(place / "networks_for_cli.py", odd)
    data = ("--data", "npz:Bilder é.npz")
    steps: list[tuple[str, ...]] = [
        ("convert", SMALL, "--weights", "größer.safetensors", *data, "--rank", "1", "-o", "Läufe/一"),
        (
            "distill", "Läufe/一", "--model", SMALL, "--teacher", "größer.safetensors", *data, "--epochs", "1",
            "--hold-out", "0.2", "-o", "Läufe/二",
        ),
        ("evaluate", "Läufe/二", "--model", SMALL, *data, "--split", "train"),
        ("export", "Läufe/二", "--model", SMALL, "--to", "pt2", "-o", "Läufe/Netz ü.pt2"),
        ("report", "Läufe/二", "-o", "Läufe/Seite ß.html"),
    ]  # fmt: skip
    for step in steps:
        ended = run(*step, folder=odd, **C_LOCALE)
        assert ended.returncode == 0, (step, ended.stderr)
    assert (odd / "Läufe" / "Netz ü.pt2").is_file()
    assert (odd / "Läufe" / "Seite ß.html").stat().st_size > 10_000
    config = json.loads((odd / "Läufe" / "一" / "config.json").read_text(encoding="utf-8"))
    assert config["model"] == SMALL
    wrong = run("evaluate", "Läufe/三", "--model", SMALL, *data, folder=odd, **C_LOCALE)
    assert wrong.returncode == 2
    assert wrong.stderr.count(b"\n") == 1
