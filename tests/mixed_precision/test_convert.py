"""Conversion in several precisions in one call, on small networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_separable as ts
from torch_separable.conversion.planning.plan import Plan, Precision
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.mixed_precision import planning
from torch_separable.mixed_precision.layers import PlannedLayer, planned_layers
from torch_separable.mixed_precision.problem import latency_sizes
from torch_separable.mixed_precision.rounding_noise import measure_noise
from torch_separable.mixed_precision.timing import Key, MeasuredTimes, measure_times
from torch_separable.quantization import QuantizedNetwork
from torch_separable.quantization.quantization import captured
from torch_separable.quantization.roles import assign_roles
from torch_separable.quantization.sensitivity import measure_sensitivities
from torch_separable.runtime import available
from torch_separable.runtime.graph.ir import QuantizedConvolution

compiled = pytest.mark.skipif(not available(), reason="this installation has no kernel library: nothing can be timed")


def images(count: int = 48, seed: int = 0) -> Tensor:
    noise = torch.randn(count, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (12, 12), mode="bilinear")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.mix, self.head = nn.Conv2d(16, 24, 1), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.b(F.relu(self.a(x))) + x)
        result: Tensor = self.head(F.relu(self.mix(x)).mean((2, 3)))
        return result


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    model = Residual()
    model.train()(images(64))
    return model.eval()


@pytest.fixture(scope="module")
def int8(network: nn.Module) -> ts.MixedConversion:
    done = ts.convert(network, images(), budget=ts.Budget(macs=0.6), precision="int8", progress=False)
    assert isinstance(done, ts.MixedConversion)
    return done


NAMES = ["stem.0", "a", "b", "mix", "head"]


def test_int8_within_a_budget_of_macs_is_one_quantized_network(network: nn.Module, int8: ts.MixedConversion) -> None:
    done = int8
    assert isinstance(done.model, QuantizedNetwork)
    assert {layer.name: layer.precision for layer in done.plan.layers} == dict.fromkeys(NAMES, "int8")
    assert done.report.macs.converted <= 0.6 * done.report.macs.dense
    assert done.plan.converted
    assert done.quantization is not None
    assert not done.quantization.kept
    assert done.dtype == torch.float32
    program = done.model.program(images(2))
    assert any(isinstance(node, QuantizedConvolution) and node.depthwise is not None for node in program.nodes)
    # The report is that of the quantized network against the dense one.
    held_out = images()[36:]
    with torch.no_grad():
        expected = network(held_out)
    agreement = float((done.model(held_out).argmax(1) == expected.argmax(1)).float().mean())
    assert done.report.agreement == pytest.approx(agreement)
    assert done.report.held_out_images == 12
    assert "int8" in str(done)
    assert "changes the outputs by" in done.plan.layers[0].reason
    assert "5 int8" in repr(done)


def test_its_plan_can_be_saved_edited_and_carried_out(
    network: nn.Module, int8: ts.MixedConversion, tmp_path: Path
) -> None:
    done = int8
    done.plan.save(tmp_path / "plan.json")
    again = ts.convert(network, images(), plan=Plan.load(tmp_path / "plan.json"), progress=False)
    assert isinstance(again, ts.MixedConversion)
    assert again.plan.to_dict() == done.plan.to_dict()
    assert torch.equal(again.model(images(4)), done.model(images(4)))
    document = done.plan.to_dict()
    for layer in document["layers"]:
        layer["precision"] = "int8" if layer["name"] in ("a", "head") else "f32"
    edited = ts.convert(network, images(), plan=Plan.from_dict(document), progress=False)
    assert isinstance(edited, ts.MixedConversion)
    assert edited.quantization is not None
    assert {name.partition(".")[0] for name in edited.quantization.kept} == {"stem", "b", "mix"}
    document["layers"][0]["precision"] = "int4"
    with pytest.raises(SeparableError, match="precision='int4'"):
        Plan.from_dict(document)


def test_a_mixed_conversion_is_saved_with_its_plan(int8: ts.MixedConversion, tmp_path: Path) -> None:
    done = int8
    again = ts.load(ts.save(done, tmp_path / "run"))
    assert torch.equal(again(images(4)), done.model(images(4)))
    assert Plan.load(tmp_path / "run" / "plan.json") == done.plan


def test_one_rank_for_all_layers_in_int8(network: nn.Module) -> None:
    done = ts.convert(network, images(), rank=3, precision="int8", exclude=["stem"], progress=False)
    assert [layer.rank for layer in done.plan.layers if layer.order] == [3, 3]
    assert all(layer.precision == "int8" for layer in done.plan.layers)
    assert isinstance(done.model, QuantizedNetwork)


def test_bfloat16_is_planned_and_stays_an_ordinary_module(network: nn.Module) -> None:
    done = ts.convert(network, images(), budget=ts.Budget(parameters=0.8), precision="bf16", progress=False)
    assert isinstance(done, ts.MixedConversion)
    assert done.dtype == torch.bfloat16
    assert done.quantization is None
    assert type(done.model) is Residual
    if available():
        found = ts.compile(done.model, images(1), dtype=done.dtype).verify(images(8))
        assert found.precision == "bfloat16"


def test_float32_is_the_plain_conversion(network: nn.Module) -> None:
    done = ts.convert(network, images(), budget=ts.Budget(macs=0.6), progress=False)
    assert type(done) is ts.Conversion
    assert "precision" not in str(done)


@compiled
def test_auto_chooses_form_and_precision_within_milliseconds(network: nn.Module) -> None:
    x = images()
    measured(network, x)
    with pytest.raises(SeparableError, match=r"latency_ms=[\d.e-]+ ms"):
        ts.convert(network, x, budget=ts.Budget(latency_ms=1e-6), precision="auto", progress=False)
    done = ts.convert(network, x, budget=ts.Budget(latency_ms=1000), precision="auto", progress=False)
    assert done.plan.latency is not None
    assert 0 < done.plan.latency.milliseconds.converted < 1000
    assert not done.plan.converted
    assert isinstance(done, ts.MixedConversion)
    assert ts.compile(done.model, x[:1], dtype=done.dtype)(x[:1]).shape == (1, 10)


def measured(network: nn.Module, x: Tensor) -> MeasuredTimes:
    graph = captured(network, x.shape[1:])
    layers = planned_layers(graph, assign_roles(graph.graph), {"a": [("depthwise_first", r) for r in range(1, 5)]})
    assert [layer.name for layer in layers] == NAMES
    times = measure_times(network, x[:1], layers, ("f32", "int8"), progress=False)
    # Predictions are exact for the dense network in each precision.
    size, rest = latency_sizes(times, layers, ("f32", "int8"))
    for precision in ("f32", "int8"):
        predicted = rest + sum(size(layer, None, precision) for layer in layers)
        assert predicted == pytest.approx(times.whole[precision], rel=1e-6)
    between = [times.of(layers[1], ("depthwise_first", rank), "int8") for rank in (3, 4)]
    assert min(between) > 0
    assert all(0 < milliseconds < 1 for layer in layers for milliseconds in times.border(layer))
    return times


def test_more_milliseconds_never_change_the_outputs_more(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """With costs that do not vary from run to run, and follow the number of weights."""
    x = images()
    costs: dict[Precision, float] = {"f32": 4.0, "int8": 1.0}

    def times(
        _: nn.Module, __: Tensor, layers: Sequence[PlannedLayer], precisions: Sequence[Precision], **___: object
    ) -> MeasuredTimes:
        found: dict[Key, float] = {}
        for layer in layers:
            for choice in (None, *layer.choices):
                for precision in precisions:
                    share = 1.0 if choice is None else 0.1 * (choice[1] + 1)
                    work = costs[precision] * share * sum(p.numel() for p in layer.module.parameters())
                    found[str(layer.module), layer.shapes[0], choice, precision] = work
        borders = {layer.shapes[0]: (100.0, 100.0) for layer in layers}
        whole = {
            p: sum(found[str(layer.module), shape, None, p] for layer in layers for shape in layer.shapes)
            for p in precisions
        }
        return MeasuredTimes(found, borders, whole)

    monkeypatch.setattr(planning, "measure_times", times)
    monkeypatch.setattr(planning, "has_bfloat16", lambda: False)
    dense = 4.0 * sum(p.numel() for p in network.parameters())
    errors, precisions = [], []
    for share in (0.25, 1.0):
        budget = ts.Budget(latency_ms=share * dense)
        done = ts.convert(network, x, budget=budget, precision="auto", progress=False)
        assert done.plan.latency is not None
        assert done.plan.latency.milliseconds.converted <= share * dense * (1 + 1e-9)
        errors.append(done.report.output_error)
        precisions.append({layer.precision for layer in done.plan.layers})
    assert "int8" in precisions[0]
    assert precisions[1] == {"f32"}
    assert errors[-1] < 1e-4
    assert errors[0] > errors[-1]


def test_noise_of_a_dense_layer_is_its_sensitivity(network: nn.Module) -> None:
    x = images()
    graph = captured(network, x.shape[1:])
    roles = assign_roles(graph.graph)
    layers = planned_layers(graph, roles, {"a": [("pointwise_first", 2)]})
    noise = measure_noise(graph, roles, layers, [x[:36]], [x[36:]], lambda _: None)
    alone = measure_sensitivities(graph, roles, [x[:36]], [x[36:]], lambda _: None)
    assert {name: each.int8[None] for name, each in noise.items()} == pytest.approx(
        {name: each.change for name, each in alone.items()}
    )
    assert set(noise["a"].int8) == {None, "pointwise_first"}
    # bfloat16 has 8 bits as int8 has, but a scale of its own for every value.
    assert all(0 < each.bf16 < 1e-3 for each in noise.values())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"precision": "int4", "rank": 1}, "precision='int4'"),
        ({"precision": "auto", "budget": ts.Budget(macs=0.5)}, "latency_ms"),
        ({"precision": "auto", "rank": 1}, "latency_ms"),
        ({"precision": "int8"}, "neither"),
        ({"precision": "int8", "budget": ts.Budget(latency_ms=1, engine="pytorch")}, "only the compiled runtime"),
    ],
)
def test_arguments_that_contradict_are_refused(network: nn.Module, given: dict[str, object], message: str) -> None:
    with pytest.raises(SeparableValueError, match=message):
        ts.convert(network, images(), progress=False, **given)  # type: ignore[arg-type]


def test_budgets_out_of_reach_and_inputs_of_other_kinds_are_refused(network: nn.Module) -> None:
    with pytest.raises(SeparableError, match=r"macs=0\.\d+\. Raise the budget"):
        ts.convert(network, images(), budget=ts.Budget(macs=0.01), precision="int8", progress=False)
    with pytest.raises(SeparableError, match="1 calibration images: at least 8"):
        ts.convert(network, images(1), budget=ts.Budget(macs=0.5), precision="int8", progress=False)
    with pytest.raises(SeparableValueError, match="networks of one input"):
        ts.convert(network, {"x": images()}, budget=ts.Budget(macs=0.5), precision="int8", progress=False)
