from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torch_separable.conversion import Latency, LayerPlan, Plan, apply, calibrate
from torch_separable.conversion.convolutions import spec_of
from torch_separable.conversion.planning.plan import separable_macs, separable_specs
from torch_separable.conversion.solvers.factorize import Order
from torch_separable.cost import analyze
from torch_separable.errors import SeparableError
from torch_separable.nn.separable import SEPARABLE

ORDERS: tuple[Order, ...] = get_args(Order)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
pairs = st.tuples(st.integers(0, 2**60), st.integers(0, 2**60))


@st.composite
def layer_plans(draw: st.DrawFn, name: str) -> LayerPlan:
    order = draw(st.sampled_from([None, *ORDERS]))
    return LayerPlan(
        name=name,
        weight_shape=tuple(draw(st.lists(st.integers(1, 4096), min_size=3, max_size=5))),
        order=order,
        rank=draw(st.integers(1, 49)) if order else 0,
        reason=draw(words),
        macs=draw(pairs),
        parameters=draw(pairs),
        error=draw(st.floats(allow_nan=False, allow_infinity=False)),
        dense=draw(words),
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    names = draw(st.lists(words.filter(bool), unique=True, max_size=5))
    layers = tuple(draw(layer_plans(name)) for name in names)
    times = st.floats(0, allow_nan=False, allow_infinity=False)
    engines = st.sampled_from(["compiled", "pytorch"])
    latency = draw(st.none() | st.builds(Latency, st.tuples(times, times), engines, st.integers(1, 512)))
    return Plan(draw(st.sampled_from(["least_squares", "svd"])), layers, draw(pairs), draw(pairs), latency)


@given(plan=plans())
def test_plan_survives_save_and_load(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan
    assert json.loads(path.read_text(encoding="utf-8"))["version"] == 1


def document() -> dict[str, Any]:
    layer = LayerPlan("conv1", (8, 4, 3, 3), "depthwise_first", 2, "cheap", (100, 50), (288, 136), 0.1)
    kept = LayerPlan("conv2", (8, 8, 1, 1), None, reason="1x1")
    plan: dict[str, Any] = json.loads(json.dumps(Plan("svd", (layer, kept), (200, 150), (400, 248)).to_dict()))
    return plan


MALFORMED: dict[str, list[Any]] = {
    "name": [3, None, "", ["conv1"]],
    "weight_shape": ["8x4", None, [8, -4], [8.0, 4], [True, 4], 8],
    "order": ["depthwise", 1, True, {}, ["depthwise_first"]],
    "rank": [0, -1, 1.0, True, "2", None],
    "reason": [None, 3, ["a"]],
    "macs": [[1], [1, 2, 3], [1, -2], 7, None, "ab", [1.5, 2]],
    "parameters": [[], [1, "2"], {}],
    "error": ["small", None, True, float("nan"), float("inf")],
    "dense": [None, 3],
    "precision": ["fp32", "", None, 8],
}


def test_malformed_cases_cover_every_field() -> None:
    assert set(MALFORMED) == {field.name for field in fields(LayerPlan)}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in MALFORMED.items() for value in values])
def test_malformed_field_of_a_layer_raises_and_is_named(name: str, value: Any, tmp_path: Path) -> None:
    plan = document()
    plan["layers"][0][name] = value
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    with pytest.raises(SeparableError, match=rf"plan\.json: .*\b{name}\b"):
        Plan.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "guess"}, "method='guess'.* least_squares, svd"),
        ({"method": None}, "method=None"),
        ({"method": ["svd"]}, r"method=\['svd'\]"),
        ({"macs": [1]}, r"macs=\[1\]"),
        ({"parameters": [1, -1]}, r"parameters=\[1, -1\]"),
        ({"parameters": None}, "parameters=None"),
        ({"layers": {}}, "layers"),
        ({"layers": ["conv1"]}, "layer 0 of the plan is not a JSON object"),
        ({"layers": [{"name": "conv1", "order": None}]}, "layer 0 of the plan lacks 'weight_shape'"),
        ({"version": 2}, "version 2.* version 1"),
        ({"version": None}, "version None"),
        ({"latency": 2.5}, "latency"),
        ({"latency": {"milliseconds": [2, 1]}}, "latency.* 'engine'"),
        ({"latency": {"milliseconds": [2], "engine": "compiled", "threads": 1}}, r"milliseconds=\[2\]"),
        ({"latency": {"milliseconds": [2, -1], "engine": "compiled", "threads": 1}}, r"milliseconds=\[2, -1\]"),
        ({"latency": {"milliseconds": [2, 1], "engine": "tpu", "threads": 1}}, "engine='tpu'"),
        ({"latency": {"milliseconds": [2, 1], "engine": "compiled", "threads": 0}}, "threads=0"),
        ({"version": True}, "version True"),
        ({"version": "1"}, "version '1'"),
        ({"budget": 0.5}, "'budget'.* latency, layers, macs, method, parameters, version"),
    ],
)
def test_malformed_plan_raises_and_names_the_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SeparableError, match=message):
        Plan.from_dict({**document(), **change})


