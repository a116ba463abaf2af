"""MobileNet against its paper (arXiv 1704.04861): what it costs, and the arithmetic of that by closed form.

The straight count below is of the real network: all multiply-accumulates of convolutions and classifier, and their
weights. The paper rounds it, apart from these rows:

- Conv MobileNet's 4866 M leaves away the classifier's 1.0 M, which the 569 M beside it have in them;
- at resolutions below 224 the paper multiplies the *rounded whole* by ρ² (section 3.4: "reducing computational cost by
  ρ²"), which scales the classifier as well, though that sees one pixel at any resolution. It shows where the two rules
  round differently: 290 M and not 291 M at 160, 76 M and not 77 M for 0.5 at 160.

Parameters are weights without batch norms and biases: tables 4 to 7 allow either, table 2's shares and table 9's 1.32 M
only this.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import torch_separable as ts
from torch_separable.models import MobileNetV1, conv_mobilenet, mobilenet_v1

# (type, kernel, in, out, groups, output size at 224): table 1 of the paper, row by row.
TABLE_1 = [
    ("conv", 3, 3, 32, 1, 112),
    *[("dw", 3, 32, 32, 32, 112), ("pw", 1, 32, 64, 1, 112)],
    *[("dw", 3, 64, 64, 64, 56), ("pw", 1, 64, 128, 1, 56)],
    *[("dw", 3, 128, 128, 128, 56), ("pw", 1, 128, 128, 1, 56)],
    *[("dw", 3, 128, 128, 128, 28), ("pw", 1, 128, 256, 1, 28)],
    *[("dw", 3, 256, 256, 256, 28), ("pw", 1, 256, 256, 1, 28)],
    *[("dw", 3, 256, 256, 256, 14), ("pw", 1, 256, 512, 1, 14)],
    *[("dw", 3, 512, 512, 512, 14), ("pw", 1, 512, 512, 1, 14)] * 5,
    *[("dw", 3, 512, 512, 512, 7), ("pw", 1, 512, 1024, 1, 7)],
    *[("dw", 3, 1024, 1024, 1024, 7), ("pw", 1, 1024, 1024, 1, 7)],
    ("fc", 1, 1024, 1000, 1, 1),
]
SHALLOW = TABLE_1[:13] + TABLE_1[23:]
DENSE = [
    TABLE_1[0],
    *[
        ("conv", 3, depthwise[2], pointwise[3], 1, pointwise[5])
        for depthwise, pointwise in zip(TABLE_1[1:-1:2], TABLE_1[2:-1:2], strict=True)
    ],
    TABLE_1[-1],
]


def closed_form(rows: list[Any], width: float = 1.0, resolution: int = 224) -> dict[str, tuple[int, int]]:
    """(MACs, weights) of each type of layer."""
    costs: dict[str, tuple[int, int]] = {}
    for kind, k, inputs, outputs, groups, size in rows:
        c = inputs if inputs == 3 else int(inputs * width)
        m = outputs if kind == "fc" else int(outputs * width)
        weights = k * k * c * m // (c if groups > 1 else 1)
        pixels = 1 if kind == "fc" else (size * resolution // 224) ** 2
        macs, together = costs.get(kind, (0, 0))
        costs[kind] = (macs + weights * pixels, together + weights)
    return costs


def totals(costs: dict[str, tuple[int, int]]) -> tuple[int, int]:
    return sum(macs for macs, _ in costs.values()), sum(weights for _, weights in costs.values())


def straight_count(network: nn.Module, resolution: int) -> tuple[int, int]:
    """(MACs, weights of convolutions and classifier) of the real network, by the dispatcher."""
    counted = ts.analyze(network, torch.zeros(1, 3, resolution, resolution, device="meta"))
    assert not counted.uncounted
    assert not counted.uncalled
    weights = [m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    others = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    biases = sum(2 * m.num_features for m in others) + 1000
    assert counted.parameters == sum(weights) + biases
    return counted.macs, sum(weights)


@pytest.fixture(scope="module")
def count() -> Any:
    def counted(make: Any = mobilenet_v1, resolution: int = 224, **options: Any) -> tuple[int, int]:
        with torch.device("meta"):
            network = make(resolution=resolution, **options)
        return straight_count(network.eval(), resolution)

    return counted


def test_a_conv_mobilenet_has_the_layers_of_table_1_made_dense(count: Any) -> None:
    assert len(DENSE) == 15
    assert count(conv_mobilenet) == totals(closed_form(DENSE))


@pytest.mark.parametrize("width", [1.0, 0.75, 0.5, 0.25])
@pytest.mark.parametrize("resolution", [224, 192, 160, 128])
def test_network_has_the_layers_of_table_1(count: Any, width: float, resolution: int) -> None:
    assert count(width_multiplier=width, resolution=resolution) == totals(closed_form(TABLE_1, width, resolution))


def test_shallow_network_omits_five_blocks(count: Any) -> None:
    assert len(SHALLOW) == len(TABLE_1) - 10
    assert count(shallow=True) == totals(closed_form(SHALLOW))


def millions(number: float, digits: int = 0) -> float:
    return round(number / 1e6, digits)


@pytest.mark.parametrize(
    ("options", "macs", "parameters"),
    [
        ({}, 569, 4.2),  # tables 4, 6, 7 and 8
        ({"width_multiplier": 0.75}, 325, 2.6),  # tables 5 and 6
        ({"width_multiplier": 0.5}, 149, 1.3),  # table 6
        ({"width_multiplier": 0.25}, 41, 0.5),
        ({"shallow": True}, 307, 2.9),  # table 5
        ({"resolution": 192}, 418, 4.2),  # table 7
        ({"resolution": 128}, 186, 4.2),
    ],
)
def test_paper_rounds_the_straight_count(count: Any, options: Any, macs: int, parameters: float) -> None:
    counted, weights = count(**options)
    assert (millions(counted), millions(weights, 1)) == (macs, parameters)


def test_paper_counts_conv_mobilenet_without_its_classifier(count: Any) -> None:
    macs, weights = count(conv_mobilenet)
    assert millions(macs) == 4867
    assert (millions(macs - 1024 * 1000), millions(weights, 1)) == (4866, 29.3)


@pytest.mark.parametrize(
    ("width", "resolution", "paper", "straight"),
    [
        (1.0, 192, 418, 418),  # table 7
        (1.0, 160, 290, 291),
        (1.0, 128, 186, 186),
        (0.5, 160, 76, 77),  # table 9
        (0.75, 192, 239, 239),  # table 10
    ],
)
def test_paper_scales_the_whole_by_the_square_of_the_resolution_multiplier(
    count: Any, width: float, resolution: int, paper: int, straight: int
) -> None:
    full, _ = count(width_multiplier=width)
    assert millions(full * (resolution / 224) ** 2) == paper
    assert millions(count(width_multiplier=width, resolution=resolution)[0]) == straight


def test_small_networks_parameters_are_without_batch_norms(count: Any) -> None:
    _, weights = count(width_multiplier=0.5, resolution=160)
    assert millions(weights, 2) == 1.32  # table 9; with batch norms and biases it would be 1.33
    with torch.device("meta"):
        assert millions(sum(p.numel() for p in mobilenet_v1(0.5).parameters()), 2) == 1.33


def test_shares_of_table_2() -> None:
    costs = closed_form(TABLE_1)
    macs, weights = totals(costs)
    shares = {k: (round(100 * m / macs, 2), round(100 * w / weights, 2)) for k, (m, w) in costs.items()}
    # The paper prints 1.19 % for the first convolution's multiply-adds, and its column adds up to 99.29 %.
    assert shares == {"pw": (94.86, 74.59), "dw": (3.06, 1.06), "conv": (1.91, 0.02), "fc": (0.18, 24.33)}


@pytest.mark.parametrize(
    ("layer", "channels", "size", "macs", "parameters"),
    [
        (lambda: nn.Conv2d(512, 512, 3, padding=1, bias=False), 512, 14, 462, 2.36),
        (lambda: ts.nn.DepthwiseSeparableConv2d(512, 512, 3, padding=1, bias=False), 512, 14, 52.3, 0.27),
        (lambda: ts.nn.DepthwiseSeparableConv2d(384, 384, 3, padding=1, bias=False), 384, 14, 29.6, 0.15),
        (lambda: ts.nn.DepthwiseSeparableConv2d(384, 384, 3, padding=1, bias=False), 384, 10, 15.1, 0.15),
    ],
)
def test_one_layer_of_table_3(layer: Any, channels: int, size: int, macs: float, parameters: float) -> None:
    with torch.device("meta"):
        counted = ts.analyze(layer(), torch.zeros(1, channels, size, size))
    assert millions(counted.macs, 0 if macs == 462 else 1) == macs
    assert millions(counted.parameters, 2) == parameters


def test_dense_network_has_the_same_shapes() -> None:
    separable, dense = mobilenet_v1(0.25, num_classes=7).eval(), conv_mobilenet(0.25, num_classes=7).eval()
    x = torch.randn(2, 3, 64, 64)
    y, z = separable.stem(x), dense.stem(x)
    for block, twin in zip(separable.blocks, dense.blocks, strict=True):
        y, z = block(y), twin(z)
        assert y.shape == z.shape
    assert separable(x).shape == dense(x).shape == (2, 7)


def test_channels_and_resolution_follow_their_multipliers() -> None:
    net = mobilenet_v1(0.25, resolution=160, in_channels=1)
    assert isinstance(net, MobileNetV1)
    assert net.resolution == 160
    assert net(torch.randn(2, 1, 32, 32)).shape == (2, 1000)
    narrow = mobilenet_v1(0.01, num_classes=3)
    assert {m.out_channels for m in narrow.modules() if isinstance(m, nn.Conv2d)} == {8, 10}
