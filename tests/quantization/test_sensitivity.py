"""Layers that stay float: their sensitivity is that of the outputs, and the choice among them is exact."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import torch_separable as ts
from torch_separable.errors import SeparableValueError
from torch_separable.quantization.quantization import captured
from torch_separable.quantization.roles import assign_roles
from torch_separable.quantization.sensitivity import Sensitivity, choose_float_layers, measure_sensitivities
from torch_separable.runtime.graph.ir import Convolution

LAYERS = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 1000)), min_size=1, max_size=7)


def images(count: int = 48, seed: int = 0) -> Tensor:
    noise = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (16, 16), mode="bilinear")


def network() -> nn.Module:
    """Its layer ``2`` mixes a large channel with one a thousandth of it, which int8 activations lose."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()
    )
    with torch.no_grad():
        model[0].weight[0] *= 1000
        model[2].weight[:, 0] *= 1e-3
    return model.eval()


def by_force(layers: list[tuple[float, int]], share: float) -> float:
    """The least sum of changes."""
    allowed = share * sum(macs for _, macs in layers) * (1 + 1e-12)
    return min(
        sum(change for (change, _), stays in zip(layers, kept, strict=True) if not stays)
        for kept in product([False, True], repeat=len(layers))
        if sum(macs for (_, macs), stays in zip(layers, kept, strict=True) if stays) <= allowed
    )


@settings(max_examples=60, deadline=None)
@given(LAYERS, st.floats(0, 0.99))
def test_the_choice_is_the_best_of_all(layers: list[tuple[float, int]], share: float) -> None:
    named = {str(i): Sensitivity(*layer) for i, layer in enumerate(layers)}
    kept = choose_float_layers(named, share)
    left = sum(each.change for name, each in named.items() if name not in kept)
    assert left == pytest.approx(by_force(layers, share), rel=1e-9, abs=1e-12)
    assert sum(named[name].macs for name in kept) <= share * sum(macs for _, macs in layers) * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(LAYERS)
def test_more_float_layers_never_leave_more_change(layers: list[tuple[float, int]]) -> None:
    named = {str(i): Sensitivity(*layer) for i, layer in enumerate(layers)}
    left = []
    for share in (0.0, 0.1, 0.3, 0.6, 0.9):
        kept = choose_float_layers(named, share)
        left.append(sum(each.change for name, each in named.items() if name not in kept))
    assert left == sorted(left, reverse=True)


def test_a_sensitivity_is_the_change_of_quantizing_that_layer_alone() -> None:
    model, x = network(), images()
    fitted, held_out = [x[:36]], [x[36:]]
    graph = captured(model, x.shape[1:])
    seen: list[str] = []
    found = measure_sensitivities(graph, assign_roles(graph.graph), fitted, held_out, seen.append)
    assert seen == list(found) == ["0", "2", "4"]
    assert [each.macs for each in found.values()] == [16 * 16 * 216, 16 * 16 * 64, 14 * 14 * 288]
    # An independent reference: round the first layer's weights and input to steps of their largest value.
    with torch.no_grad():
        expected = model(held_out[0])
        weight, low, high = model[0].weight, float(fitted[0].min()), float(fitted[0].max())
        steps = weight.abs().amax((1, 2, 3), keepdim=True) / 127
        step = (high - low) / 255
        y = F.conv2d((held_out[0] / step).round() * step, (weight / steps).round() * steps, model[0].bias, padding=1)
        change = (model[1:](y) - expected).square().mean() / expected.var(0, unbiased=False).mean()
    assert float(change) / 4 < found["0"].change < float(change) * 4


def test_the_most_sensitive_layers_stay_float() -> None:
    model, x = network(), images()
    every = ts.quantize(model, x)
    mixed = ts.quantize(model, x, float_macs=0.2)
    assert list(mixed.report.sensitive) == ["2"]
    assert "in int8 it would change the outputs by" in mixed.report.kept["2"]
    assert "float32" in str(mixed)
    assert "% of the MACs" in str(mixed)
    assert mixed.report.output_error < every.report.output_error / 2
    floats = [node for node in mixed.model.program(x[:1]).nodes if isinstance(node, Convolution)]
    assert [node.weight.shape[:2] for node in floats] == [(8, 8)]
    changes = [layer.sensitivity for layer in mixed.report.layers]
    assert all(change is not None and change < mixed.report.sensitive["2"].change for change in changes)
    assert torch.allclose(ts.compile(mixed.model, x[:2])(x[:2]), mixed.model(x[:2]), rtol=1e-3, atol=1e-3)


def test_a_share_below_the_smallest_layer_quantizes_all() -> None:
    report = ts.quantize(network(), images(), float_macs=1e-6).report
    assert (len(report.layers), report.kept, report.sensitive) == (3, {}, {})


def test_excluded_layers_do_not_count() -> None:
    report = ts.quantize(network(), images(), exclude=["2"], float_macs=0.2).report
    assert report.kept == {"2": "excluded"}


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan"), True, "0.1"])
def test_shares_out_of_range_are_refused(share: object) -> None:
    with pytest.raises(SeparableValueError, match="float_macs="):
        ts.quantize(network(), images(), float_macs=share)  # type: ignore[arg-type]


def test_four_images_are_enough_to_measure() -> None:
    report = ts.quantize(network(), images(8), float_macs=0.2).report
    assert list(report.sensitive) == ["2"]
