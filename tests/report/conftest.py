"""The results of a demo, made up, beside a plan that was really made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torch_separable.convert import calibrate, plan

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
            step("recovered by distillation", 447, 2_237_056, 14_266, 63_744),
        ],
        "milliseconds": {"dense": 7.51, "separable": 3.22, "images": 8, "rounds": 60, "threads": 2},
        "history": [],
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
