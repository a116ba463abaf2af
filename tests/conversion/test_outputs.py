"""Networks that return several tensors: all of them are compared, each scaled by its own variance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_separable as ts
from torch_separable.conversion import Budget
from torch_separable.conversion.calibration.outputs import collect_outputs, join_outputs, run_outputs
from torch_separable.errors import SeparableError


class Heads(nn.Module):
    """A trunk and two heads, and any structure of their outputs."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.left, self.right = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        y = self.trunk(x).relu()
        return self.answer(self.left(y).mean((2, 3)), self.right(y).relu())


@dataclass
class Answer:
    logits: Tensor
    maps: list[Tensor]
    ids: Tensor


def images(count: int = 32) -> Tensor:
    return torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(1))


STRUCTURES: dict[str, tuple[Callable[[Tensor, Tensor], Any], list[str]]] = {
    "tuple": (lambda a, b: (a, b), ["0", "1"]),
    "nested": (lambda a, b: {"out": a, "aux": [(b,), a.argmax(1)]}, ["out", "aux.0.0"]),
    "dataclass": (lambda a, b: Answer(a, [b], torch.arange(len(a))), ["logits", "maps.0"]),
}


@pytest.mark.parametrize(("answer", "names"), STRUCTURES.values(), ids=STRUCTURES)
def test_network_with_several_outputs_converts_and_compares_all(
    answer: Callable[[Tensor, Tensor], Any], names: list[str]
) -> None:
    report = ts.convert(Heads(answer).eval(), images(), budget=Budget(macs=0.5)).report
    assert list(report.output_errors) == names
    assert report.output_error == pytest.approx(sum(report.output_errors.values()) / 2)
    assert 0 < report.output_error < 1
    assert all(name in str(report) for name in names)


def test_changes_are_relative_to_each_outputs_own_variance() -> None:
    model, batches = Heads(lambda a, b: (a, 1000 * b)).eval(), images().split(16)
    reference = collect_outputs(model, batches)
    noise = {
        name: values + values.var(0, unbiased=False).mean().sqrt() * torch.randn_like(values)
        for name, values in reference.values.items()
    }
    assert reference.changes(noise) == pytest.approx({"0": 1.0, "1": 1.0}, rel=0.2)
    assert reference.change(dict(reference.values)) == 0
    assert reference.change({name: -values for name, values in reference.values.items()}) > 1


def test_plan_spends_more_on_the_head_of_a_weighted_output() -> None:
    model = Heads(lambda a, b: (a, b)).eval()

    def macs_by_layer(outputs: dict[str, float]) -> dict[str, int]:
        statistics = ts.calibrate(model, images(), outputs=outputs)
        layers = ts.plan(model, statistics, budget=Budget(macs=0.5)).layers
        return {layer.name: layer.macs.converted for layer in layers}

    left, right = macs_by_layer({"0": 1e4, "1": 1}), macs_by_layer({"0": 1, "1": 1e4})
    assert left["left"] > right["left"]
    assert left["right"] < right["right"]
    only = ts.convert(model, images(), rank=1, outputs=["1"]).report
    assert list(only.output_errors) == ["1"]


def test_recurrent_output_and_hidden_state_are_compared_by_image() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gru = nn.Conv2d(3, 8, 3, padding=1), nn.GRU(8, 5)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            columns = self.conv(x).mean(2).permute(2, 0, 1)  # (T, N, C)
            steps, hidden = self.gru(columns)
            return steps, hidden

    report = ts.convert(Reader().eval(), images(40), rank=9).report
    assert list(report.output_errors) == ["0", "1"]
    assert report.output_error < 1e-6


def test_constant_output_does_not_count_and_a_constant_network_raises() -> None:
    report = ts.convert(Heads(lambda a, b: (a, torch.ones(7, 4))).eval(), images(), rank=1).report
    assert list(report.output_errors) == ["0"]
    with pytest.raises(SeparableError, match=r"no output of Heads varies .*\(output\)"):
        ts.calibrate(Heads(lambda a, b: torch.ones(len(a), 4)).eval(), images())


def test_output_of_varying_length_raises_and_names_those_that_can_be_compared() -> None:
    def filtered(a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"boxes": b[:, : 1 + int(a.argmax()) % 7].flatten(1), "logits": a}

    model = Heads(filtered).eval()
    with pytest.raises(SeparableError, match=r"'boxes' of Heads .*outputs=\['logits'\]"):
        ts.calibrate(model, images(64).split(8))
    assert ts.convert(model, images(64), rank=1, outputs=["logits"]).report.output_error < 1


def test_output_missing_in_a_later_batch_raises() -> None:
    def sometimes(a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"logits": a} if len(a) < 16 else {"logits": a, "extra": b}

    with pytest.raises(SeparableError, match=r"'extra' of Heads is missing for batch 1"):
        ts.calibrate(Heads(sometimes).eval(), [images()[:16], images()[16:24]])


def test_returned_tensor_counts_as_used_in_any_structure() -> None:
    class Returning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Answer:
            y = self.first(x)
            return Answer(self.second(y.relu()), [y], torch.arange(len(x)))

    assert not ts.calibrate(Returning().eval(), images())["first"].consumer.rectified


def test_outputs_of_a_subset_are_compared_with_its_rows() -> None:
    model, batches = Heads(lambda a, b: (a, b)).eval(), images().split(8)
    reference = collect_outputs(model, batches)
    first = join_outputs(model, batches[:2], run_outputs(model, batches[:2]), reference.weights)
    assert reference.change(first, images=16) == 0
