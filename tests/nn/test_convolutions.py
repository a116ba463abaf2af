"""Depthwise, pointwise and separable convolutions against compositions of plain ``torch.nn`` layers.

The references know nothing of ``groups=in_channels``: a depthwise convolution is one convolution for each channel, and
a pointwise one is a linear layer over the channels of every pixel.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from torch_separable.nn import (
    DepthwiseConv1d,
    DepthwiseConv2d,
    DepthwiseConv3d,
    DepthwiseSeparableConv1d,
    DepthwiseSeparableConv2d,
    DepthwiseSeparableConv3d,
    PointwiseConv1d,
    PointwiseConv2d,
    PointwiseConv3d,
)

CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
DEPTHWISE: dict[int, Any] = {1: DepthwiseConv1d, 2: DepthwiseConv2d, 3: DepthwiseConv3d}
POINTWISE: dict[int, Any] = {1: PointwiseConv1d, 2: PointwiseConv2d, 3: PointwiseConv3d}
SEPARABLE: dict[int, Any] = {1: DepthwiseSeparableConv1d, 2: DepthwiseSeparableConv2d, 3: DepthwiseSeparableConv3d}

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@st.composite
def windows(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[int, ...]]:
    """How a kernel is applied, as keyword arguments, and the size of an input that it fits into."""
    dimensions = draw(st.sampled_from((1, 2, 2, 3)))

    def each(least: int, most: int) -> Any:
        number = st.integers(least, most)
        return draw(
            st.one_of(
                number, st.tuples(*[number] * dimensions), st.lists(number, min_size=dimensions, max_size=dimensions)
            )
        )

    kernel, dilation = each(1, 3), each(1, 2)
    padding = draw(st.sampled_from(("same", "valid", "number", "number")))
    window = {
        "kernel_size": kernel,
        "stride": 1 if padding == "same" else each(1, 3),
        "padding": each(0, 2) if padding == "number" else padding,
        "dilation": dilation,
        "padding_mode": draw(st.sampled_from(("zeros", "reflect", "replicate", "circular"))),
    }
    extents = [d * (k - 1) + 1 for k, d in zip(spread(kernel, dimensions), spread(dilation, dimensions), strict=True)]
    # At least 3, so that two reflected pixels exist.
    return window, tuple(draw(st.integers(max(3, extent), extent + 3)) for extent in extents)


def spread(value: Any, dimensions: int) -> tuple[int, ...]:
    return (value,) * dimensions if isinstance(value, int) else tuple(value)


def plain(window: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in window.items()}


def filtered(x: Tensor, weight: Tensor, bias: Tensor | None, inputs: int, window: dict[str, Any]) -> Tensor:
    """One plain convolution for every ``inputs`` channels, each with an equal share of the kernels."""
    dimensions = x.dim() - 2
    blocks = x.split(inputs, dim=1)
    kernels = weight.chunk(len(blocks))
    shares: list[Any] = [None] * len(blocks) if bias is None else list(bias.chunk(len(blocks)))
    results = []
    for block, kernel, share in zip(blocks, kernels, shares, strict=True):
        conv = CONV[dimensions](inputs, len(kernel), bias=bias is not None, **plain(window)).double()
        conv.load_state_dict({"weight": kernel} | ({} if share is None else {"bias": share}))
        results.append(conv(block))
    return torch.cat(results, dim=1)


def mixed(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, stride: tuple[int, ...] = ()) -> Tensor:
    """A plain linear layer over the channels of every pixel that the stride leaves, for each group."""
    for dimension, step in enumerate(stride, start=2):
        x = x.index_select(dimension, torch.arange(0, x.shape[dimension], step))
    shares: list[Any] = [None] * groups if bias is None else list(bias.chunk(groups))
    results = []
    for block, matrix, share in zip(x.chunk(groups, 1), weight.flatten(1).chunk(groups), shares, strict=True):
        linear = nn.Linear(matrix.shape[1], matrix.shape[0], bias=bias is not None).double()
        linear.load_state_dict({"weight": matrix} | ({} if share is None else {"bias": share}))
        results.append(linear(block.movedim(1, -1)).movedim(-1, 1))
    return torch.cat(results, dim=1)


@settings(max_examples=100)
@given(windows(), st.integers(1, 5), st.integers(1, 3), st.booleans(), st.integers(0, 2))
def test_depthwise_is_one_convolution_for_each_channel(
    drawn: tuple[dict[str, Any], tuple[int, ...]], channels: int, depth_multiplier: int, bias: bool, batch: int
) -> None:
    window, size = drawn
    layer = DEPTHWISE[len(size)](channels, depth_multiplier=depth_multiplier, bias=bias, **window, dtype=torch.float64)
    x = torch.randn(batch, channels, *size, dtype=torch.float64)
    assert (layer.bias is not None) == bias
    torch.testing.assert_close(layer(x), filtered(x, layer.weight, layer.bias, 1, window))


@given(st.data(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_pointwise_is_a_linear_layer_over_channels(
    data: st.DataObject, dimensions: int, groups: int, inputs: int, outputs: int, bias: bool
) -> None:
    stride = data.draw(st.tuples(*[st.integers(1, 3)] * dimensions))
    size = data.draw(st.tuples(*[st.integers(1, 6)] * dimensions))
    layer = POINTWISE[dimensions](
        groups * inputs, groups * outputs, stride=stride, groups=groups, bias=bias, dtype=torch.float64
    )
    x = torch.randn(2, groups * inputs, *size, dtype=torch.float64)
    torch.testing.assert_close(layer(x), mixed(x, layer.weight, layer.bias, groups, stride))


@settings(max_examples=200)
@given(
    windows(),
    st.fixed_dictionaries(
        {
            "order": st.sampled_from(("depthwise_first", "pointwise_first")),
            "depth_multiplier": st.integers(1, 3),
            "groups": st.integers(1, 3),
            **{switch: st.booleans() for switch in ("bias", "norm_between", "act_between", "norm_after", "act_after")},
            "bias_between": st.sampled_from((True, False, None)),
        }
    ),
    st.integers(1, 2),
    st.integers(1, 2),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_separable_is_a_composition_of_plain_layers(
    drawn: tuple[dict[str, Any], tuple[int, ...]],
    options: dict[str, Any],
    inputs: int,
    outputs: int,
    norm: bool,
    act: bool,
    training: bool,
) -> None:
    window, size = drawn
    dimensions, groups = len(size), options["groups"]
    in_channels, out_channels = groups * inputs, groups * outputs
    layer = SEPARABLE[dimensions](
        in_channels,
        out_channels,
        norm_layer=NORM[dimensions] if norm else None,
        act_layer=nn.Hardswish if act else None,
        dtype=torch.float64,
        **window,
        **options,
    ).train(training)
    for name, tensor in layer.state_dict().items():
        if name.startswith("bn") and tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}

    def part(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(name + "."): tensor for key, tensor in state.items() if key.startswith(name + ".")}

    def convolved(x: Tensor, name: str) -> Tensor:
        weight, bias = part(name)["weight"], part(name).get("bias")
        if name == "conv_pw":
            return mixed(x, weight, bias, groups)
        inputs = 1 if options["order"] == "depthwise_first" else options["depth_multiplier"]
        return filtered(x, weight, bias, inputs, window)

    def followed(x: Tensor, place: str, number: int) -> Tensor:
        if norm and options[f"norm_{place}"]:
            plain_norm = NORM[dimensions](x.shape[1]).double().train(training)
            plain_norm.load_state_dict(part(f"bn{number}"))
            x = plain_norm(x)
        return nn.Hardswish()(x) if act and options[f"act_{place}"] else x

    x = torch.randn(2, in_channels, *size, dtype=torch.float64)
    first, second = ("conv_dw", "conv_pw") if options["order"] == "depthwise_first" else ("conv_pw", "conv_dw")
    between = followed(convolved(x, first), "between", 1)
    after = convolved(between, second)
    torch.testing.assert_close(layer(x), followed(after, "after", 2))

    wanted = options["bias"] if options["bias_between"] is None else options["bias_between"]
    assert (f"{first}.bias" in state, f"{second}.bias" in state) == (wanted, options["bias"])
    present = {name.partition(".")[0] for name in state}
    assert ("bn1" in present, "bn2" in present) == (
        norm and options["norm_between"],
        norm and options["norm_after"],
    )


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_parameters_begin_as_those_of_the_plain_convolutions(dimensions: int) -> None:
    torch.manual_seed(3)
    layer = SEPARABLE[dimensions](4, 6, 3, depth_multiplier=2)
    torch.manual_seed(3)
    depthwise, pointwise = CONV[dimensions](4, 8, 3, groups=4), CONV[dimensions](8, 6, 1)
    assert torch.equal(layer.conv_dw.weight, depthwise.weight)
    assert torch.equal(layer.conv_dw.bias, depthwise.bias)
    assert torch.equal(layer.conv_pw.weight, pointwise.weight)
    before = layer.conv_dw.weight.detach().clone()
    torch.manual_seed(4)
    layer.reset_parameters()
    assert not torch.equal(layer.conv_dw.weight, before)
    torch.manual_seed(3)
    layer.reset_parameters()
    assert torch.equal(layer.conv_dw.weight, before)


@pytest.mark.parametrize("order", ["depthwise_first", "pointwise_first"])
def test_one_layer_may_have_two_names(order: Any) -> None:
    act = nn.Sigmoid()
    layer = DepthwiseSeparableConv2d(3, 5, 3, order=order, act_layer=lambda: act)
    x = torch.randn(2, 3, 6, 6)
    first, second = (layer.conv_dw, layer.conv_pw) if order == "depthwise_first" else (layer.conv_pw, layer.conv_dw)
    torch.testing.assert_close(layer(x), act(second(act(first(x)))))


def test_weights_of_both_orders_are_those_of_the_closed_forms() -> None:
    for multiplier in (1, 2, 5):
        depthwise_first = DepthwiseSeparableConv2d(6, 10, 3, depth_multiplier=multiplier, bias=False)
        pointwise_first = DepthwiseSeparableConv2d(
            6, 10, 3, depth_multiplier=multiplier, bias=False, order="pointwise_first"
        )
        assert sum(p.numel() for p in depthwise_first.parameters()) == multiplier * 6 * (9 + 10)
        assert sum(p.numel() for p in pointwise_first.parameters()) == multiplier * 10 * (6 + 9)
