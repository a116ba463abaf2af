"""What a run records of its two networks adds up, and is what counting and timing each alone gives."""

from __future__ import annotations

import copy
import time
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from torch_separable.bench.compare import Comparison, compare
from torch_separable.conversion import apply, calibrate, plan
from torch_separable.cost import analyze
from torch_separable.runtime import available


class Slow(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return x


class Unusual(nn.Module):
    """A parameter of its own, a layer that runs twice, one that never does, and a sum outside of all modules."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(7))
        self.first = nn.Conv2d(3, 7, 3, padding=1)
        self.twice = nn.Sequential(OrderedDict(conv=nn.Conv2d(7, 7, 3, padding=1), act=nn.ReLU()))
        self.never = nn.Conv2d(7, 7, 3)
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.first(x))) * self.scale.view(-1, 1, 1)
        return self.head(torch.einsum("nchw->nc", x))


def pair() -> tuple[nn.Module, nn.Module, Tensor]:
    dense, images = Unusual(), torch.randn(16, 3, 8, 8)
    statistics = calibrate(dense, images)
    return dense, apply(dense, plan(dense, statistics, rank=2), statistics), images


@pytest.fixture(scope="module")
def compared() -> tuple[nn.Module, nn.Module, Tensor, Comparison]:
    torch.manual_seed(0)
    dense, separable, images = pair()
    return dense, separable, images, compare(dense, separable, images[:4])


def test_totals_equal_the_count_of_each_network(
    compared: tuple[nn.Module, nn.Module, Tensor, Comparison],
) -> None:
    *networks, images, result = compared
    counted = [analyze(network, images[:1]) for network in networks]
    assert result.macs == tuple(summary.macs for summary in counted)
    assert result.parameters == tuple(summary.parameters for summary in counted)
    states = [network.state_dict().values() for network in networks]
    assert result.bytes == tuple(sum(t.numel() * t.element_size() for t in state) for state in states)
    assert (result.images, result.threads) == (4, torch.get_num_threads())
    assert 5 <= result.rounds <= 60


def test_layers_add_up_to_the_totals(compared: tuple[nn.Module, nn.Module, Tensor, Comparison]) -> None:
    dense, _, _, result = compared
    assert [layer.name for layer in result.layers] == ["", "first", "twice.conv", "twice.act", "never", "head"]
    for which in (0, 1):
        assert sum(layer.parameters[which] for layer in result.layers) == result.parameters[which]
        assert sum(layer.macs[which] for layer in result.layers) == result.macs[which]
        spent = sum(layer.milliseconds[which] for layer in result.layers)
        assert spent == pytest.approx(result.milliseconds[which])
    by_name = {layer.name: layer for layer in result.layers}
    assert by_name[""].type == type(dense).__name__
    assert by_name[""].parameters == (7, 7)
    assert by_name["twice.conv"].macs[0] == 2 * 7 * 7 * 9 * 64
    assert by_name["never"].macs == (0, 0)
    assert by_name["never"].milliseconds == (0, 0)
    assert by_name["first"].parameters[0] > by_name["first"].parameters[1]


def test_time_is_assigned_to_the_slow_layer() -> None:
    dense = nn.Sequential(OrderedDict(a=Slow(0.004), b=nn.Identity(), c=Slow(0.002)))
    separable = nn.Sequential(OrderedDict(a=Slow(0.001), b=nn.Identity(), c=Slow(0.002)))
    result = compare(dense, separable, torch.zeros(1, 3, 4, 4))
    by_name = {layer.name: layer.milliseconds for layer in result.layers}
    assert by_name["a"][0] > 1.5 * by_name["c"][0] > 10 * by_name["b"][0]
    assert by_name["a"][0] > 2 * by_name["a"][1]
    assert result.milliseconds[0] >= 6


def test_networks_are_not_changed() -> None:
    dense, separable, images = pair()
    dense.train()
    separable.twice.train()
    state = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    compare(dense, separable, images[:2])
    assert dense.training
    assert dense.twice.conv.training
    assert separable.twice.training
    assert all(torch.equal(state[name], tensor) for name, tensor in dense.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in dense.modules())


def test_results_have_json_types(compared: tuple[nn.Module, nn.Module, Tensor, Comparison]) -> None:
    result = compared[-1]
    assert result.times()["dense"] == result.milliseconds[0]
    assert result.layer_rows()[1] == {
        "name": "first",
        "type": "Conv2d",
        "parameters": result.layers[1].parameters,
        "macs": result.layers[1].macs,
        "milliseconds": result.layers[1].milliseconds,
    }
    tried = {"accuracy": 0.5, "correct": 5, "count": 10, "loss": 1.0}
    assert result.step("last", 1, tried) == {
        "name": "last",
        "accuracy": 0.5,
        "correct": 5,
        "count": 10,
        "macs": result.macs[1],
        "parameters": result.parameters[1],
        "bytes": result.bytes[1],
    }
    assert result.step("dense", 0)["accuracy"] is None


def test_both_networks_are_timed_compiled_or_the_reason_is_given(
    compared: tuple[nn.Module, nn.Module, Tensor, Comparison],
) -> None:
    dense, separable, images, _ = compared
    if available():
        plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        result = compare(plain, nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), images[:1])
        assert result.problem == ""
        assert result.compiled is not None
        assert min(result.compiled) > 0
        assert result.times()["compiled"] == {"dense": result.compiled[0], "separable": result.compiled[1]}
    dense = copy.deepcopy(dense)
    with torch.no_grad():
        dense.get_parameter("first.weight")[0] = float("nan")
    broken = compare(dense, separable, images[:1])
    assert broken.compiled is None
    assert broken.times()["compiled"] is None
    assert "first.weight" in broken.problem or not available()