@pytest.mark.parametrize("name", ["method", "layers", "version"])
def test_missing_field_is_named(name: str) -> None:
    plan = document()
    del plan[name]
    with pytest.raises(SeparableError, match=name):
        Plan.from_dict(plan)


def test_misspelt_field_of_a_layer_is_named() -> None:
    plan = document()
    plan["layers"][1]["ranks"] = 3
    with pytest.raises(SeparableError, match=r"layer 1 .*'ranks'.* rank"):
        Plan.from_dict(plan)


def test_layer_that_occurs_twice_raises() -> None:
    plan = document()
    plan["layers"].append(plan["layers"][0])
    with pytest.raises(SeparableError, match="'conv1'"):
        Plan.from_dict(plan)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON"),
        ('{"version": 1,', "is not JSON"),
        ("[]", "a plan is a JSON object, not a list"),
        ("null", "a plan is a JSON object, not a NoneType"),
        (b"\xff\xfe\x00", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_file_that_is_not_a_plan_raises(content: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SeparableError, match=rf"plan\.json.*{message}"):
        Plan.load(path)
    with pytest.raises(SeparableError, match=r"cannot read a plan from .*absent\.json: No such file"):
        Plan.load(tmp_path / "absent.json")


def test_edited_plan_is_applied(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    images, path = torch.randn(16, 3, 8, 8), tmp_path / "plan.json"
    shapes = [tuple(net[i].weight.shape) for i in (0, 2)]
    plan = Plan("least_squares", (LayerPlan("0", shapes[0], None), LayerPlan("2", shapes[1], "depthwise_first", 1)))
    plan.save(path)
    text = path.read_text()
    assert text.count('"rank": 1') == text.count('"depthwise_first"') == 1
    path.write_text(text.replace('"rank": 1', '"rank": 3').replace("depthwise_first", "pointwise_first"))
    edited = apply(net, Plan.load(path), calibrate(net, images))
    assert (edited[2].order, edited[2].depth_multiplier) == ("pointwise_first", 3)
    assert isinstance(edited[0], nn.Conv2d)


def test_failed_save_leaves_the_old_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan = Plan.from_dict(document())
    plan.save(path)
    before = path.read_bytes()
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(SeparableError, match=r"cannot write "):
        plan.save(blocked / "plan.json")
    with pytest.raises(SeparableError, match="version 2"):
        replace(plan, version=2)
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"file", "plan.json"}


def test_text_contains_layers_and_totals() -> None:
    text = str(Plan.from_dict(document()))
    assert all(word in text for word in ("conv1", "conv2", "1x1", "200", "150"))


CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dimensions", [1, 2, 3])
@given(data=st.data())
def test_planned_cost_equals_that_of_the_real_layers(dimensions: int, order: Order, data: st.DataObject) -> None:
    def one_each(least: int, most: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(least, most)) for _ in range(dimensions))

    groups, rank = data.draw(st.sampled_from([1, 2, 3])), data.draw(st.integers(1, 5))
    same = data.draw(st.booleans())
    window: dict[str, Any] = {
        "kernel_size": one_each(1, 4),
        "stride": 1 if same else one_each(1, 3),
        "padding": "same" if same else one_each(0, 2),
        "dilation": one_each(1, 2),
        "groups": groups,
    }
    conv = CONV[dimensions](2 * groups, 3 * groups, **window)
    layer = SEPARABLE[dimensions](
        2 * groups, 3 * groups, depth_multiplier=rank, order=order, bias_between=False, **window
    )
    image = torch.zeros(1, 2 * groups, *one_each(7, 9))
    spec = spec_of(conv)
    pixels = image[0, 0].numel(), conv(image)[0, 0].numel()
    assert separable_macs(spec, order, rank, *pixels) == analyze(layer, image).macs
    first, second = separable_specs(spec, order, rank)
    assert first.parameters + second.parameters == sum(p.numel() for p in layer.parameters())


def test_costs_equal_the_papers_closed_forms() -> None:
    # arXiv 1704.04861, section 3.1: k²·C + C·M for each pixel; BSConv: the pointwise part runs at the input's size.
    spec = spec_of(nn.Conv2d(16, 32, 3, stride=2, padding=1))
    assert separable_macs(spec, "depthwise_first", 2, 64, 16) == 2 * (9 * 16 + 16 * 32) * 16
    assert separable_macs(spec, "pointwise_first", 2, 64, 16) == 2 * (16 * 32 * 64 + 9 * 32 * 16)
