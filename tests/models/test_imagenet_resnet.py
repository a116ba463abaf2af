"""ImageNet's residual networks against published counts, and against transformers' definition of them elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import torch_separable as ts
from torch_separable.models import resnet18, resnet34, resnet50


# Parameters and multiply-accumulates at 224x224 as torchvision's page of networks has them.
@pytest.mark.parametrize(
    ("make", "parameters", "billions"),
    [(resnet18, 11_689_512, 1.81), (resnet34, 21_797_672, 3.66), (resnet50, 25_557_032, 4.09)],
)
def test_networks_have_the_published_sizes(make: Any, parameters: int, billions: float) -> None:
    with torch.device("meta"):
        counted = ts.analyze(make().eval(), torch.zeros(1, 3, 224, 224))
    assert counted.parameters == parameters
    assert round(counted.macs / 1e9, 2) == billions
    assert not counted.uncounted


def test_names_are_those_of_torchvision() -> None:
    with torch.device("meta"):
        names = list(resnet50().state_dict())
    assert names[:2] == ["conv1.weight", "bn1.weight"]
    for name in ("layer1.0.downsample.0.weight", "layer4.2.bn3.running_var", "layer2.0.conv2.weight", "fc.bias"):
        assert name in names


def test_3x3_convolution_has_the_stride() -> None:
    with torch.device("meta"):
        block = resnet50().layer2[0]
    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((1, 1), (2, 2), (1, 1))
