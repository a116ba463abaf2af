"""`verify` compares every floating-point output of a compiled network with PyTorch's, each on its own scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.runtime import compile
from torch_separable.runtime.verification import verify_outputs


class Heads(nn.Module):
    def __init__(self, structure: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.trunk, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.structure = structure

    def forward(self, x: Tensor) -> Any:
        y = self.trunk(x).relu()
        return self.structure(self.head(y).mean((2, 3)), y)


@pytest.mark.parametrize(
    ("structure", "names"),
    [
        (lambda a, b: a, ["output"]),
        (lambda a, b: (a, b), ["0", "1"]),
        (lambda a, b: {"logits": a, "maps": [b]}, ["logits", "maps.0"]),
    ],
    ids=["tensor", "tuple", "nested"],
)
def test_every_output_of_a_compiled_network_is_verified(
    structure: Callable[[Tensor, Tensor], Any], names: list[str]
) -> None:
    x = torch.randn(2, 3, 9, 9)
    compiled = compile(Heads(structure).eval(), x)
    found = compiled.verify(x)
    assert list(found.errors) == names
    assert found.error == max(found.errors.values()) < 1e-5
    assert found.agreement == 1
    assert list(compiled.verify(x, outputs=names[-1:]).errors) == names[-1:]
    with pytest.raises(SeparableValueError, match="'nothing'"):
        compiled.verify(x, outputs=["nothing"])


def test_error_in_a_small_output_is_not_hidden_by_a_large_one() -> None:
    small, large = torch.tensor([[1.0, 2.0]]), torch.full((1, 3), 1e6)
    found = verify_outputs((small + 0.5, large), (small, large), "float32")
    assert found.errors == {"0": 0.25, "1": 0}
    assert found.error == 0.25


def test_equal_values_that_are_not_finite_agree_and_others_do_not() -> None:
    masked = torch.tensor([[1.0, -math.inf, math.nan]])
    assert verify_outputs(masked.clone(), masked, "float32").error == 0
    assert not math.isfinite(verify_outputs(torch.zeros(1, 3), masked, "float32").error)


def test_output_of_another_shape_is_named() -> None:
    with pytest.raises(SeparableError, match=r"'boxes' has shape \(2, 4\).* \(3, 4\)"):
        verify_outputs({"boxes": torch.zeros(2, 4)}, {"boxes": torch.zeros(3, 4)}, "float32")
