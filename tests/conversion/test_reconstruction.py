"""Reconstruction brings the converted network closer to the dense one on images that it has not seen."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import torch_separable as ts
from torch_separable.conversion import conversion as module
from torch_separable.conversion.calibration.outputs import collect_outputs
from torch_separable.conversion.reconstruction import Schedule, _blocks_of, reconstruct_network


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(12, 12, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(12)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.norm(self.conv2(self.conv1(x).relu()))).relu()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), Block(), Block(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(48, 5),
    ).eval()  # fmt: skip


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def error(model: nn.Module, other: nn.Module) -> float:
    fresh = images(256, seed=2)
    with torch.no_grad():
        dense = model(fresh)
        return float((other(fresh) - dense).square().mean() / dense.var(0).mean())


def test_reconstruction_lowers_the_error_on_fresh_images() -> None:
    model, given = network(), images(128)
    before = copy.deepcopy(model).state_dict()
    fitted = ts.convert(model, given, rank=1)
    trained = ts.convert(model, given, rank=1, reconstruct=True)
    assert error(model, trained.model) < 0.97 * error(model, fitted.model)
    assert trained.report.output_error < fitted.report.output_error
    assert (fitted.report.reconstructed, trained.report.reconstructed) == (False, True)
    assert "reconstructed" in str(trained.report)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for name, tensor in trained.model.state_dict().items():
        if "conv" not in name and not name.startswith("0."):
            assert torch.equal(tensor, before[name]), f"{name} is no separable layer"
    assert all(p.requires_grad and p.grad is None for p in trained.model.parameters())


def test_training_that_diverges_leaves_the_closed_form_fit() -> None:
    model, given = network(), images(64)
    fitted = ts.convert(model, given, rank=2).model
    names = ["0", "2.conv1", "2.conv2", "3.conv1", "3.conv2"]
    schedule = Schedule(steps=10, learning_rate=100.0, final_steps=5, final_learning_rate=100.0, check_every=5)
    batches, validation = [given[:48]], [given[48:]]
    reference = collect_outputs(model, batches)
    student = reconstruct_network(model, fitted, names, batches, validation, reference, schedule)
    kept = fitted.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in student.state_dict().items())


def test_reconstruction_that_makes_the_network_worse_is_discarded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = network(), images(64)

    def worse(dense: nn.Module, converted: nn.Module, *_: object, **__: object) -> nn.Module:
        student = copy.deepcopy(converted)
        with torch.no_grad():
            next(student.parameters()).mul_(2)
        return student

    monkeypatch.setattr(module, "reconstruct_network", worse)
    with pytest.warns(UserWarning, match="reconstruction did not lower"):
        conversion = ts.convert(model, given, rank=2, reconstruct=True)
    assert not conversion.report.reconstructed
    assert error(model, conversion.model) == pytest.approx(error(model, ts.convert(model, given, rank=2).model))


def test_blocks_are_the_modules_that_contain_converted_layers() -> None:
    assert _blocks_of(["stem", "a.0.x", "a.0.y", "a.1.x"]) == ["stem", "a.0", "a.1"]
    assert _blocks_of(["a.x", "a.b.y"]) == ["a"]
