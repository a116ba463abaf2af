"""Networks that the tests of the command line name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NOT_A_FUNCTION = 3


def small(width: int = 8, classes: int = 10, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * width, classes),
    )


class Noisy(nn.Module):
    """Prints wherever its own code runs."""

    def __init__(self) -> None:
        super().__init__()
        print("noise while it is built")
        self.layers = small()

    def forward(self, x: Tensor) -> Tensor:
        print("noise while it runs")
        out: Tensor = self.layers(x)
        return out


class Interrupting(nn.Module):
    """Stands in for a person who presses Ctrl-C while the network runs for the second time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.calls = small(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            raise KeyboardInterrupt
        out: Tensor = self.layers(x)
        return out


def placed(path: str = "") -> nn.Module:
    return small()


def words() -> nn.Module:
    return nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3))


def pointwise() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


def unfinished() -> Any:
    return None


def raising() -> nn.Module:
    raise RuntimeError("the checkpoint is\nnot there")
