"""Carrying out a plan: what becomes of the network, layer by layer."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torch_separable.conversion import Plan, apply, calibrate, plan
from torch_separable.errors import SeparableError
from torch_separable.nn import DepthwiseSeparableConv1d, DepthwiseSeparableConv2d, DepthwiseSeparableConv3d

ORDERS = ["depthwise_first", "pointwise_first"]
LAYERS = {
    "3x3": nn.Conv2d(5, 6, 3, padding=1),
    "no bias": nn.Conv2d(5, 6, 3, bias=False),
    "5x5, stride": nn.Conv2d(4, 6, 5, stride=2, padding=2),
    "7x7": nn.Conv2d(2, 3, 7, padding=3),
    "1x3": nn.Conv2d(4, 6, (1, 3), padding=(0, 1)),
    "3x1, dilation": nn.Conv2d(4, 6, (3, 1), dilation=(2, 1), padding=(2, 0)),
    "groups": nn.Conv2d(6, 8, 3, padding=1, groups=2),
    "same": nn.Conv2d(4, 6, 3, padding="same"),
    "reflect": nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "replicate": nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate"),
    "circular": nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "1d": nn.Conv1d(4, 6, 3, padding=1),
    "3d": nn.Conv3d(3, 4, (3, 2, 3), padding=1),
}
SEPARABLE = (DepthwiseSeparableConv1d, DepthwiseSeparableConv2d, DepthwiseSeparableConv3d)


def images_for(conv: nn.Module) -> Tensor:
    dimensions = conv.weight.dim() - 2  # type: ignore[union-attr, operator]
    return torch.randn(16, conv.in_channels, *[9] * dimensions)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("method", ["svd", "least_squares"])
@pytest.mark.parametrize("name", LAYERS)
def test_full_rank_reproduces_the_layer(name: str, method: str, order: str) -> None:
    conv = LAYERS[name]
    net, images = nn.Sequential(conv), images_for(conv)
    statistics = calibrate(net, images)
    full = plan(net, statistics, rank=math.prod(conv.kernel_size), order=order, method=method)  # type: ignore[arg-type]
    converted = apply(net, full, statistics)
    assert isinstance(converted[0], SEPARABLE)  # type: ignore[index]
    assert net[0] is conv, "the dense network is not changed"
    with torch.no_grad():
        expected = net(images)
        torch.testing.assert_close(converted(images), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


class Shared(nn.Module):
    """One convolution at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.stages = nn.ModuleDict({"again": nn.ModuleList([nn.ReLU(), self.first])})

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.stages["again"]:  # type: ignore[union-attr, attr-defined]
            x = layer(x)
        return self.first(x)


def test_shared_layer_is_replaced_everywhere_and_counted_for_each_call() -> None:
    net, images = Shared(), torch.randn(16, 4, 8, 8)
    statistics = calibrate(net, images)
    chosen = plan(net, statistics, rank=9)
    converted = apply(net, chosen, statistics)
    assert converted.first is converted.stages["again"][1]
    assert isinstance(converted.first, DepthwiseSeparableConv2d)
    assert chosen.layers[0].macs.dense == 2 * 4 * 4 * 9 * 64
    with torch.no_grad():
        torch.testing.assert_close(converted(images), net(images), rtol=0, atol=1e-5)


def test_requires_grad_and_hooks_are_preserved() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    net[0].requires_grad_(False)
    seen: list[torch.Size] = []
    net[1].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    statistics = calibrate(net, torch.randn(16, 3, 8, 8))
    converted = apply(net, plan(net, statistics, rank=1), statistics)
    assert not any(p.requires_grad for p in converted[0].parameters())  # type: ignore[index]
    assert all(p.requires_grad for p in converted[1].parameters())  # type: ignore[index]
    seen.clear()
    converted(torch.randn(2, 3, 8, 8))
    assert seen == [torch.Size([2, 4, 4, 4])]


@pytest.mark.parametrize("method", ["svd", "least_squares"])
def test_network_rebuilt_from_a_saved_plan_loads_the_weights(method: str, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 6, 3))
    images = torch.randn(16, 3, 10, 10)
    statistics = calibrate(net, images)
    chosen = plan(net, statistics, rank=2, method=method)  # type: ignore[arg-type]
    converted = apply(net, chosen, statistics)
    chosen.save(tmp_path / "plan.json")
    rebuilt = apply(net, Plan.load(tmp_path / "plan.json"))
    rebuilt.load_state_dict(converted.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt(images), converted(images))


def test_plan_for_another_network_raises_and_names_the_first_difference() -> None:
    net, other = nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.Conv2d(3, 5, 3))
    chosen = plan(net, calibrate(net, torch.randn(16, 3, 8, 8)), rank=1)
    with pytest.raises(
        SeparableError, match=r"layer 0 has a kernel of shape \(4, 3, 3, 3\).* has \(5, 3, 3, 3\) there"
    ):
        apply(other, chosen)


def test_depthwise_and_pointwise_layers_are_skipped_with_a_reason() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3))
    chosen = plan(net, calibrate(net, torch.randn(16, 4, 9, 9)), rank=1)
    assert [layer.name for layer in chosen.converted] == ["2"]
    assert {layer.name: layer.reason for layer in chosen.layers if layer.order is None} == {
        "0": "already depthwise",
        "1": "1x1: no spatial kernel to factorise",
    }
