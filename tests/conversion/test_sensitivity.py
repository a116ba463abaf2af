from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from torch_separable.conversion import calibrate
from torch_separable.conversion.calibration.moments import layer_moments
from torch_separable.conversion.calibration.replay_cache import ReplayCache
from torch_separable.conversion.layers import find_convertible
from torch_separable.conversion.planning.options import Option, fit_options
from torch_separable.conversion.planning.sensitivity import measure_changes
from torch_separable.conversion.solvers.factorize import Order
from torch_separable.conversion.solvers.layer_fit import biases

CHOICES = [(order, rank) for order in get_args(Order) for rank in range(1, 10)]


def network() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 4),
    ).eval()


def images() -> Tensor:
    return torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def options_of(name: str, method: Any, every: bool = False) -> tuple[list[Option], list[float]]:
    model, statistics = network(), calibrate(network(), images())
    conv = find_convertible(model).convertible[name]
    moments = layer_moments(model, conv, statistics, name)
    options = fit_options(statistics[name], conv, moments, CHOICES, method, every=every)
    return options, measure_changes(model, statistics, conv, moments, options, method, ReplayCache(2**24))


def change(name: str, option: Option, method: Any) -> float:
    """Relative change of the outputs with the merged kernel and (where fitted) bias in place of the dense ones."""
    model, replaced = network(), copy.deepcopy(network())
    conv: Any = replaced.get_submodule(name)
    assert option.factors is not None
    with torch.no_grad():
        conv.weight.copy_(torch.cat([f.kernel() for f in option.factors]).reshape(conv.weight.shape))
        if method == "least_squares":
            original: Any = model.get_submodule(name)
            moments = layer_moments(model, original, calibrate(model, images()), name)
            conv.bias = nn.Parameter(biases(option.factors, moments).float())
        outputs = model(images())
        return float((replaced(images()) - outputs).square().mean() / outputs.var(0, unbiased=False).mean())


@pytest.mark.parametrize("method", ["least_squares", "svd"])
@pytest.mark.parametrize("name", ["0", "3"])
def test_change_equals_that_of_converting_the_layer_alone(name: str, method: Any) -> None:
    options, changes = options_of(name, method)
    exact = [change(name, o, method) if o.factors is not None else None for o in options]
    ratios = [c / e for c, e in zip(changes, exact, strict=True) if e is not None and e > 1e-10]
    assert sum(abs(ratio - 1) < 1e-3 for ratio in ratios) >= 2, "two are measured"
    assert all(0.2 < ratio < 5 for ratio in ratios), "and what lies between follows a power of the layer's own error"


@pytest.mark.parametrize("name", ["0", "3"])
def test_error_between_fitted_ranks_is_close_to_a_fit(name: str) -> None:
    some, _ = options_of(name, "least_squares")
    every, _ = options_of(name, "least_squares", every=True)
    assert [(o.order, o.rank) for o in some] == [(o.order, o.rank) for o in every] == CHOICES
    assert sum(o.factors is None for o in some) > 4
    assert all(o.factors is not None for o in every)
    for one, other in zip(some, every, strict=True):
        if one.factors is not None:
            assert one.error == other.error
        elif other.error > 1e-9:  # a rank that is exact already costs more than the dense layer
            assert one.error == pytest.approx(other.error, rel=1)


def test_more_rank_changes_less_and_full_rank_nothing() -> None:
    for name in ("0", "3"):
        options, changes = options_of(name, "least_squares")
        for order in get_args(Order):
            of_order = [c for o, c in zip(options, changes, strict=True) if o.order == order]
            assert all(more <= 1.000001 * less + 1e-15 for less, more in pairwise(of_order))
            assert of_order[-1] < 1e-6 * of_order[0]


def test_measuring_leaves_the_model_unchanged() -> None:
    model = network().train()
    statistics = calibrate(model, images())
    conv = find_convertible(model).convertible["0"]
    moments = layer_moments(model, conv, statistics, "0")
    before = copy.deepcopy(model)
    options = fit_options(statistics["0"], conv, moments, CHOICES, "least_squares")
    measure_changes(model, statistics, conv, moments, options, "least_squares", ReplayCache(2**24))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    others = before.state_dict()
    assert all(torch.equal(tensor, others[key]) for key, tensor in model.state_dict().items())
