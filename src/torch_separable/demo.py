"""The main job, once through, on real images: train a dense network, convert it, recover, measure, report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from torch_separable import runs
from torch_separable.convert import Budget, apply, calibrate, plan
from torch_separable.cost import analyze
from torch_separable.extras import optional
from torch_separable.files import save_weights, write_json
from torch_separable.models import CifarResNet
from torch_separable.recover import ImageData, evaluate, load_data, recover
from torch_separable.report import write_report
from torch_separable.timing import interleaved

_MACS = 0.19  # a little below a fifth, so that five times fewer is kept whatever the choice of layers rounds to
_CALIBRATION_IMAGES = 512
_TIMED_IMAGES = 8


def run_demo(
    output: Path, *, seed: int = 0, progress: bool = True, epochs: int = 20, recovery_epochs: int = 10
) -> dict[str, Any]:
    """Train, convert, recover and measure; write everything to ``output`` and return the results.

    The images are scikit-learn's 1,797 scans of handwritten digits, of which 450 are held out and used for the reported
    accuracies alone. The dense network is a residual CNN of seven convolutions (`CifarResNet`, one block a stage).

    Args:
        output: folder for weights, plan, results and page; files of an earlier run are replaced.
        seed: of initial weights, order of images and augmentation.
        progress: whether to say on standard error what is being done.
        epochs: of training the dense network.
        recovery_epochs: of distillation.

    Raises:
        MissingExtraError: scikit-learn, accelerate or matplotlib are not installed (extra ``demo``).
    """
    optional("matplotlib.figure", "demo")  # what the page needs in the end
    train, test = load_data("digits"), load_data("digits", "test")
    torch.manual_seed(seed)
    common: dict[str, Any] = {"batch_size": 64, "augment": ("crop",), "seed": seed, "progress": progress}
    with _said("training a dense network", progress):
        dense = recover(
            CifarResNet(blocks=1, num_classes=10, in_channels=1), None, train,
            epochs=epochs, learning_rate=4e-3, logits_weight=0, label_weight=1, **common,
        )  # fmt: skip

    with _said("converting it to depthwise separable", progress):
        statistics = calibrate(dense, train.sample(_CALIBRATION_IMAGES, seed=seed))
        budget = Budget(macs=_MACS)
        baseline_plan = plan(dense, statistics, budget=budget, method="svd")
        baseline = apply(dense, baseline_plan, statistics)
        chosen = plan(dense, statistics, budget=budget)
        converted = apply(dense, chosen, statistics)

    history: list[dict[str, Any]] = []
    with _said("recovering its accuracy by distillation", progress):
        recovered = recover(
            converted, dense, train, epochs=recovery_epochs, learning_rate=2e-3,
            on_epoch=lambda record: history.append(record.to_dict()), **common,
        )  # fmt: skip

    save_weights(dense, output / "dense.safetensors")
    network = runs.Network("torch_separable.models:CifarResNet", {"blocks": 1, "num_classes": 10, "in_channels": 1})
    settings = {"data": train.describe(), "seed": seed, "budget": f"macs={_MACS}", "images": _CALIBRATION_IMAGES}
    runs.write_run(output, recovered, chosen, network, settings, {"kind": "demo", "complete": False})

    with _said("measuring", progress):
        results = {
            "kind": "demo",
            "complete": True,
            "title": "Handwritten digits: a dense CNN made depthwise separable",
            "data": {"train": len(train), "test": len(test), "size": list(train.image_shape)},
            "steps": [
                _step("dense", dense, test, output / "dense.safetensors"),
                _step("converted by SVD (baseline)", baseline, test),
                _step("converted by least squares", converted, test),
                _step("recovered by distillation", recovered, test, output / runs.WEIGHTS),
            ],
            "milliseconds": _times(dense, recovered, test),
            "history": history,
            "machine": runs.machine(),
            "commands": [f"separable demo --output {output} --seed {seed}"],
        }
    write_json(output / runs.RESULTS, results)
    write_report(output)
    return results


def _step(name: str, model: nn.Module, test: ImageData, weights: Path | None = None) -> dict[str, Any]:
    counted = analyze(model, torch.zeros(1, *test.image_shape))
    result = evaluate(model, test, progress=False)
    return {
        "name": name,
        "accuracy": result.accuracy,
        "correct": result.correct,
        "count": result.count,
        "macs": counted.macs,
        "parameters": counted.parameters,
        "bytes": None if weights is None else weights.stat().st_size,
    }


def _times(dense: nn.Module, separable: nn.Module, test: ImageData) -> dict[str, Any]:
    """Time both networks in turn, as PyTorch runs them: eager, in evaluation mode."""
    images = test.sample(_TIMED_IMAGES)
    dense.eval()
    separable.eval()
    with torch.inference_mode():
        times = interleaved({"dense": lambda: dense(images), "separable": lambda: separable(images)}, rounds=60)
    return {**times, "images": _TIMED_IMAGES, "rounds": 60, "threads": torch.get_num_threads()}


@contextmanager
def _said(what: str, shown: bool) -> Iterator[None]:
    start = time.monotonic()
    console = Console(stderr=True, quiet=not shown)
    console.print(f"{what} ...", highlight=False)
    yield
    console.print(f"  done in {time.monotonic() - start:.0f} s", highlight=False)
