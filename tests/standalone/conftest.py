"""Compiled files of small networks, and the library that runs them without PyTorch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from torch_separable.nn import DepthwiseSeparableConv2d
from torch_separable.runtime import Details, compile
from torch_separable.runtime.native.library import library_path

ROOT = Path(__file__).resolve().parents[2]
CLASSES = tuple(f"class {i}" for i in range(10))


@pytest.fixture(scope="session")
def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        DepthwiseSeparableConv2d(16, 24, 3, padding=1),
        DepthwiseSeparableConv2d(24, 40, 3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(40, 10),
    ).eval()
    for module in model.modules():  # so that activations neither vanish nor hide a wrong batch norm
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.02, 0.05)
    return model


@pytest.fixture(scope="session")
def saved(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network for images (3, 32, 32), for batches of 1 and 4."""
    path = tmp_path_factory.mktemp("saved") / "net.tsn"
    details = Details("small", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), CLASSES, "MIT")
    compile(network, torch.zeros(1, 3, 32, 32), threads=1).save(path, batch=(1, 4), threads=(1, 2), details=details)
    return path


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """What a program needs to find the library and the package ``separable_runtime``."""
    path = library_path()
    assert path is not None, "the package was built without its kernel library"
    return {
        **os.environ,
        "SEPARABLE_LIBRARY": str(path),
        "PYTHONPATH": str(ROOT / "python" / "separable_runtime"),
    }
