"""A shape with the batch dimension, as other summary tools take it."""

from __future__ import annotations

import pytest
from torch import nn

from torch_separable import SeparableError, summary
from torch_separable.cli.arguments import whole_numbers
from torch_separable.models import resnet20


def test_batch_dimension_is_recognised_by_the_convolutions() -> None:
    one = summary(resnet20(), (3, 32, 32), verbose=False)
    assert summary(resnet20(), (1, 3, 32, 32), verbose=False).macs == one.macs
    assert summary(resnet20(), [2, 3, 32, 32], verbose=False).macs == 2 * one.macs
    assert summary(resnet20(), whole_numbers("--input", "1,3,32,32"), verbose=False).macs == one.macs
    volume = nn.Conv3d(3, 4, 3)
    assert summary(volume, (3, 8, 8, 8), verbose=False).input_shapes == ((1, 3, 8, 8, 8),)


def test_two_batch_sizes_are_refused() -> None:
    with pytest.raises(SeparableError, match="has the batch 4, but batch_size=2"):
        summary(resnet20(), (4, 3, 32, 32), 2, verbose=False)
