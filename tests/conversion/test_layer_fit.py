from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from torch_separable.conversion import LayerPlan, Plan, Statistics, apply, calibrate, plan
from torch_separable.conversion.calibration.outputs import run_outputs
from torch_separable.conversion.calibration.recording import record
from torch_separable.conversion.convolutions import grouped_weight
from torch_separable.conversion.layers import find_convertible
from torch_separable.conversion.solvers.factorize import Order, output_error
from torch_separable.conversion.solvers.layer_fit import _rectified_target, fit_layer, importance_of

ORDERS: tuple[Order, ...] = get_args(Order)


@given(wanted=st.floats(0, 5), before=st.floats(-5, 5), strength=st.sampled_from([0.01, 0.3, 1.0, 10.0]))
def test_rectified_target_is_the_minimum_on_a_grid(wanted: float, before: float, strength: float) -> None:
    def cost(z: Tensor) -> Tensor:
        return (wanted - z.clamp_min(0)).square() + strength * (z - before).square()

    least = cost(torch.linspace(-6, 6, 200_001).double()).min()
    ours = _rectified_target(torch.tensor(wanted).double(), torch.tensor(before).double(), strength)
    assert float(cost(ours)) <= float(least) + 1e-12


def test_rectified_target_keeps_values_that_are_right() -> None:
    before = torch.linspace(-3, 3, 13)
    torch.testing.assert_close(_rectified_target(before.clamp_min(0), before, 0.3), before)


def mean_square(one: Tensor, other: Tensor) -> float:
    return float((one - other).square().mean())


class Residual(nn.Module):
    """Two branches that are added: ``early`` runs first, ``late`` can make up for what it lost."""

    def __init__(self, outputs: int = 6) -> None:
        super().__init__()
        self.early, self.late = nn.Conv2d(3, outputs, 3, padding=1), nn.Conv2d(3, outputs, 3, padding=1)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.early(x)
        return y + self.norm(self.late(x))


def images(count: int = 24, channels: int = 3, size: int = 10) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(5))


def by_hand(**becomes: tuple[Order, int]) -> Any:
    """A plan of one rank for each named layer, for a network whose layers have these names."""

    def made(model: nn.Module) -> Plan:
        entries = [
            LayerPlan(name, tuple(conv.weight.shape), *becomes.get(name, (None, 0)))
            for name, conv in find_convertible(model).convertible.items()
        ]
        return Plan("least_squares", tuple(entries))

    return made


def network_outputs(model: nn.Module, batches: list[Tensor]) -> Tensor:
    return torch.cat([outputs["output"].flatten(1) for outputs in run_outputs(model, batches)])


def test_residual_layer_corrects_the_error_of_the_other_branch() -> None:
    model, given = Residual().eval(), images()
    with torch.no_grad():
        model.norm.weight.uniform_(0.5, 2)
        model.norm.running_var.uniform_(0.5, 2)
        model.norm.running_mean.normal_()
    # At full rank the late branch can become any kernel, so the sum can come out exactly right.
    chosen = by_hand(early=("pointwise_first", 1), late=("pointwise_first", 9))(model)
    dense = network_outputs(model, [given])
    lost = {
        residual: mean_square(network_outputs(apply(model, chosen, given, residual=residual), [given]), dense)
        for residual in (True, False)
    }
    assert lost[True] < 1e-9
    assert lost[False] > 1e-3


def test_output_used_again_after_the_sum_gets_no_rectified_fit() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early, self.late = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            branch, output = self.early(x), self.late(x)
            return (branch + output).relu() * output

    model, given = Twice().eval(), images()
    chosen = by_hand(early=("pointwise_first", 1), late=("pointwise_first", 2))(model)
    with_residual, without = (apply(model, chosen, given, residual=residual) for residual in (True, False))
    others = without.state_dict()
    for name, tensor in with_residual.state_dict().items():
        assert torch.equal(tensor, others[name]), name


def test_early_stop_records_sums_after_the_last_layer() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            b = self.b(x).relu()
            return self.c(a + b)

    model, given = Late().eval(), images()
    layers: Any = {"a": model.a, "b": model.b}
    whole, early = (record(model, [given], layers, {"a": 50, "b": 50}, stop_early=stop) for stop in (False, True))
    assert whole["a"].residual is not None
    for name in layers:
        assert torch.equal(early[name].outputs, whole[name].outputs)
    assert early["a"].residual is not None
    assert torch.equal(early["a"].residual, whole["a"].residual)


