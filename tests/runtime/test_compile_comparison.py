"""`compile` compares itself with eager PyTorch, and says which operators cost it where it is slower."""

from __future__ import annotations

import time
import warnings

import pytest
import torch
from torch import Tensor, nn

import torch_separable as ts
from torch_separable.runtime.comparison import EagerComparison, compare_with_eager
from torch_separable.runtime.graph.ir import TorchCall

X = torch.randn(1, 3, 16, 16)


class Sorted(nn.Module):
    """A network with an operator that has no kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).sort(dim=1).values


@pytest.fixture
def slow_fallbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every operator that PyTorch runs in a compiled network take 20 ms longer."""
    from torch_separable.runtime.prepared import Prepared

    step = Prepared._step

    def slow(self: Prepared, workspace: object, each: object, *others: object) -> None:
        if isinstance(each.call, TorchCall):  # type: ignore[attr-defined]
            time.sleep(0.02)
        step(self, workspace, each, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(Prepared, "_step", slow)


def test_a_loss_is_reported_with_the_operator_that_costs_it(slow_fallbacks: None) -> None:
    with pytest.warns(UserWarning, match=r"Sorted is slower than eager PyTorch .*\(1, 3, 16, 16\).*aten\.sort"):
        ts.compile(Sorted().eval(), X)


@pytest.mark.parametrize(("compare", "model"), [(False, Sorted()), (None, nn.Sequential(nn.Conv2d(3, 8, 3)))])
def test_the_comparison_is_skipped(
    compare: bool | None, model: nn.Module, slow_fallbacks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch_separable.runtime.engine.compare_with_eager", lambda *_: pytest.fail("it is timed"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ts.compile(model.eval(), X, compare=compare)


def test_the_input_and_the_weights_stay_as_they_are() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.mul_(2.0))

    model, x = InPlace().eval(), X.contiguous(memory_format=torch.channels_last).clone()
    before = x.clone()
    compiled = ts.compile(model, x, compare=True)
    assert torch.equal(x, before)
    assert model.conv.weight.is_contiguous()
    assert compiled.memory.copied_weights == 0


def test_times_and_message() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3)).eval()
    found = compare_with_eager(model, model, list, X)
    assert found.compiled > 0
    assert found.eager > 0
    slower = EagerComparison(2.0, 1.0, {"aten.sort.default (no kernel)": 1.5})
    assert slower.is_slower
    assert not EagerComparison(1.02, 1.0, {}).is_slower
    assert "aten.sort.default (no kernel), 1.5 ms" in str(slower)
