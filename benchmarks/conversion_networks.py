"""The networks that benchmarks/conversion.py compares: dense, converted, pruned, and how their figures are stored.

Torch-Pruning comes from ``pip install torch-pruning==1.6.0``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import torch_separable as ts
from provenance import provenance
from torch_separable._network.weights_file import load_weights
from torch_separable._system.files import read_json, write_json
from torch_separable.artifacts.run_directory import machine
from torch_separable.conversion import Budget
from torch_separable.conversion.planning.plan import Method
from torch_separable.conversion.planning.planner import plans
from torch_separable.data import IMAGENET_MEAN, IMAGENET_STD
from torch_separable.models import NETWORKS

RESULTS = Path(__file__).resolve().parent / "results" / "conversion.json"
CHECKPOINTS = {"resnet20": "resnet20-12fca82f.th", "resnet56": "resnet56-4bfd9763.th"}
RATIOS = {"resnet20": (1.5, 2, 3, 4, 6), "resnet56": (2, 3, 4)}
IMAGES = 1024
KINDS = ("ours", "svd", "svd + batch norm", "torch-pruning", "torch-pruning + batch norm")


class Bench:
    """The data, the dense networks, and their statistics and plans."""

    def __init__(self, data: str, checkpoints: Path) -> None:
        self.data, self.checkpoints = data, checkpoints
        self.train = ts.load_data(data, "train", mean=IMAGENET_MEAN, std=IMAGENET_STD)
        self.test = ts.load_data(data, "test", mean=IMAGENET_MEAN, std=IMAGENET_STD)
        self.images = self.train.sample(IMAGES, seed=0)

    def dense(self, name: str) -> nn.Module:
        """Build a trained dense network."""
        network = NETWORKS[name]()
        load_weights(network, self.checkpoints / CHECKPOINTS[name])
        return network.eval()

    @cache  # noqa: B019 - there is one of these in a run
    def statistics(self, name: str) -> ts.Statistics:
        """Calibrate a dense network."""
        return ts.calibrate(self.dense(name), self.images)

    @cache  # noqa: B019
    def plans(self, name: str, method: Method) -> dict[float, ts.Plan]:
        """Plan for all ratios at once, as `convert` would for each: the layers are measured for all of them."""
        budgets = [Budget(macs=1 / ratio) for ratio in RATIOS[name]]
        made = plans(self.dense(name), self.statistics(name), budgets, method=method)
        return dict(zip(RATIOS[name], made, strict=True))

    def accuracy(self, model: nn.Module) -> float:
        """Return the test accuracy in per cent."""
        return round(100 * ts.evaluate(model, self.test, progress=False).accuracy, 2)


class AveragedTeacher(nn.Module):
    """Two trained networks as one teacher: the mean of their logits, the inner features of the first."""

    def __init__(self, dense: nn.Module, helper: nn.Module) -> None:
        super().__init__()
        for name, child in dense.named_children():  # by the names under which the student's features are compared
            self.add_module(name, child)
        self.dense, self.helper = dense, helper

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits."""
        mean: Tensor = (self.dense(images) + self.helper(images)) / 2
        return mean


class Unreachable(Exception):  # noqa: N818 - a result rather than an error
    """A peer reaches no network at this share of the MACs."""


def macs_of(model: nn.Module) -> int:
    return ts.analyze(model, torch.zeros(1, 3, 32, 32)).macs


def with_batch_norm(model: nn.Module, images: Tensor) -> nn.Module:
    """Return a copy whose batch norm statistics are re-estimated on the images."""
    renewed = copy.deepcopy(model)
    update_bn(images.split(128), renewed)
    return renewed.eval()


def pruned(dense: nn.Module, share: float) -> nn.Module:
    """Return what Torch-Pruning leaves at a share of the MACs: the smallest inner channels of each block go.

    The channels between blocks stay, for these shortcuts have no parameters to be pruned with them. Pruning ratios are
    tried in steps of a hundredth (close to 1 it leaves layers unpruned that it would empty, so bisection goes astray),
    and of the networks within the share the largest is taken.
    """
    import torch_pruning as tp

    example, limit = torch.zeros(1, 3, 32, 32), share * macs_of(dense)
    best: tuple[int, nn.Module] | None = None
    for hundredths in range(1, 100):
        attempt = copy.deepcopy(dense)
        inner = {f"{name}.conv1" for name, module in attempt.named_modules() if hasattr(module, "conv2")}
        ignored = [
            module
            for name, module in attempt.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear) and name not in inner
        ]
        pruner = tp.pruner.BasePruner(
            attempt, example, importance=tp.importance.GroupMagnitudeImportance(p=2), global_pruning=True,
            pruning_ratio=hundredths / 100, ignored_layers=ignored,
        )  # fmt: skip
        pruner.step()
        macs = macs_of(attempt)
        if macs <= limit and (best is None or macs > best[0]):
            best = macs, attempt
    if best is None:
        raise Unreachable(f"Torch-Pruning reaches no network with a share of {share:.3f} of the MACs")
    return best[1].eval()


def once(key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Measure an entry that is not yet in the results, and store it with machine and provenance."""
    results = read_json(RESULTS, "results") if RESULTS.exists() else {}
    if key not in results:
        entry = measure()
        results = read_json(RESULTS, "results") if RESULTS.exists() else {}  # another run may have written meanwhile
        results[key] = {**entry, "machine": machine(), "provenance": provenance()}
        write_json(RESULTS, dict(sorted(results.items())))
        print(f"{key}: {json.dumps(entry)}", flush=True)
    return dict(results[key])


def candidates(bench: Bench, name: str, ratio: float) -> dict[str, Callable[[], nn.Module]]:
    """Return builders of the networks that are compared at one ratio."""
    dense = bench.dense(name)

    def by(method: Method) -> nn.Module:
        return ts.apply(dense, bench.plans(name, method)[ratio], bench.statistics(name))

    return {
        "ours": lambda: by("least_squares"),
        "svd": lambda: by("svd"),
        "svd + batch norm": lambda: with_batch_norm(by("svd"), bench.images),
        "torch-pruning": lambda: pruned(dense, 1 / ratio),
        "torch-pruning + batch norm": lambda: with_batch_norm(pruned(dense, 1 / ratio), bench.images),
    }
