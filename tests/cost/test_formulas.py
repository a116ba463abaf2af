"""The arithmetic of shapes, against real layers and against multiplications counted by adding up ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torch_separable.cost import ConvSpec, separable_cost_ratio
from torch_separable.cost.formulas import attention_macs, matmul_macs
from torch_separable.errors import SeparableValueError

LAYERS: dict[tuple[int, bool], Any] = {
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
    (3, True): nn.ConvTranspose3d,
}
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@st.composite
def convolutions(draw: st.DrawFn, transposed: bool) -> tuple[ConvSpec, tuple[int, ...]]:
    dimensions = draw(st.integers(1, 3))

    def each(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, most)) for _ in range(dimensions))

    kernel, stride, dilation, padding = each(1, 3), each(1, 3), each(1, 2), each(0, 2)
    groups = draw(st.integers(1, 3))
    spec = ConvSpec(
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        kernel,
        stride,
        padding,
        dilation,
        groups,
        bias=draw(st.booleans()),
        transposed=transposed,
        # PyTorch takes less than the stride or the dilation, whichever is more.
        output_padding=tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        if transposed
        else (),
    )
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    if transposed:  # an output is left when the padding has cut both ends
        least = [max(1, -(-(2 * p - r) // s) + 2) for p, r, s in zip(padding, reach, stride, strict=True)]
    else:
        least = [max(1, r - 2 * p) for p, r in zip(padding, reach, strict=True)]
    return spec, tuple(draw(st.integers(n, n + 5)) for n in least)


def layer_of(spec: ConvSpec) -> nn.Module:
    more = {"output_padding": spec.output_padding} if spec.transposed else {}
    layer: nn.Module = LAYERS[len(spec.kernel_size), spec.transposed](
        spec.in_channels, spec.out_channels, spec.kernel_size, spec.stride, spec.padding,
        dilation=spec.dilation, groups=spec.groups, bias=spec.bias, **more,
    )  # fmt: skip
    return layer


@pytest.mark.parametrize("transposed", [False, True])
@given(data=st.data())
def test_parameters_and_output_size_are_those_of_the_real_layer(transposed: bool, data: st.DataObject) -> None:
    spec, size = data.draw(convolutions(transposed))
    layer = layer_of(spec)
    assert spec.parameters == sum(p.numel() for p in layer.parameters())
    assert spec.weights == layer.weight.numel()  # type: ignore[operator, union-attr]
    with torch.no_grad():
        assert spec.output_size(size) == layer(torch.zeros(1, spec.in_channels, *size)).shape[2:]


@given(convolutions(transposed=False))
def test_macs_equal_the_sum_of_a_convolution_of_ones(drawn: tuple[ConvSpec, tuple[int, ...]]) -> None:
    spec, size = drawn
    # Padding counts as pixels: it is made of ones here as well.
    padded = [n + 2 * p for n, p in zip(size, spec.padding, strict=True)]
    ones = torch.ones(1, spec.in_channels, *padded, dtype=torch.float64)
    weight = torch.ones(spec.out_channels, spec.in_channels // spec.groups, *spec.kernel_size, dtype=torch.float64)
    convolve = CONVOLVE[len(size)]
    summed = convolve(ones, weight, stride=spec.stride, dilation=spec.dilation, groups=spec.groups).sum()
    assert spec.macs(size) == summed.item()


@given(convolutions(transposed=True))
def test_macs_of_a_transposed_convolution_include_cropped_output(
    drawn: tuple[ConvSpec, tuple[int, ...]],
) -> None:
    spec, size = drawn
    ones = torch.ones(1, spec.in_channels, *size, dtype=torch.float64)
    weight = torch.ones(spec.in_channels, spec.out_channels // spec.groups, *spec.kernel_size, dtype=torch.float64)
    transpose = TRANSPOSE[len(size)]
    summed = transpose(ones, weight, stride=spec.stride, dilation=spec.dilation, groups=spec.groups).sum()
    assert spec.macs(size) == summed.item()


@given(convolutions(transposed=False))
def test_groups_divide_weights_and_macs(drawn: tuple[ConvSpec, tuple[int, ...]]) -> None:
    spec, size = drawn
    dense = spec.dense()
    assert dense.groups == 1
    assert dense.output_size(size) == spec.output_size(size)
    assert spec.weights * spec.groups == dense.weights
    assert spec.macs(size) * spec.groups == dense.macs(size)


@given(convolutions(transposed=False))
def test_formula_evaluates_to_the_number_of_weights(drawn: tuple[ConvSpec, tuple[int, ...]]) -> None:
    spec, _ = drawn
    product, _, count = spec.formula().partition(" = ")
    weights, _, bias = count.partition(" ")
    assert math.prod(int(eval(factor)) for factor in product.split("·")) == spec.weights == int(weights)
    assert bias == (f"(+{spec.out_channels} bias)" if spec.bias else "")


@pytest.mark.parametrize(
    ("spec", "weights", "parameters", "macs", "formula"),
    [
        (ConvSpec(4, 8, (3, 3), padding=(1, 1)), 288, 296, 2592, "3·3·4·8 = 288 (+8 bias)"),
        (ConvSpec(4, 8, (3, 3), padding=(1, 1), groups=2), 144, 152, 1296, "3·3·(4/2)·8 = 144 (+8 bias)"),
        (ConvSpec(4, 4, (3, 3), padding=(1, 1), groups=4), 36, 40, 324, "3·3·(4/4)·4 = 36 (+4 bias)"),
        (ConvSpec(4, 8, (1, 1)), 32, 40, 288, "1·1·4·8 = 32 (+8 bias)"),
    ],
)
def test_convolutions_of_the_article(spec: ConvSpec, weights: int, parameters: int, macs: int, formula: str) -> None:
    assert (spec.weights, spec.parameters, spec.macs((3, 3)), spec.formula()) == (weights, parameters, macs, formula)


@pytest.mark.parametrize(
    ("spec", "depthwise", "pointwise"),
    [
        (ConvSpec(4, 8, (3, 3)), False, False),
        (ConvSpec(4, 8, (3, 3), groups=2), False, False),
        (ConvSpec(4, 4, (3, 3), groups=4), True, False),
        (ConvSpec(4, 12, (5,), groups=4), True, False),
        (ConvSpec(1, 8, (3, 3)), False, False),
        (ConvSpec(4, 8, (1, 1, 1)), False, True),
        (ConvSpec(4, 4, (1,), groups=4), True, True),
    ],
)
def test_kinds_of_convolution(spec: ConvSpec, depthwise: bool, pointwise: bool) -> None:
    assert (spec.is_depthwise, spec.is_pointwise) == (depthwise, pointwise)


def test_defaults_are_those_of_torch_nn() -> None:
    given_all = ConvSpec(2, 2, (3, 5), (1, 1), (0, 0), (1, 1), 1, True, False, (0, 0))
    assert ConvSpec(2, 2, (3, 5)) == given_all


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "in_channels=0: must be at least 1"),
        ({"out_channels": -8}, "out_channels=-8: must be at least 1"),
        ({"groups": 0}, "groups=0: must be at least 1"),
        ({"groups": 3}, "groups=3 does not divide in_channels=4: both channel counts must be multiples of groups"),
        ({"in_channels": 6, "groups": 3}, "groups=3 does not divide out_channels=8: both channel counts must"),
        ({"kernel_size": ()}, "kernel_size=(): give one entry for each spatial dimension"),
        ({"kernel_size": (3, 0)}, "kernel_size=(3, 0): every entry must be at least 1"),
        ({"stride": (1, 0)}, "stride=(1, 0): every entry must be at least 1"),
        ({"padding": (-1, 0)}, "padding=(-1, 0): every entry must be at least 0"),
        ({"dilation": (0, 1)}, "dilation=(0, 1): every entry must be at least 1"),
        ({"output_padding": (0, -1)}, "output_padding=(0, -1): every entry must be at least 0"),
        ({"stride": (2,)}, "stride=(2,) has 1 entries; kernel_size=(3, 3) has 2: give one entry for each spatial"),
    ],
)
def test_impossible_convolutions_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SeparableValueError) as refusal:
        ConvSpec(**{"in_channels": 4, "out_channels": 8, "kernel_size": (3, 3), **arguments})
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize(
    ("spec", "size", "message"),
    [
        (ConvSpec(4, 8, (3, 3)), (9,), "input_size=(9,) has 1 spatial dimensions; kernel_size=(3, 3) has 2"),
        (
            ConvSpec(4, 8, (3, 3), dilation=(2, 2)),
            (9, 4),
            "input_size=(9, 4) is smaller than the kernel (3, 3) with dilation (2, 2) and padding (0, 0): nothing",
        ),
        (ConvSpec(4, 8, (1, 1), padding=(1, 1)), (3, 0), "input_size=(3, 0): every entry must be at least 1"),
        (
            ConvSpec(4, 8, (2,), padding=(1,), transposed=True),
            (1,),
            "padding (1,)",
        ),
    ],
)
def test_inputs_with_an_empty_output_are_refused(spec: ConvSpec, size: tuple[int, ...], message: str) -> None:
    for ask in (spec.output_size, spec.macs):
        with pytest.raises(SeparableValueError) as refusal:
            ask(size)
        assert str(refusal.value).startswith(message)


@given(st.integers(1, 64), st.integers(1, 64), st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(1, 4))
def test_cost_ratio_is_that_of_the_two_convolutions(channels: int, out: int, kernel: list[int], rank: int) -> None:
    window = tuple(kernel)
    dense = ConvSpec(channels, out, window)
    depthwise = ConvSpec(channels, channels * rank, window, groups=channels)
    pointwise = ConvSpec(channels * rank, out, (1,) * len(window))
    assert separable_cost_ratio(out, window, rank) == pytest.approx(
        (depthwise.weights + pointwise.weights) / dense.weights, rel=1e-12
    )
    size = tuple(k + 3 for k in window)
    pixels = depthwise.output_size(size)
    assert separable_cost_ratio(out, window, rank) == pytest.approx(
        (depthwise.macs(size) + pointwise.macs(pixels)) / dense.macs(size), rel=1e-12
    )


def test_cost_ratio_of_the_article_and_of_the_paper() -> None:
    assert separable_cost_ratio(8, (3, 3)) == pytest.approx(68 / 288)
    # "MobileNet uses 3x3 depthwise separable convolutions which uses between 8 to 9 times less computation"
    assert 8 < 1 / separable_cost_ratio(512, (3, 3)) < 9


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_matmul_macs_equal_the_sum_of_a_product_of_ones(rows: int, inner: int, columns: int, batch: int) -> None:
    product = torch.ones(batch, rows, inner) @ torch.ones(batch, inner, columns)
    assert matmul_macs(rows, inner, columns, batch) == product.sum().item()


@given(
    st.lists(st.integers(1, 3), max_size=2),
    st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5),
)  # fmt: skip
def test_attention_macs_are_those_of_its_two_products(
    batch: list[int], queries: int, keys: int, width: int, value_width: int
) -> None:
    query, key = torch.ones(*batch, queries, width), torch.ones(*batch, keys, width)
    value = torch.ones(*batch, keys, value_width)
    scores = query @ key.mT
    expected = scores.sum() + (torch.ones_like(scores) @ value).sum()
    assert attention_macs(query.shape, key.shape, value.shape) == expected.item()


def test_grouped_queries_count_every_query_head() -> None:
    shared = attention_macs((2, 8, 5, 16), (2, 2, 7, 16), (2, 2, 7, 16))
    assert attention_macs((1, 1, 5, 16), (2, 8, 7, 16), (2, 8, 7, 16)) == 2 * 8 * 5 * 7 * (16 + 16)
    assert shared == attention_macs((2, 8, 5, 16), (2, 8, 7, 16), (2, 8, 7, 16)) == 2 * 8 * 5 * 7 * (16 + 16)
