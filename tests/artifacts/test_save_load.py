"""A network is loaded from its folder as it was saved, with the function that builds it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from saving_cases import NAMES, same
from torch_separable import Conversion, Plan, SeparableError, apply, load, save
from torch_separable.artifacts import run_directory
from torch_separable.conversion import LayerPlan
from torch_separable.models import MobileNetV1, mobilenet_v1, resnet20
from torch_separable.models.registry import Network, built_by


@pytest.mark.parametrize("name", ["network", "Ünïcode 网络 and spaces", "new/folder/in it"])
def test_conversion_round_trips(tmp_path: Path, conversion: Conversion, name: str) -> None:
    folder = save(conversion, tmp_path / name)
    assert folder == tmp_path / name
    assert sorted(path.name for path in folder.iterdir()) == NAMES
    loaded = load(str(folder))
    assert not loaded.training
    assert same(loaded, conversion.model)
    assert Plan.load(folder / "plan.json") == conversion.plan
    assert built_by(loaded) == Network(
        "torch_separable.models:CifarResNet", {"blocks": 3, "num_classes": 7, "in_channels": 3}, (3, 32, 32)
    )


def test_plan_is_derived_from_the_network_if_it_is_not_given(tmp_path: Path, conversion: Conversion) -> None:
    save(conversion.model, tmp_path / "found", input_shape=(3, 32, 32))
    assert same(load(tmp_path / "found"), conversion.model)
    found = Plan.load(tmp_path / "found" / "plan.json")
    expected = {layer.name: (layer.order, layer.rank, layer.weight_shape) for layer in conversion.plan.layers}
    assert {layer.name: (layer.order, layer.rank, layer.weight_shape) for layer in found.layers} == expected
    assert (found.macs, found.parameters) == (conversion.plan.macs, conversion.plan.parameters)


@pytest.mark.parametrize("method", ["svd", "least_squares"])
def test_derived_plan_builds_the_existing_biases(tmp_path: Path, method: Any) -> None:
    dense = resnet20()
    layers = [LayerPlan("layer1.0.conv1", (16, 16, 3, 3), "pointwise_first", 2)]
    converted = apply(dense, Plan(method, tuple(layers)))
    save(converted, tmp_path)
    assert same(load(tmp_path), converted)


def test_loaded_network_is_saved_again_without_naming_its_function(tmp_path: Path, conversion: Conversion) -> None:
    first = save(conversion, tmp_path / "first")
    second = save(load(first), tmp_path / "second")
    assert same(load(second), conversion.model)
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_data_types_are_kept(tmp_path: Path, conversion: Conversion, dtype: torch.dtype) -> None:
    save(apply(load(save(conversion, tmp_path / "a")), Plan("svd", ())).to(dtype), tmp_path / "b")
    state = load(tmp_path / "b").state_dict()
    assert {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} == {dtype}


def test_a_loaded_network_of_another_type_is_counted_when_it_is_saved(tmp_path: Path, conversion: Conversion) -> None:
    save(conversion, tmp_path / "one")
    loaded = load(tmp_path / "one").to(torch.bfloat16)
    save(loaded, tmp_path / "two", input_shape=(3, 32, 32))
    assert Plan.load(tmp_path / "two" / run_directory.PLAN).macs == conversion.plan.macs


def test_totals_of_an_edited_plan_are_recomputed(tmp_path: Path, conversion: Conversion) -> None:
    layers = tuple(dataclasses.replace(layer, order=None, rank=0) for layer in conversion.plan.layers)
    edited = dataclasses.replace(conversion.plan, layers=layers)
    assert edited.macs[0] > edited.macs[1]
    save(apply(resnet20(num_classes=7), edited), tmp_path, plan=edited, input_shape=(3, 32, 32))
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.macs == (edited.macs[0], edited.macs[0])
    assert plan.parameters == (edited.parameters[0], edited.parameters[0])


def test_network_built_with_separable_layers_is_saved(tmp_path: Path) -> None:
    network = mobilenet_v1(0.25, num_classes=4)
    assert same(load(save(network, tmp_path)), network)


@pytest.mark.parametrize("how", ["name", "function", "class", "Network"])
def test_allowed_function_builds_a_user_network(tmp_path: Path, own_module: str, how: str) -> None:
    module = __import__(own_module)
    layer = LayerPlan("layer1.1.conv2", (16, 16, 3, 3), "depthwise_first", 2)
    converted = apply(module.build(blocks=2), Plan("svd", (layer,)))
    given: dict[str, Any] = {
        "name": {"network": f"{own_module}:build", "arguments": {"blocks": 2}},
        "function": {"network": module.build, "arguments": {"blocks": 2}},
        "class": {"network": module.Net, "arguments": {"blocks": 2}},
        "Network": {"network": Network(f"{own_module}:build", {"blocks": 2})},
    }[how]
    save(converted, tmp_path / "n", **given)
    for allow in ((own_module,), own_module, (f"{own_module}:build", f"{own_module}:Net")):
        assert same(load(tmp_path / "n", allow=allow), converted)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "network is missing: .* dense Sequential"),
        ({"network": lambda: None}, "cannot be imported by its name"),
        ({"network": "resnet20"}, r"resnet20\(\) and the plan do not build this network: 0.weight is of shape"),
        ({"network": "nowhere:f"}, "no module nowhere"),
        ({"network": "a b:f"}, "the network to save names the model 'a b:f'"),
        ({"network": "resnet20", "arguments": {"x": "/data/w.pth"}}, "could be the path"),
        ({"network": "resnet20", "arguments": {"x": nn.ReLU}}, "a type is neither a number nor a string"),
        ({"network": "resnet20", "results": {"accuracy": torch.zeros(1)}}, "results cannot be written as JSON"),
        ({"network": "resnet20", "settings": {"rate": float("nan")}}, "settings cannot be written as JSON"),
    ],
)
def test_network_that_could_not_be_loaded_is_not_saved(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(SeparableError, match=message):
        save(nn.Sequential(nn.Conv2d(3, 4, 3)), tmp_path / "n", **given)
    assert list(tmp_path.iterdir()) == []


def test_network_changed_after_it_was_built_is_not_saved(tmp_path: Path) -> None:
    network = resnet20()
    network.linear = nn.Linear(64, 100)
    with pytest.raises(SeparableError, match=r"linear.weight is of shape \(100, 64\) .*of shape \(10, 64\)"):
        save(network, tmp_path / "n")


def test_plan_of_another_conversion_is_not_saved_beside_the_network(tmp_path: Path, conversion: Conversion) -> None:
    other = Plan("svd", (LayerPlan("layer1.0.conv1", (16, 16, 3, 3), "depthwise_first", 5),))
    with pytest.raises(SeparableError, match="and the plan do not build this network"):
        save(conversion.model, tmp_path / "n", plan=other)


def test_subclass_of_a_built_in_network_is_not_saved_as_it(tmp_path: Path) -> None:
    class Other(MobileNetV1):
        pass

    assert built_by(MobileNetV1(0.25)) == Network("torch_separable.models:MobileNetV1", {"width_multiplier": 0.25})
    assert built_by(Other(0.25)) is None
