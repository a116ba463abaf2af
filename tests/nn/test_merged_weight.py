"""The dense kernel that a separable convolution amounts to, and the rank at which it can be any dense kernel."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torch_separable.errors import SeparableError
from torch_separable.nn import DepthwiseSeparableConv1d, DepthwiseSeparableConv2d, DepthwiseSeparableConv3d

CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SEPARABLE: dict[int, Any] = {1: DepthwiseSeparableConv1d, 2: DepthwiseSeparableConv2d, 3: DepthwiseSeparableConv3d}
ORDERS = ("depthwise_first", "pointwise_first")


def loaded(separable: Any, weight: torch.Tensor, groups: int) -> nn.Module:
    """The plain dense convolution with the same window, the weight given and the separable one's last bias."""
    dense = CONV[len(separable.kernel_size)](
        separable.in_channels,
        separable.out_channels,
        separable.kernel_size,
        stride=separable.stride,
        padding=separable.padding,
        dilation=separable.dilation,
        padding_mode=separable.padding_mode,
        groups=groups,
        dtype=torch.float64,
    )
    last = separable.conv_pw if separable.order == "depthwise_first" else separable.conv_dw
    dense.load_state_dict({"weight": weight, "bias": last.bias})
    return dense


@given(
    st.data(),
    st.integers(1, 3),
    st.sampled_from(ORDERS),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from(("zeros", "reflect", "replicate", "circular")),
)
def test_merged_weight_is_the_same_dense_convolution(
    data: st.DataObject, dimensions: int, order: Any, groups: int, inputs: int, outputs: int, rank: int, mode: str
) -> None:
    def each(most: int) -> tuple[int, ...]:
        return data.draw(st.tuples(*[st.integers(1, most)] * dimensions))

    separable = SEPARABLE[dimensions](
        groups * inputs,
        groups * outputs,
        each(3),
        stride=each(2),
        padding=1,
        dilation=each(2),
        depth_multiplier=rank,
        padding_mode=mode,
        order=order,
        groups=groups,
        bias_between=False,
        dtype=torch.float64,
    )
    weight = separable.merged_weight()
    assert weight.shape == (groups * outputs, inputs, *separable.kernel_size)
    x = torch.randn(2, groups * inputs, *[6] * dimensions, dtype=torch.float64)
    torch.testing.assert_close(separable(x), loaded(separable, weight, groups)(x))


@pytest.mark.parametrize("kernel", [(3,), (3, 3), (2, 3), (5, 5), (2, 2, 3)])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("order", ORDERS)
def test_rank_of_all_taps_can_be_any_dense_convolution(kernel: tuple[int, ...], groups: int, order: Any) -> None:
    taps = math.prod(kernel)
    dimensions = len(kernel)
    target = torch.randn(6, 4 // groups, *kernel, dtype=torch.float64)
    separable = SEPARABLE[dimensions](
        4,
        6,
        kernel,
        padding=1,
        depth_multiplier=taps,
        order=order,
        groups=groups,
        bias_between=False,
        dtype=torch.float64,
    )
    # Each of the k² kernels of a channel picks one tap, and the pointwise convolution holds that tap's weights.
    picks = torch.eye(taps, dtype=torch.float64)
    with torch.no_grad():
        if order == "depthwise_first":
            separable.conv_dw.weight.copy_(picks.repeat(4, 1).reshape(separable.conv_dw.weight.shape))
            separable.conv_pw.weight.copy_(target.flatten(2).flatten(1).reshape(separable.conv_pw.weight.shape))
        else:
            separable.conv_dw.weight.copy_(picks.repeat(6, 1).reshape(separable.conv_dw.weight.shape))
            mixes = target.flatten(2).transpose(1, 2)  # (M, k², C / groups)
            separable.conv_pw.weight.copy_(mixes.reshape(separable.conv_pw.weight.shape))
    torch.testing.assert_close(separable.merged_weight(), target)
    x = torch.randn(2, 4, *[7] * dimensions, dtype=torch.float64)
    torch.testing.assert_close(separable(x), loaded(separable, target, groups)(x))


def test_merged_weight_carries_gradients() -> None:
    separable = DepthwiseSeparableConv2d(4, 6, 3, depth_multiplier=2, bias=False)
    separable.merged_weight().square().sum().backward()
    assert separable.conv_dw.weight.grad is not None
    assert separable.conv_dw.weight.grad.abs().sum() > 0
    assert separable.conv_pw.weight.grad is not None


@pytest.mark.parametrize(
    "options",
    [
        {"bias_between": True},
        {"norm_layer": nn.BatchNorm2d, "bias_between": False},
        {"act_layer": nn.ReLU, "bias_between": False},
    ],
)
@pytest.mark.parametrize("order", ORDERS)
def test_a_layer_with_something_between_has_no_dense_kernel(options: dict[str, Any], order: Any) -> None:
    with pytest.raises(SeparableError, match="no dense kernel"):
        DepthwiseSeparableConv2d(4, 8, 3, order=order, **options).merged_weight()


def test_what_follows_the_layer_does_not_matter_to_its_kernel() -> None:
    separable = DepthwiseSeparableConv2d(
        4, 8, 3, bias=False, norm_layer=nn.BatchNorm2d, act_layer=nn.ReLU, norm_between=False, act_between=False
    ).eval()
    x = torch.randn(2, 4, 6, 6)
    dense = torch.nn.functional.conv2d(x, separable.merged_weight())
    torch.testing.assert_close(separable(x), torch.relu(separable.bn2(dense)))
