"""timm's blocks and ours with the same weights, where timm (and the torchvision that it needs) can be imported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torch_separable.importing import import_weights
from torch_separable.models import mobilenet_v1, mobilenet_v2
from torch_separable.nn import DepthwiseSeparableConv2d, InvertedResidual

try:
    import timm
    from timm.models import _efficientnet_blocks as blocks
except Exception as error:  # torchvision's absence, or whatever it raises beside another build of PyTorch
    pytest.skip(f"timm cannot be imported here: {type(error).__name__}: {error}", allow_module_level=True)


@pytest.mark.parametrize("stride", [1, 2])
def test_blocks_compute_the_same(stride: int, trained: Any) -> None:
    x = torch.randn(2, 8, 12, 12)
    theirs = trained(blocks.InvertedResidual(8, 8, 3, stride=stride, exp_ratio=4.0, act_layer=nn.ReLU6))
    inverted = InvertedResidual(8, 8, stride=stride, expand_ratio=4).eval()
    inverted.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(inverted(x), theirs(x))
    theirs = trained(blocks.DepthwiseSeparableConv(8, 12, 3, stride=stride, act_layer=nn.ReLU, pw_act=True))
    separable = DepthwiseSeparableConv2d(
        8, 12, 3, stride=stride, padding=1, bias=False, norm_layer=nn.BatchNorm2d, act_layer=nn.ReLU
    ).eval()
    separable.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(separable(x), theirs(x))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("mobilenetv1_100", lambda: mobilenet_v1(num_classes=7, activation="relu6")),
        ("mobilenetv2_100", lambda: mobilenet_v2(num_classes=7)),
    ],
)
def test_networks_take_its_weights(name: str, make: Any, trained: Any) -> None:
    theirs, ours = trained(timm.create_model(name, num_classes=7)), make().eval()
    assert import_weights(ours, theirs).complete
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
