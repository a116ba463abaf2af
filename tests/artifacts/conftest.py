"""Fixtures of the tests of saved networks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from saving_cases import OWN_MODULE, images
from torch_separable import Budget, Conversion, convert
from torch_separable.models import resnet20


@pytest.fixture(scope="module")
def conversion() -> Conversion:
    torch.manual_seed(0)
    dense = resnet20(num_classes=7)
    for module in dense.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return convert(dense, images(8), budget=Budget(macs=0.4), method="svd")


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the user, importable and not yet imported."""
    (tmp_path / "importable").mkdir()
    (tmp_path / "importable" / "own_networks.py").write_text(OWN_MODULE)
    monkeypatch.syspath_prepend(tmp_path / "importable")
    yield "own_networks"
    sys.modules.pop("own_networks", None)
