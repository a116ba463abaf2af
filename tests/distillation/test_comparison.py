"""`evaluate` with a reference compares every floating-point output, each relative to its own variance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_separable import Budget, convert, evaluate
from torch_separable.distillation import Comparison
from torch_separable.errors import SeparableError, SeparableValueError


class Heads(nn.Module):
    """A trunk and two heads, whose outputs are returned in any structure."""

    def __init__(self, structure: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.left, self.right = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
        self.structure = structure

    def forward(self, x: Tensor) -> Any:
        y = self.trunk(x).relu()
        return self.structure(self.left(y).mean((2, 3)), self.right(y).relu())


class Shifted(nn.Module):
    """The dense network with each output changed by a function of its values."""

    def __init__(self, network: nn.Module, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.network(x))


def images(count: int = 40) -> Tensor:
    return torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("structure", "names"),
    [
        (lambda a, b: a, ["output"]),
        (lambda a, b: (a, b), ["0", "1"]),
        (lambda a, b: {"out": a, "aux": [(b,), a.argmax(1)]}, ["out", "aux.0.0"]),
    ],
    ids=["tensor", "tuple", "nested"],
)
def test_converted_network_of_any_structure_is_compared_with_the_dense_one(
    structure: Callable[[Tensor, Tensor], Any], names: list[str]
) -> None:
    dense = Heads(structure).eval()
    conversion = convert(dense, images(), budget=Budget(macs=0.6))
    found = evaluate(conversion.model, list(images()), batch_size=7, reference=dense, progress=False)
    assert isinstance(found, Comparison)
    assert list(found.output_errors) == names
    assert found.output_error == pytest.approx(sum(found.output_errors.values()) / len(names))
    # The images are those of the conversion, a quarter of them held out: the same measure lies between its two figures.
    low, high = sorted((conversion.report.fitted_error, conversion.report.output_error))
    assert 0.5 * low < found.output_error < 2 * high


def test_change_is_relative_to_the_variance_and_independent_of_batches() -> None:
    dense = Heads(lambda a, b: (a, 1000 * b + 5e4)).eval()
    with torch.no_grad():
        left, right = dense(images())
    expected = {
        name: float(0.01 * (values - values.mean()).square().mean() / values.var(0, unbiased=False).mean())
        for name, values in (("0", left.double()), ("1", right.double()))
    }
    moved = Shifted(
        dense, lambda out: tuple(v + 0.1 * (v - m.mean().float()) for v, m in zip(out, (left, right), strict=True))
    )
    for batch_size in (40, 9):
        found = evaluate(moved, list(images()), batch_size, reference=dense, progress=False)
        assert found.output_errors == pytest.approx(expected, rel=1e-3)


def test_outputs_are_selected_and_weighted() -> None:
    dense = Heads(lambda a, b: (a, b)).eval()
    moved = Shifted(dense, lambda out: (out[0], out[1] + 1))

    def error_of(outputs: Any) -> float:
        return evaluate(moved, list(images()), reference=dense, outputs=outputs, progress=False).output_error

    assert error_of(["0"]) == 0
    assert error_of({"0": 3, "1": 1}) == pytest.approx(error_of(["1"]) / 4)
    with pytest.raises(SeparableValueError, match="'2'"):
        error_of(["2"])
    with pytest.raises(SeparableValueError, match="reference"):
        evaluate(moved, list(images()), outputs=["0"])  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (lambda a, b: torch.ones(len(a), 4), r"no output of the reference varies .*\(output\)"),
        (lambda a, b: {"boxes": b[:, : 1 + len(a) % 4].flatten(1), "logits": a}, r"'boxes' has 300 values .* 400"),
        (lambda a, b: (a, b / 0), r"'1' contains NaN"),
        (lambda a, b: {"logits": a, **({"extra": b} if len(a) > 5 else {})}, "'extra' is missing"),
    ],
)
def test_output_that_cannot_be_compared_is_named(structure: Callable[[Tensor, Tensor], Any], message: str) -> None:
    dense = Heads(structure).eval()
    moved = Shifted(dense, lambda out: out)
    with pytest.raises(SeparableError, match=message):
        evaluate(moved, list(images(13)), 10, reference=dense, progress=False)


def test_infinite_masks_that_agree_do_not_count() -> None:
    dense = Heads(lambda a, b: a.index_fill(1, torch.tensor([2]), -torch.inf)).eval()
    moved = Shifted(dense, lambda out: out + 0.01)
    assert 0 < evaluate(moved, list(images()), reference=dense, progress=False).output_error < 1