def test_channel_with_a_tiny_norm_scale_stays_bounded() -> None:
    model, given = Residual().eval(), images()
    with torch.no_grad():
        model.norm.weight[2] = 1e-6
        model.norm.weight[3] = 0
    converted = apply(model, by_hand(early=("pointwise_first", 1), late=("pointwise_first", 2))(model), given)
    assert all(torch.isfinite(p).all() and float(p.detach().abs().max()) < 1e3 for p in converted.parameters())


def test_layer_is_fitted_to_the_converted_networks_activations() -> None:
    torch.manual_seed(4)
    model, given = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)).eval(), images()
    chosen = plan(model, calibrate(model, given), rank=1, order="depthwise_first")
    off = {}
    for sequential in (True, False):
        converted: Any = apply(model, chosen, given, sequential=sequential, share=False)
        with torch.no_grad():
            found, t = converted(given), model(given)
        # A shift or a factor for an output channel is within reach of the fit, so none brings it nearer.
        means, spread = found.mean((0, 2, 3), True), found.var((0, 2, 3), unbiased=False)
        factor = ((found - means) * t).mean((0, 2, 3)) / spread
        off[sequential] = float((factor - 1).abs().max()), float((found - t).mean((0, 2, 3)).abs().max())
    assert off[True][0] < 0.03
    assert off[False][0] > 0.1
    assert off[True][1] < 1e-4
    assert off[False][1] > 1e-3


@pytest.mark.parametrize("order", ORDERS)
def test_sequential_fit_loses_less_than_one_shot(order: Order) -> None:
    torch.manual_seed(6)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, 8), (8, 8), (8, 8)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    model, given, fresh = nn.Sequential(*layers).eval(), images(), images(40)[24:]
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    chosen = plan(model, calibrate(model, given), rank=2, order=order)
    dense = network_outputs(model, [fresh])
    lost = {
        sequential: mean_square(network_outputs(apply(model, chosen, given, sequential=sequential), [fresh]), dense)
        for sequential in (True, False)
    }
    assert lost[True] < 0.95 * lost[False]


@pytest.mark.parametrize("order", ORDERS)
def test_rectifier_aware_fit_is_closer_after_the_relu(order: Order) -> None:
    torch.manual_seed(7)
    model, given = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()).eval(), images(32, 6)
    with torch.no_grad():
        model[1].bias.fill_(-0.5)  # most values are below zero
    chosen = plan(model, calibrate(model, given), rank=1, order=order)
    dense = network_outputs(model, [given])
    lost = {
        rectifier: mean_square(network_outputs(apply(model, chosen, given, rectifier=rectifier), [given]), dense)
        for rectifier in (True, False)
    }
    assert lost[True] < 0.97 * lost[False]


def recorded(model: nn.Module, statistics: Statistics, name: str) -> Any:
    conv = find_convertible(model).convertible[name]
    return record(model, statistics.batches, {name: conv}, {name: statistics[name].pixels}, patches=True)[name]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rank", [1, 2, 9])
def test_fit_in_the_network_is_no_worse_than_the_fit_alone(order: Order, rank: int) -> None:
    torch.manual_seed(8)
    model, given = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)).eval(), images(24, 4)
    statistics = calibrate(model, given)
    layer, seen = statistics["0"], recorded(model, statistics, "0")
    (factors,), bias = fit_layer(layer, grouped_weight(model[0]), model[0].bias, seen, seen, order, rank)
    assert layer.moments is not None
    planned = next(x for x in plan(model, statistics, rank=rank, order=order).layers if x.name == "0")
    assert output_error(factors.kernel(), layer.moments[0], importance_of(layer)) <= planned.error + 1e-9
    converted: Any = apply(model, plan(model, statistics, rank=rank, order=order), statistics)
    last = converted[0].conv_pw if order == "depthwise_first" else converted[0].conv_dw
    torch.testing.assert_close(last.bias.double(), bias, rtol=1e-4, atol=1e-5)
    if rank == 9:
        torch.testing.assert_close(factors.kernel(), grouped_weight(model[0])[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(bias, model[0].bias.double(), rtol=0, atol=1e-4)


def test_importance_is_the_squared_norm_scale() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, eps=0)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([3.0, 0.0, 1.0]))
        model[1].running_var.copy_(torch.tensor([4.0, 1.0, 1.0]))
    importance = importance_of(calibrate(model, images())["0"])
    torch.testing.assert_close(importance[[0, 2]], torch.tensor([2.25, 1.0]).double())
    assert 0 < float(importance[1]) < 1e-5
