"""What is no network, or none whose layers can be seen, is told in one line by whatever takes a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch_separable as ts
from torch_separable.data import ImageData
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.runtime import available, fuse_modules

IMAGES = torch.rand(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))
DATA = ImageData("noise", "test", IMAGES, torch.arange(16) % 4, tuple("abcd"))


def network(classes: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )


TAKERS: dict[str, Callable[[Any, Path], Any]] = {
    "convert": lambda model, place: ts.convert(model, IMAGES, rank=2),
    "export": lambda model, place: ts.export(model, place / "a.pt2", images=IMAGES),
    "evaluate": lambda model, place: ts.evaluate(model, DATA),
    "distill": lambda model, place: ts.distill(model, network(), DATA, epochs=1),
    "distill from": lambda model, place: ts.distill(network(), model, DATA, epochs=1),
}
if available():
    TAKERS["compile"] = lambda model, place: ts.compile(model, IMAGES[:1])
    TAKERS["fuse_modules"] = lambda model, place: fuse_modules(model)


@pytest.mark.parametrize("name", TAKERS)
def test_objects_that_are_no_network_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SeparableValueError, match=r"is a str: expected a network \(torch.nn.Module\)"):
        TAKERS[name]("resnet20", tmp_path)
    if name != "export":  # which takes what `convert` returned
        with pytest.raises(SeparableValueError, match=r"is a Conversion: expected a network .*, as its \.model is"):
            TAKERS[name](ts.convert(network(), IMAGES, rank=2), tmp_path)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", TAKERS)
@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, IMAGES[:1])])
def test_scripted_networks_are_refused(name: str, make: Callable[[nn.Module], Any], tmp_path: Path) -> None:
    with pytest.raises(SeparableValueError, match="is scripted or traced"):
        TAKERS[name](make(network().eval()), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_networks_of_another_precision_are_refused_with_advice(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    precision = str(dtype).removeprefix("torch.")
    with pytest.raises(SeparableError, match=rf"the student is in {precision}.*student\.float\(\)"):
        ts.distill(model, network(), DATA, epochs=1)
    if available():
        with pytest.raises(SeparableError, match=rf"the model is in {precision}.*model\.float\(\)"):
            ts.compile(model, IMAGES[:1])
    wide = ts.evaluate(network(), DATA)
    assert ts.evaluate(model, DATA).count == wide.count


@pytest.mark.skipif(not available(), reason="this installation has no kernel library")
def test_compiled_networks_are_evaluated_and_say_what_they_are() -> None:
    model = network().eval()
    compiled = ts.compile(model, IMAGES[:1])
    found, expected = ts.evaluate(compiled, DATA), ts.evaluate(model, DATA)
    assert (found.correct, found.count) == (expected.correct, expected.count)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert repr(compiled).startswith("CompiledModel(Sequential, ")
    assert "float32, (1, 3, 12, 12)" in repr(compiled)


def test_objects_that_are_no_image_data_are_refused() -> None:
    with pytest.raises(SeparableValueError, match="data is a int"):
        ts.distill(network(), network(), 3)  # type: ignore[arg-type]
    with pytest.raises(SeparableValueError, match="validation is a int"):
        ts.distill(network(), network(), DATA, validation=3)  # type: ignore[arg-type]


def test_one_number_for_each_image_has_no_classes_to_distil() -> None:
    with pytest.raises(SeparableValueError, match=r"shape \(2, 1\).* logits_weight=0"):
        ts.distill(network(1), network(1), DATA, epochs=1)
    student = ts.convert(network(1), IMAGES, rank=1).model
    trained = ts.distill(student, network(1), DATA, epochs=1, logits_weight=0, feature_weight=1, progress=False)
    assert not torch.equal(trained[0].conv_dw.weight, student[0].conv_dw.weight)  # type: ignore[index]
