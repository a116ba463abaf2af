"""What the tests of `save` and `load` share: input images, the comparison of networks, and edits of a config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

NAMES = ["README.md", "config.json", "model.safetensors", "plan.json", "results.json"]
OWN_MODULE = """
from os import mkdir
from torch import nn
from torch_separable.models import CifarResNet

class Net(CifarResNet):
    def __init__(self, blocks=1, wide=False):
        super().__init__(blocks, 5, 3)
        self.wide = wide

def build(blocks=1, wide=False):
    return Net(blocks, wide)
"""


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def same(one: nn.Module, other: nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(one.eval()(images()), other.eval()(images()))


def edited(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder
