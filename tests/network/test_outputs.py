from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.modeling_outputs import ImageClassifierOutput

from torch_separable._network.outputs import logits_of
from torch_separable.errors import SeparableError

LOGITS = torch.arange(6.0).view(2, 3)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        ImageClassifierOutput(logits=LOGITS),
        SimpleNamespace(logits=LOGITS),
        {"logits": LOGITS},
        {"out": LOGITS, "aux": torch.zeros(1)},
    ],
)
def test_logits_are_found_in_what_networks_return(output: object) -> None:
    assert logits_of(output) is LOGITS


@pytest.mark.parametrize("output", [(LOGITS,), None, {"boxes": LOGITS}, SimpleNamespace(logits="no")])
def test_output_without_logits_is_refused_by_type(output: object) -> None:
    with pytest.raises(SeparableError, match=type(output).__name__):
        logits_of(output)
