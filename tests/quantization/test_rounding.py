"""Scales, zero points and rounded weights, against exhaustive search and plain rounding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from torch_separable.quantization.ranges import as_quantization, choose_range
from torch_separable.quantization.rounding import input_moments, round_weights
from torch_separable.runtime.graph.ir import Quantization
from torch_separable.runtime.graph.reference import dequantize, quantize


def error_of(values: torch.Tensor, quantization: Quantization) -> float:
    return float((dequantize(quantize(values, quantization), quantization) - values).square().mean())


def test_uniform_values_keep_their_whole_range() -> None:
    chosen = choose_range([torch.linspace(0, 5.1, 10001)])
    assert chosen.zero_point == 0
    assert chosen.scale == pytest.approx(0.02, rel=0.01)


def test_rare_large_values_are_clamped() -> None:
    values = torch.randn(4_000_000, generator=torch.Generator().manual_seed(0))
    values[0] = 40.0
    chosen = choose_range([values])
    widest = as_quantization(float(values.min()), 40.0)
    assert error_of(values, chosen) < 0.3 * error_of(values, widest)


def test_no_other_range_has_a_much_smaller_error() -> None:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(1)).exp() - 0.5
    found = error_of(values, choose_range([values]))
    ends = [float(values.max()) * k / 60 for k in range(2, 61)]
    best = min(error_of(values, as_quantization(float(values.min()), end)) for end in ends)
    assert found <= 1.05 * best


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_ranges_follow_the_scale_of_the_values(scale: float) -> None:
    values = torch.randn(5000, generator=torch.Generator().manual_seed(2))
    chosen, plain = choose_range([values * scale]), choose_range([values])
    assert chosen.scale / scale == pytest.approx(plain.scale, rel=0.02)
    assert abs(chosen.zero_point - plain.zero_point) <= 1


@pytest.mark.parametrize("constant", [0.0, 3.0, -3.0])
def test_constant_values_are_represented_exactly(constant: float) -> None:
    values = torch.full((100,), constant)
    assert error_of(values, choose_range([values])) < 1e-6


def test_zero_is_exact() -> None:
    values = torch.rand(1000) + 5
    chosen = choose_range([values])
    assert dequantize(quantize(torch.zeros(1), chosen), chosen).item() == 0


def output_error(weight: torch.Tensor, stored: torch.Tensor, scales: torch.Tensor, x: torch.Tensor) -> float:
    return float(((stored.double() * scales.double()[..., None] - weight) @ x.T).square().mean())


def test_error_feedback_beats_rounding_to_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(64, 64, generator=generator, dtype=torch.float64)
    x = torch.randn(2000, 16, generator=generator, dtype=torch.float64) @ mixing[:16]  # correlated inputs
    weight = torch.randn(1, 32, 64, generator=generator, dtype=torch.float64)
    stored, scales = round_weights(weight, (x.T @ x / len(x))[None])
    nearest = (weight / scales[..., None]).round().clamp(-127, 127)
    assert output_error(weight, stored, scales, x) < 0.5 * output_error(weight, nearest, scales, x)
    assert stored.abs().max() <= 127


def test_weights_that_are_integers_stay_as_they_are() -> None:
    weight = torch.tensor([[[127.0, -3.0, 0.0, 64.0]]]) / 64
    moments = torch.eye(4)[None] + 0.5
    stored, scales = round_weights(weight, moments)
    assert stored.tolist() == [[[127, -3, 0, 64]]]
    assert scales.item() == 1 / 64


def test_dead_channels_and_dead_inputs_are_rounded_to_zero_and_nearest() -> None:
    weight = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))
    weight[0, 1] = 0
    moments = torch.eye(9).repeat(2, 1, 1)
    moments[1] = 0
    stored, scales = round_weights(weight, moments)
    assert not stored[0, 1].any()
    assert scales.isfinite().all()
    values = stored.double() * scales.double()[..., None]
    assert (values - weight).abs().max() <= 0.7 * scales.max()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_weights_of_any_size_are_rounded_relative_to_themselves(scale: float) -> None:
    weight = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(0))
    moments = torch.eye(9)[None]
    one, other = round_weights(weight, moments), round_weights(weight * scale, moments * scale)
    assert torch.equal(one[0], other[0])


def test_moments_are_those_of_the_patches() -> None:
    x = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    y = F.conv2d(x, weight, padding=1)
    moments = input_moments([x], (3, 3), ((1, 1), (1, 1), (1, 1)), 1)
    rows = weight.flatten(1).double()
    # Of all outputs the sum of squares is a quadratic form of the moments; pixels are sampled with repetition.
    assert moments.shape == (1, 36, 36)
    estimate = (rows @ moments[0] @ rows.T).diagonal()
    exact = y.double().square().sum((0, 2, 3)) / 3
    assert ((estimate - exact).abs() / exact).max() < 0.9
