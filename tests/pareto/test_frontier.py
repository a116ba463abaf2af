"""A whole frontier of a small network, and what is refused."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor, nn

import torch_separable as ts
from torch_separable.errors import SeparableValueError
from torch_separable.pareto.candidates import PEERS, outputs_of, peers
from torch_separable.pareto.measuring import images_of, judge_of
from torch_separable.runtime import available

pytestmark = pytest.mark.skipif(not available(), reason="this installation has no kernel library: nothing can be timed")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 8),
        nn.Flatten(),
    ).eval()  # fmt: skip


def images(count: int = 48) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_every_form_and_precision_is_measured_beside_a_peer() -> None:
    model, test = network(), images(20)
    with torch.no_grad():
        labels = model(test).argmax(1)
    installed = ["onnxruntime_int8"] if importlib.util.find_spec("onnxruntime") else []
    found = ts.frontier(
        model, images(), test_images=test, labels=labels, budgets=[ts.Budget(macs=0.9), ts.Budget(macs=0.001)],
        engines=installed, rounds=1, progress=False,
    )  # fmt: skip
    measured = {(p.form, p.engine, p.precision): p for p in found.points if p.precision != "bf16"}
    assert {key for key in measured if key[1] == "torch-separable"} == {
        (form, "torch-separable", precision) for form in ("dense", "macs=0.9") for precision in ("f32", "int8")
    }
    assert len(measured) == 4 + len(installed)
    assert measured["dense", "torch-separable", "f32"].quality == 1
    assert all(p.milliseconds > 0 and p.quality > 0.5 for p in measured.values())
    assert measured["macs=0.9", "torch-separable", "f32"].macs <= 0.9 * measured["dense", "torch-separable", "f32"].macs
    assert (found.quality, found.images, found.threads, found.batch) == ("accuracy", 20, 1, 1)
    assert any("macs=0.001" in problem for problem in found.problems)
    assert set(found.best) <= set(found.points)


def test_without_labels_quality_is_agreement_with_float32() -> None:
    reference = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    judge = judge_of(reference, None, None)
    assert judge(reference) == 1
    assert judge(reference.flip(0)) == 0
    assert judge(torch.tensor([[1.0, 0.0]] * 4)) == 0.5


def test_labels_and_the_callers_metric_judge_all_outputs() -> None:
    outputs = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert judge_of(outputs, torch.tensor([0, 0]), None)(outputs) == 0.5
    assert judge_of(outputs, None, lambda all_of_them: float(all_of_them.sum()))(outputs) == 2


def test_a_quarter_of_the_images_is_held_out() -> None:
    fitted, tested = images_of(images(), None)
    assert torch.equal(torch.cat([fitted, tested]), images())
    assert len(tested) == 12


@pytest.mark.parametrize("key", [key for key in PEERS if not key.endswith("bf16")])
def test_outputs_of_peers_are_those_of_the_network(key: str) -> None:
    pytest.importorskip(PEERS[key][0], reason="an optional engine")
    problems: list[str] = []
    model, test = network(), images(130)  # more than one pass, and a part of one
    (peer,) = peers(model, images(), [key], problems)
    with torch.no_grad():
        expected = model(test)
    change = (outputs_of(peer.predict, test) - expected).square().mean() / expected.var()
    assert change < (0.05 if peer.precision == "int8" else 1e-8)
    assert not problems


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": torch.full((12,), 4), "test_images": images(12)}, r"0\.\.3"),
        ({"labels": torch.full((12,), -1), "test_images": images(12)}, "labels lie in -1"),
        ({"labels": torch.zeros(5, dtype=torch.long)}, "Give test_images"),
        ({"labels": torch.zeros(12, dtype=torch.long), "metric": lambda _: 0.0}, "both given"),
        ({"engines": ["tensorrt"]}, "tensorrt"),
        ({"threads": 0}, "threads=0"),
        ({"rounds": 0}, "rounds=0"),
        ({"budgets": [0.5]}, "list of Budget"),
        ({"test_images": images(2)[0]}, "test_images"),
        ({"test_images": images(2)[..., :4]}, "images have"),
        ({"test_images": images(0)}, "at least one image"),
    ],
)
def test_bad_arguments_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(SeparableValueError, match=message):
        ts.frontier(network(), images(), progress=False, **given)  # type: ignore[arg-type]


def test_one_image_is_refused() -> None:
    with pytest.raises(ts.SeparableError, match="1 calibration images"):
        ts.frontier(network(), images(1), progress=False)
