"""A small network, its calibration images and the expectation of an error, for the tests of `calibrate`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_separable.errors import SeparableError


def images(count: int = 16, channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(7))


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, bias=False),
        nn.Flatten(),
        nn.Linear(54, 5),
    )


def assert_same(one: nn.Module, other: nn.Module) -> None:
    others = other.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, others[name]), name


def raises(message: str, kind: type[Exception] = SeparableError) -> Any:
    return pytest.raises(kind, match=message)
