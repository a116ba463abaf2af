"""The pipeline of the demo: train a dense network on real images, convert it, distill, measure, report."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from torch_separable._network.weights_file import save_weights
from torch_separable._system.extras import optional
from torch_separable.artifacts import run_directory
from torch_separable.bench.compare import compare, step
from torch_separable.conversion import Budget, apply, calibrate
from torch_separable.conversion.planning.planner import plans
from torch_separable.cost import analyze
from torch_separable.data import ImageData, Preparation, load_data
from torch_separable.distillation import distill, evaluate
from torch_separable.models import CifarResNet
from torch_separable.models.registry import Network
from torch_separable.report import write_report

_MACS = 0.19  # slightly below 1/5: at least 5 times fewer MACs for every choice of ranks within the budget
_CURVE = (0.6, 0.4, 0.28)  # larger budgets, converted without training, for the chart of accuracy over MACs
_CALIBRATION_IMAGES = 512
_TIMED_IMAGES = 1  # the latency of one image, as in a plan within milliseconds


def run_demo(
    output: Path, *, seed: int = 0, progress: bool = True, epochs: int = 20, distillation_epochs: int = 10
) -> dict[str, Any]:
    """Train, convert, distill and measure; write all files to ``output`` and return the results.

    The images are scikit-learn's 1,797 scans of handwritten digits. 450 of them are held out and used only for the
    reported accuracies. The dense network is a residual CNN of seven convolutions (`CifarResNet`, one block per stage).

    Args:
        output: folder for weights, plan, results and page; files of an earlier run are replaced.
        seed: random seed of initial weights, order of images and augmentation.
        progress: whether to print the current stage on standard error.
        epochs: epochs of training the dense network.
        distillation_epochs: epochs of distillation.

    Raises:
        MissingExtraError: scikit-learn, accelerate, altair or vl-convert-python is not installed (extra ``demo``).
    """
    for needed_by_the_report in ("altair", "vl_convert"):
        optional(needed_by_the_report, "demo")
    train, test = load_data("digits"), load_data("digits", "test")
    torch.manual_seed(seed)
    common: dict[str, Any] = {"batch_size": 64, "augment": ("crop",), "seed": seed, "progress": progress}
    training: list[dict[str, Any]] = []
    with _stage("training a dense network", progress):
        dense = distill(
            CifarResNet(blocks=1, num_classes=10, in_channels=1), None, train,
            epochs=epochs, learning_rate=4e-3, logits_weight=0, label_weight=1,
            on_epoch=lambda record: training.append(record.to_dict()), **common,
        )  # fmt: skip

    with _stage("converting it to depthwise separable", progress):
        statistics = calibrate(dense, train.sample(_CALIBRATION_IMAGES, seed=seed), progress=progress)
        budgets = [Budget(macs=share) for share in (_MACS, *_CURVE)]
        baselines = plans(dense, statistics, budgets, method="svd", progress=progress)
        choices = plans(dense, statistics, budgets, progress=progress)
        chosen = choices[0]
        baseline = apply(dense, baselines[0], statistics)
        converted = apply(dense, chosen, statistics, progress=progress)

    history: list[dict[str, Any]] = []
    with _stage("distilling it from the dense network", progress):
        distilled = distill(
            converted, dense, train, epochs=distillation_epochs, learning_rate=2e-3,
            on_epoch=lambda record: history.append(record.to_dict()), **common,
        )  # fmt: skip

    save_weights(dense, output / "dense.safetensors")
    arguments = {"blocks": 1, "num_classes": 10, "in_channels": 1}
    network = Network("torch_separable.models:CifarResNet", arguments, train.image_shape)
    command = shlex.join(["separable", "demo", "--output", str(output), "--seed", str(seed)])
    settings = {"data": train.describe(), "seed": seed, "budget": f"macs={_MACS}", "images": _CALIBRATION_IMAGES}
    unmeasured = {"kind": "demo", "complete": False}
    run_directory.write_run(
        output, distilled, chosen, network, settings, unmeasured, command=command, preparation=Preparation.of(train)
    )

    with _stage("measuring", progress):
        test_of = partial(_step, test=test)
        steps = [
            test_of("dense", dense, weights=output / "dense.safetensors"),
            test_of("converted by SVD (baseline)", baseline),
            test_of("converted by least squares", converted),
            test_of("after distillation", distilled, weights=output / run_directory.WEIGHTS),
        ]
        curve = [{"budget": f"macs={_MACS}", "method": "svd", **steps[1]}]
        curve.append({"budget": f"macs={_MACS}", "method": "least_squares", **steps[2]})
        for share, *both in zip(_CURVE, baselines[1:], choices[1:], strict=True):
            for other in both:
                point = test_of("converted", apply(dense, other, statistics, progress=progress))
                curve.append({"budget": f"macs={share}", "method": other.method, **point})
        compared = compare(dense, distilled, test.sample(_TIMED_IMAGES))
        results = {
            "kind": "demo",
            "complete": True,
            "title": "Handwritten digits: a dense CNN made depthwise separable",
            "data": {"train": len(train), "test": len(test), "size": list(train.image_shape)},
            "steps": steps,
            "curve": curve,
            "milliseconds": compared.times(),
            "layers": compared.layer_rows(),
            "training": training,
            "history": history,
            "machine": run_directory.machine(),
            "commands": [command],
        }
    run_directory.write_run(
        output, distilled, chosen, network, settings, results, command=command, preparation=Preparation.of(train)
    )
    write_report(output)
    return results


def _step(name: str, model: nn.Module, test: ImageData, weights: Path | None = None) -> dict[str, Any]:
    counted = analyze(model, torch.zeros(1, *test.image_shape))
    result = evaluate(model, test, progress=False)
    size = None if weights is None else weights.stat().st_size
    return step(name, counted.macs, counted.parameters, size, result.to_dict())


@contextmanager
def _stage(what: str, shown: bool) -> Iterator[None]:
    """Print the name of a stage and, at its end, its duration on standard error."""
    start = time.monotonic()
    console = Console(stderr=True, quiet=not shown)
    console.print(f"{what} ...", highlight=False)
    yield
    console.print(f"  done in {time.monotonic() - start:.0f} s", highlight=False)
