"""The files that `save` writes: the card, and what a full disk or a killed process leaves."""

from __future__ import annotations

import contextlib
import json
import random
import resource
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from saving_cases import NAMES, same
from torch_separable import Conversion, SeparableError, load, save
from torch_separable.artifacts import run_directory
from torch_separable.models import resnet20
from torch_separable.models.registry import Network

WORKER = Path(__file__).with_name("saving_worker.py")


def test_card_has_the_figures_and_no_licence(tmp_path: Path, conversion: Conversion) -> None:
    save(conversion, tmp_path, results={"accuracy": 0.917})
    card = (tmp_path / "README.md").read_text()
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert "library_name: torch-separable" in front
    assert not any(line.startswith("license") for line in front.splitlines())
    (dense, macs), (before, after) = conversion.plan.macs, conversion.plan.parameters
    assert f"| MACs | {dense:,} | {macs:,} | {dense / macs:.2f}x |" in body
    assert f"| parameters | {before:,} | {after:,} | {before / after:.2f}x |" in body
    assert f"{(tmp_path / 'model.safetensors').stat().st_size:,}" in body
    assert "| accuracy | | 0.917 | |" in body
    assert 'ts.load("path/of/this/folder")' in body


def test_card_of_a_user_network_names_allow_and_escapes_text(tmp_path: Path, own_module: str) -> None:
    title = "evil | # <script> [x](y)\n---\nlicense: mit"
    results = {"title": title, "a|b\n": 1}
    save(__import__(own_module).build(), tmp_path / "n", network=f"{own_module}:build", results=results)
    card = (tmp_path / "n" / "README.md").read_text()
    assert f'ts.load("path/of/this/folder", allow=("{own_module}",))' in card
    assert r"# evil \| \# \<script\> \[x\](y) --- license: mit" in card
    assert "<script>" not in card
    assert r"| a\|b | | 1 | |" in card
    assert card.count("\n---\n") == 1


def test_edited_card_is_not_replaced(tmp_path: Path) -> None:
    save(resnet20(), tmp_path)
    card = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("mine")
    save(resnet20(), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    (tmp_path / "README.md").write_text(card.replace("# CifarResNet", "# Edited"))
    save(resnet20(), tmp_path)
    assert (tmp_path / "README.md").read_text() == card


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "distilled").mkdir()
    save(resnet20(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*NAMES, "notes.txt", "distilled"])


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100, 2000, 100_000])
def test_full_disk_keeps_the_previous_network(tmp_path: Path, size: int) -> None:
    first, second = resnet20(), resnet20()
    save(first, tmp_path)
    with files_of_at_most(size), pytest.raises(SeparableError, match=r"cannot write .*/(model|plan|config)\.\w+: "):
        save(second, tmp_path)
    assert same(load(tmp_path), first)
    assert sorted(path.name for path in tmp_path.iterdir()) == NAMES


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SeparableError, match=r"cannot write to the folder .*file.* is not a folder"):
        save(resnet20(), tmp_path / "file")


@pytest.mark.slow
def test_killed_save_leaves_a_complete_network_or_none(tmp_path: Path) -> None:
    network = runpy.run_path(str(WORKER))["network"]
    rng = random.Random(0)
    whole = 0
    for moment in range(5):
        folder = tmp_path / f"Ü {moment}"
        process = subprocess.Popen([sys.executable, str(WORKER), str(folder)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(1 + moment % 3):
            process.stdout.readline()
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.communicate()
        if (folder / run_directory.WEIGHTS).exists():
            bias = float(load(folder).linear.bias[0].detach())  # type: ignore[union-attr, operator, index]
            assert json.loads((folder / run_directory.RESULTS).read_text())["bias"] == bias
            whole += 1
        else:
            with pytest.raises(SeparableError, match="does not exist"):
                load(folder)
        save(network(3.0), folder)
        assert float(load(folder).linear.bias[0].detach()) == 3  # type: ignore[union-attr, operator, index]
    assert whole > 0


def test_interrupted_save_never_leaves_files_of_two_networks(tmp_path: Path) -> None:
    """Stops the saving at each of its renamings, as a kill there would."""
    network = runpy.run_path(str(WORKER))["network"]
    save(network(1.0), tmp_path / "before", results={"bias": 1.0})
    replace, states = Path.replace, set()
    for stop in range(12):
        folder = tmp_path / f"stop {stop}"
        shutil.copytree(tmp_path / "before", folder)
        done = 0

        def stopping(self: Path, target: Path, stop: int = stop) -> Path:
            nonlocal done
            done += 1
            if done > stop:
                raise KeyboardInterrupt
            return replace(self, target)

        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(Path, "replace", stopping)
            save(network(2.0), folder, results={"bias": 2.0})
        if (folder / run_directory.WEIGHTS).exists():
            bias = float(load(folder).linear.bias[0].detach())  # type: ignore[union-attr, operator, index]
            assert json.loads((folder / run_directory.RESULTS).read_text())["bias"] == bias
            states.add(bias)
        else:
            states.add(0)
    assert states == {0, 2}


def test_config_names_the_function_of_the_network(tmp_path: Path) -> None:
    network = Network.of("resnet20", {"num_classes": 3}, (3, 32, 32))
    assert run_directory.read_network(save(network.build(), tmp_path)) == network
