"""Outputs of any structure: every floating-point tensor is found and named, and names select."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from torch_separable._network.all_outputs import floating_outputs, select_outputs
from torch_separable.errors import SeparableError, SeparableValueError


class Pair(NamedTuple):
    mean: Tensor
    count: int


@dataclass
class Detection:
    boxes: Tensor
    labels: Tensor
    scores: list[Tensor]


class WithLogits:
    logits = torch.zeros(2, 3)


A, B, C = (torch.full((2, n), float(n)) for n in (1, 2, 3))


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (A, {"output": A}),
        ((A, B), {"0": A, "1": B}),
        ([A, (B, {"x": C})], {"0": A, "1.0": B, "1.1.x": C}),
        ({"out": A, "aux": B, "none": None, "count": 3}, {"out": A, "aux": B}),
        (Pair(A, 2), {"mean": A}),
        (Detection(A, torch.arange(2), [B, C]), {"boxes": A, "scores.0": B, "scores.1": C}),
        (WithLogits(), {"logits": WithLogits.logits}),
    ],
    ids=["tensor", "tuple", "nested", "mapping", "namedtuple", "dataclass", "object"],
)
def test_every_floating_tensor_is_found_and_named(output: object, expected: dict[str, Tensor]) -> None:
    found = floating_outputs(output)
    assert list(found) == list(expected)
    assert all(found[name] is tensor for name, tensor in expected.items())


@pytest.mark.parametrize("output", [None, (), {"labels": torch.arange(3)}, "text", object()])
def test_output_without_floating_tensor_raises(output: object) -> None:
    with pytest.raises(SeparableError, match=type(output).__name__):
        floating_outputs(output)


def test_names_select_what_they_contain_with_weights_that_sum_to_one() -> None:
    available = ["0", "1.boxes", "1.scores", "10"]
    assert select_outputs(available, None) == dict.fromkeys(available, 0.25)
    assert select_outputs(available, ["1"]) == {"1.boxes": 0.5, "1.scores": 0.5}
    assert select_outputs(available, {"10": 1, "0": 3}) == {"0": 0.75, "10": 0.25}


@pytest.mark.parametrize(
    ("wanted", "named"),
    [(["2"], "'2'"), ("0", "'0'"), ({"0": 0}, "'0'"), ({"0": True}, "True"), ([], r"\[\]"), (3, "3")],
)
def test_invalid_selection_raises_and_is_named(wanted: Any, named: str) -> None:
    with pytest.raises(SeparableValueError, match=f"outputs.*{named}"):
        select_outputs(["0", "1.boxes"], wanted)
