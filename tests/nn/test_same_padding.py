"""Padding "same" as TensorFlow defines it: the size of the output, and where its pixels stand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import torch_separable as ts
from torch_separable.nn import (
    DepthwiseSeparableConv1d,
    DepthwiseSeparableConv2d,
    DepthwiseSeparableConv3d,
    InvertedResidual,
    SamePadding,
)
from torch_separable.nn.rank_by_rank import rank_by_rank

SEPARABLE: dict[int, Any] = {1: DepthwiseSeparableConv1d, 2: DepthwiseSeparableConv2d, 3: DepthwiseSeparableConv3d}
numbers = st.integers(1, 4)


@st.composite
def strided(draw: st.DrawFn) -> dict[str, Any]:
    dimensions = draw(st.sampled_from((1, 2, 2, 3)))

    def each(strategy: st.SearchStrategy[int]) -> tuple[int, ...]:
        return draw(st.tuples(*[strategy] * dimensions))

    return {
        "size": each(st.integers(3, 8)),
        "kernel_size": each(st.integers(1, 4)),
        "stride": each(st.integers(2, 3)),
        "dilation": each(st.integers(1, 2)),
    }


@given(strided(), st.sampled_from(("depthwise_first", "pointwise_first")), st.integers(1, 2))
def test_output_is_the_size_over_the_stride_and_its_pixels_are_the_definitions(
    window: dict[str, Any], order: Any, multiplier: int
) -> None:
    size = window.pop("size")
    layer = SEPARABLE[len(size)](
        3, 4, **window, padding="same", order=order, depth_multiplier=multiplier, dtype=torch.float64
    )
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    found = layer(x)
    assert tuple(found.shape[2:]) == tuple(math.ceil(n / s) for n, s in zip(size, window["stride"], strict=True))
    assert layer.padding == "same"
    # The definition counts from the first pixel's window: output o reads input o·s + d·t - before, zero where outside.
    valid = SEPARABLE[len(size)](3, 4, **window, order=order, depth_multiplier=multiplier, dtype=torch.float64)
    valid.load_state_dict(layer.state_dict())
    amounts: list[int] = []
    for n, k, s, d in zip(size, window["kernel_size"], window["stride"], window["dilation"], strict=True):
        needed = max((math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n, 0)
        amounts = [needed // 2, needed - needed // 2, *amounts]
    if order == "depthwise_first":
        torch.testing.assert_close(found, valid(F.pad(x, amounts)))
    else:  # zeros are those of the depthwise convolution's input, which a bias has changed
        torch.testing.assert_close(found, valid.conv_dw(F.pad(valid.conv_pw(x), amounts)))


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
def test_at_stride_1_it_is_what_pytorch_calls_same(size: int, kernel: int, dilation: int) -> None:
    x, weight = torch.randn(1, 1, size, dtype=torch.float64), torch.randn(1, 1, kernel, dtype=torch.float64)
    ours = F.conv1d(SamePadding((kernel,), (1,), (dilation,))(x), weight, dilation=dilation)
    torch.testing.assert_close(ours, F.conv1d(x, weight, padding="same", dilation=dilation))


def test_an_even_size_is_padded_after_the_image_and_an_odd_one_on_both_sides() -> None:
    pad = SamePadding((3, 3), (2, 2), (1, 1))
    padded = pad(torch.ones(1, 1, 4, 5))
    assert torch.equal(pad(torch.ones(1, 4, 5)), padded[0])
    assert padded.shape == (1, 1, 5, 7)
    assert padded[0, 0, 0, 1:6].tolist() == [1] * 5
    assert padded[0, 0, 4].tolist() == [0] * 7


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_modes_of_padding_are_those_of_pytorch(mode: str) -> None:
    x = torch.randn(1, 2, 6, 6)
    padded = SamePadding((3, 3), (2, 2), (1, 1), mode)(x)
    assert torch.equal(padded, F.pad(x, (0, 1, 0, 1), "constant" if mode == "zeros" else mode))


def test_inverted_residual_pads_its_depthwise_convolution() -> None:
    torch.manual_seed(0)
    same, symmetric = (InvertedResidual(4, 6, stride=2, padding=how).eval() for how in ("same", "symmetric"))
    symmetric.load_state_dict(same.state_dict())
    x = torch.randn(1, 4, 8, 8)
    # Upside down and mirrored, the two kinds of padding of an even size stand on the same pixels.
    assert not torch.allclose(same(x), symmetric(x))
    with torch.no_grad():
        symmetric.conv_dw.weight.copy_(same.conv_dw.weight.flip(2, 3))
    torch.testing.assert_close(same(x), symmetric(x.flip(2, 3)).flip(2, 3))
    with pytest.raises(ts.SeparableValueError, match="padding='valid': must be one of 'symmetric', 'same'"):
        InvertedResidual(4, 6, padding="valid")


def test_layers_that_pad_by_hand_are_computed_as_ever_where_others_go_rank_by_rank() -> None:
    layer = DepthwiseSeparableConv2d(4, 6, 3, stride=2, padding="same", depth_multiplier=2)
    x = torch.randn(1, 4, 8, 8)
    expected = layer(x)
    with rank_by_rank(layer):
        torch.testing.assert_close(layer(x), expected)


def test_padded_block_is_captured_whole() -> None:
    block = DepthwiseSeparableConv2d(4, 6, 3, stride=2, padding="same", norm_layer=nn.BatchNorm2d).eval()
    x = torch.randn(3, 4, 8, 7)
    program = torch.export.export(block, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    torch.testing.assert_close(program.module()(x[:2]), block(x[:2]))
