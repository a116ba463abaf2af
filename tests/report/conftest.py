"""The results of a demo, made up, beside a plan that was really made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torch_separable.conversion import Plan, calibrate, plan
from torch_separable.report import RunFiles

SCRIPT = "<script>alert(1)</script>"


def step(name: str, correct: int, macs: int, parameters: int, size: int | None) -> dict[str, Any]:
    return {
        "name": name,
        "accuracy": correct / 450,
        "correct": correct,
        "count": 450,
        "macs": macs,
        "parameters": parameters,
        "bytes": size,
    }


def layer(
    name: str, kind: str, parameters: tuple[int, int], macs: tuple[int, int], milliseconds: tuple[float, float]
) -> dict[str, Any]:
    pairs = {"parameters": list(parameters), "macs": list(macs), "milliseconds": list(milliseconds)}
    return {"name": name, "type": kind, **pairs}


def epoch(number: int, loss: float, agreement: float) -> dict[str, Any]:
    record = {"kind": "epoch", "epoch": number, "step": 21 * number, "loss": loss, "agreement": agreement}
    return {**record, "learning_rate": 0.001, "seconds": 1.0, "validation": None}


@pytest.fixture
def results() -> dict[str, Any]:
    return {
        "kind": "demo",
        "complete": True,
        "title": "Digits",
        "data": {"train": 1347, "test": 450, "size": [1, 32, 32]},
        "steps": [
            step("dense", 448, 11_944_576, 75_002, 305_576),
            step("converted by least squares", 440, 2_237_056, 14_266, None),
            step("after distillation", 447, 2_237_056, 14_266, 63_744),
        ],
        "curve": [
            {"method": "svd", "budget": "macs=0.5", **step("", 300, 5_900_000, 30_000, None)},
            {"method": "least_squares", "budget": "macs=0.5", **step("", 445, 5_950_000, 31_000, None)},
        ],
        "milliseconds": {
            **{"dense": 7.51, "separable": 3.22, "compiled": {"dense": 2.4, "separable": 0.5}, "problem": ""},
            **{"images": 8, "rounds": 60, "threads": 2},
        },
        "layers": [
            layer("", "Sequential", (0, 0), (0, 0), (0.25, 0.5)),
            layer(SCRIPT, "Conv2d", (168, 92), (5_832, 3_240), (3.0, 1.0)),
            layer("norm", "BatchNorm2d", (12, 12), (0, 0), (0.25, 0.25)),
            layer("$x$&amp;", "Conv2d", (440, 220), (6_912, 3_456), (4.0, 1.25)),
            layer("pointwise", "Conv2d", (36, 36), (512, 512), (0.01, 0.02)),
            layer("head", "Linear", (44, 44), (40, 40), (0.0, 0.2)),
        ],
        "history": [epoch(1, 0.5, 0.9), epoch(2, 0.25, 0.95), epoch(3, 0.125, 0.975)],
        "machine": {},
        "commands": [],
    }


@pytest.fixture
def plan_document() -> dict[str, Any]:
    """The plan of a network whose layers have names that are markup."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module(SCRIPT, nn.Conv2d(3, 6, 3))
    model.add_module("$x$&amp;", nn.Conv2d(6, 8, 3))
    model.add_module("pointwise", nn.Conv2d(8, 4, 1))
    statistics = calibrate(model, torch.randn(16, 3, 8, 8))
    return plan(model, statistics, rank=2).to_dict()


@pytest.fixture
def config() -> dict[str, Any]:
    return {"command": "separable demo --output 'a & b'", "machine": {"processor": "a <fast> one", "threads": 2}}


@pytest.fixture
def run(results: dict[str, Any], plan_document: dict[str, Any], config: dict[str, Any]) -> RunFiles:
    return RunFiles(results, Plan.from_dict(plan_document), config)
