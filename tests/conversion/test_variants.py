"""Subclasses of convolutions that pad or compute their weight convert; functions are counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_separable as ts
from torch_separable.conversion import Budget
from torch_separable.conversion.convolutions import patches_of
from torch_separable.errors import SeparableError
from torch_separable.nn import DepthwiseSeparableConv2d
from torch_separable.nn.padding import SamePadding


class SameConv2d(nn.Conv2d):
    """TensorFlow's "same" at any stride, as timm and efficientnet-pytorch write it."""

    def forward(self, input: Tensor) -> Tensor:
        pad = SamePadding(self.kernel_size, self.stride, self.dilation)  # type: ignore[arg-type]
        return F.conv2d(pad(input), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class StdConv2d(nn.Conv2d):
    """Weight standardisation, as in timm's ResNetV2."""

    def forward(self, input: Tensor) -> Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0, eps=1e-6
        ).reshape_as(self.weight)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class StdConv2dSame(StdConv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(SamePadding(self.kernel_size, self.stride, self.dilation)(input))  # type: ignore[arg-type]


class Quantising(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, (8 * weight).round() / 8, bias)


LAYERS: dict[str, Any] = {
    "same, stride 2": lambda: SameConv2d(6, 8, 3, stride=2),
    "same, stride 2, 5x3": lambda: SameConv2d(6, 8, (5, 3), stride=(2, 1), bias=False),
    "same, dilation": lambda: SameConv2d(6, 8, 3, dilation=2),
    "standardised": lambda: StdConv2d(6, 8, 3, padding=1),
    "standardised, same": lambda: StdConv2dSame(6, 8, 3, stride=2),
    "quantising": lambda: Quantising(6, 8, 3, groups=2),
}


@pytest.mark.parametrize("size", [9, 10])
@pytest.mark.parametrize("order", ["depthwise_first", "pointwise_first"])
@pytest.mark.parametrize("name", LAYERS)
def test_variant_at_full_rank_computes_the_same(name: str, order: Any, size: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), LAYERS[name]()).eval()
    images = torch.randn(32, 3, size + 2, size + 2)
    statistics = ts.calibrate(model, images)
    plan = ts.plan(model, statistics, rank=25, order=order)
    converted = ts.apply(model, plan, statistics)
    assert [layer.name for layer in plan.converted] == ["0", "2"]
    assert isinstance(converted[2], DepthwiseSeparableConv2d)
    torch.testing.assert_close(converted(images), model(images), rtol=1e-3, atol=1e-3)
    other = torch.randn(2, 3, size + 3, size + 5)
    torch.testing.assert_close(converted(other), model(other), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", LAYERS)
def test_budget_is_planned_and_met_with_variants(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), LAYERS[name]()).eval()
    report = ts.convert(model, torch.randn(64, 3, 12, 12), budget=Budget(macs=0.8)).report
    assert report.macs.converted <= 0.8 * report.macs.dense
    assert report.output_error < 0.5


def test_patches_of_same_padding_times_the_weight_are_the_output() -> None:
    conv, inputs = SameConv2d(4, 5, 3, stride=2, bias=False), torch.randn(2, 4, 8, 9)
    patches = patches_of(conv, inputs)
    torch.testing.assert_close(torch.einsum("nhwcij,mcij->nmhw", patches, conv.weight), conv(inputs))


def test_functional_convolutions_are_counted_in_the_message() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Parameter(torch.randn(4, n, 3, 3)) for n in (3, 4))
            self.mix = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(F.conv2d(F.conv2d(x, self.first).relu(), self.second))  # type: ignore[no-any-return]

    with pytest.raises(SeparableError, match=r"Functional .*mix: 1x1.* 2 convolutions are called as a function"):
        ts.calibrate(Functional().eval(), torch.randn(16, 3, 8, 8))


def test_exported_graph_is_refused_by_its_functional_convolutions() -> None:
    dense, images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval(), torch.randn(16, 3, 8, 8)
    graph = torch.export.export(dense, (images,)).module(check_guards=False)
    with pytest.raises(SeparableError, match="2 convolutions"):
        ts.convert(graph, images, rank=1)
