"""Channel shuffle against the permutation written out, and the ShuffleNet unit against plain layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import torch_separable as ts
from torch_separable.errors import SeparableValueError
from torch_separable.nn import ChannelShuffle, ShuffleUnit


@given(st.integers(1, 5), st.integers(1, 5), st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_output_takes_one_channel_of_each_group_in_turn(groups: int, each: int, size: list[int]) -> None:
    x = torch.randn(2, groups * each, *size)
    taken = [group * each + i for i in range(each) for group in range(groups)]
    shuffled = ChannelShuffle(groups)(x)
    assert torch.equal(shuffled, x[:, taken])
    assert torch.equal(shuffled, nn.ChannelShuffle(groups)(x))
    assert torch.equal(ChannelShuffle(each)(shuffled), x)


def test_input_whose_channels_are_no_multiple_of_groups_is_refused() -> None:
    with pytest.raises(SeparableValueError, match="groups=3 does not divide the input's channels=8"):
        ChannelShuffle(3)(torch.zeros(1, 8, 2, 2))


def plain_unit(state: dict[str, Tensor], options: dict[str, Any], kernel: tuple[int, int]) -> nn.ModuleDict:
    inner, computed = len(state["conv_pw.weight"]), len(state["conv_pwl.weight"])
    groups, stride = options["groups"], options["stride"]
    layers = nn.ModuleDict(
        {
            "conv_pw": nn.Conv2d(options["in_channels"], inner, 1, groups=groups, bias=False),
            "bn1": nn.BatchNorm2d(inner),
            "conv_dw": nn.Conv2d(
                inner, inner, kernel, stride, (kernel[0] // 2, kernel[1] // 2), groups=inner, bias=False
            ),
            "bn2": nn.BatchNorm2d(inner),
            "conv_pwl": nn.Conv2d(inner, computed, 1, groups=groups, bias=False),
            "bn3": nn.BatchNorm2d(computed),
        }
    )
    layers.double().load_state_dict(state)
    return layers


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from((1, 2)),
    st.sampled_from((1, 3, (3, 5), 5)),
    st.sampled_from((1, 2, 4)),
    st.integers(1, 9),
    st.booleans(),
)
def test_unit_is_a_composition_of_plain_layers(
    groups: int, inputs: int, more: int, stride: int, kernel: Any, ratio: int, size: int, training: bool
) -> None:
    in_channels = groups * inputs * ratio
    out_channels = in_channels if stride == 1 else in_channels + groups * more * ratio
    options = {"in_channels": in_channels, "out_channels": out_channels, "groups": groups, "stride": stride}
    unit = ShuffleUnit(**options, kernel_size=kernel, bottleneck_ratio=ratio, dtype=torch.float64)
    for name, tensor in unit.state_dict().items():
        if name.startswith("bn") and tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    extent = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    layers = plain_unit(unit.state_dict(), options, extent)
    unit.train(training)
    layers.train(training)
    x = torch.randn(2, in_channels, size, size + 1, dtype=torch.float64)
    y = nn.ReLU()(layers["bn1"](layers["conv_pw"](x)))
    y = layers["bn2"](layers["conv_dw"](nn.ChannelShuffle(groups)(y)))
    y = layers["bn3"](layers["conv_pwl"](y))
    expected = x + y if stride == 1 else torch.cat([nn.AvgPool2d(3, stride=2, padding=1)(x), y], dim=1)
    torch.testing.assert_close(unit(x), nn.ReLU()(expected))


def test_unit_costs_what_the_paper_says() -> None:
    # Section 3.2: hw(2cm/g + 9m) for c channels, a bottleneck of m and g groups.
    c, m, g, h, w = 240, 60, 3, 28, 28
    counted = ts.analyze(ShuffleUnit(c, c, groups=g, device="meta"), torch.zeros(1, c, h, w, device="meta"))
    assert counted.macs == h * w * (2 * c * m // g + 9 * m)
