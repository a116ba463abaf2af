"""Layers and networks can be compiled by TorchScript."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torch_separable as ts

NORMS = {"norm_layer": nn.BatchNorm2d, "act_layer": nn.ReLU}


@pytest.mark.parametrize(
    "network",
    [
        ts.nn.DepthwiseSeparableConv2d(3, 8, 3, padding=1),
        ts.nn.DepthwiseSeparableConv2d(3, 8, 3, padding=1, order="pointwise_first", **NORMS),
        ts.nn.DepthwiseSeparableConv2d(3, 8, 3, padding="same", stride=2, **NORMS),
        ts.nn.InvertedResidual(3, 3),
        ts.nn.InvertedResidual(3, 8, stride=2, padding="same", expand_ratio=1),
        ts.nn.ShuffleUnit(3, 6, 3, stride=2, bottleneck_ratio=1),
        ts.models.mobilenet_v1(0.25, padding="same"),
        ts.models.mobilenet_v2(0.35),
        ts.models.efficientnet_lite0(),
        ts.models.resnet18(),
        ts.models.resnet50(),
        ts.models.resnet20(),
    ],
    ids=lambda network: type(network).__name__,
)
def test_scripted_network_computes_the_same(network: nn.Module) -> None:
    network.eval()
    x = torch.randn(2, 3, 33, 32, generator=torch.Generator().manual_seed(0))
    scripted = torch.jit.script(network)
    with torch.no_grad():
        torch.testing.assert_close(scripted(x), network(x))
