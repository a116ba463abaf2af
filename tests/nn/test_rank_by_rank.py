"""Computing a separable convolution one rank after the other is the same function with the same gradients."""

from __future__ import annotations

import copy
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from torch_separable.nn import DepthwiseSeparableConv2d
from torch_separable.nn.rank_by_rank import rank_by_rank
from torch_separable.nn.separable import SEPARABLE


@given(
    st.integers(1, 3), st.sampled_from(("depthwise_first", "pointwise_first")), st.integers(1, 3), st.integers(1, 4),
    st.integers(1, 2), st.integers(0, 2), st.booleans(), st.booleans(), st.sampled_from(("zeros", "circular")),
    st.booleans(),
)  # fmt: skip
def test_outputs_and_gradients_are_those_of_the_layer(
    dimensions: int, order: Any, groups: int, rank: int, stride: int, padding: int, bias: bool, bias_between: bool,
    mode: str, norm: bool,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    layer = SEPARABLE[dimensions](
        2 * groups, 3 * groups, 3, stride=stride, padding=padding, depth_multiplier=rank, order=order, groups=groups,
        bias=bias, bias_between=bias_between, padding_mode=mode, dtype=torch.float64, norm_between=False,
        act_between=False, norm_layer=(lambda c, **k: nn.GroupNorm(1, c, **k)) if norm else None,
        act_layer=nn.Tanh if norm else None,
    )  # fmt: skip
    inputs = torch.randn(2, 2 * groups, *[5] * dimensions, dtype=torch.float64, requires_grad=True)
    expected = layer(inputs)
    gradients = torch.autograd.grad(expected.sin().sum(), [inputs, *layer.parameters()])
    with rank_by_rank(layer):
        got = layer(inputs)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got.sin().sum(), [inputs, *layer.parameters()]), gradients)


def test_the_layers_of_a_network_are_as_before_afterwards() -> None:
    network = nn.Sequential(DepthwiseSeparableConv2d(4, 4, 3, depth_multiplier=2), nn.ReLU())
    with rank_by_rank(network):
        assert "forward" in vars(network[0])
    assert "forward" not in vars(network[0])
    copy.deepcopy(network)(torch.randn(1, 4, 5, 5))


def test_layers_with_something_between_or_with_hooks_are_computed_as_they_stand() -> None:
    seen: list[int] = []
    hooked = DepthwiseSeparableConv2d(4, 4, 3, depth_multiplier=2)
    hooked.conv_dw.register_forward_hook(lambda *_: seen.append(1))
    rectified = DepthwiseSeparableConv2d(4, 4, 3, depth_multiplier=2, act_layer=nn.ReLU)
    image = torch.randn(1, 4, 5, 5)
    expected = rectified(image)
    with rank_by_rank(nn.ModuleList([hooked, rectified])):
        hooked(image)
        assert torch.equal(rectified(image), expected)
    assert seen == [1]


def test_layers_that_compute_something_else_are_left_to_do_so() -> None:
    class Doubled(DepthwiseSeparableConv2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    class Halved(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) / 2

    exchanged, extended = (DepthwiseSeparableConv2d(4, 4, 3, depth_multiplier=2) for _ in range(2))
    exchanged.conv_pw = Halved(8, 4, 1)
    extended.last = nn.Sigmoid()
    image = torch.randn(1, 4, 5, 5)
    for layer in (Doubled(4, 4, 3, depth_multiplier=2), exchanged, extended):
        expected = layer(image)
        with rank_by_rank(layer):
            assert torch.equal(layer(image), expected)
