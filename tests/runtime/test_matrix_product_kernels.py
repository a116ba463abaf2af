"""Products of activations agree with PyTorch on every instruction set."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_cases import SETS, assert_close, execute, instruction_set, precisions, rounded, threads, values
from torch_separable.runtime.graph.ir import MatrixProduct, Slice

pytestmark = pytest.mark.usefixtures("running_threads")
sizes = st.integers(1, 40)


def product(
    x: torch.Tensor, m: int, k: int, n: int, transposed: bool, isa: str, workers: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Multiply parts of ``x``, (m, k) by (k, n) for each row of its images; return ours and PyTorch's."""
    batch, _, h, _ = x.shape
    rows, columns = (n, k) if transposed else (k, n)
    nodes = (
        Slice("a", "x", "a", 3, 0), Slice("first", "a", "first", 1, 0),
        Slice("b", "x", "b", 3, 0), Slice("second", "b", "second", 1, 0),
        MatrixProduct("y", "first", "second", "y", transposed, 0.5),
    )  # fmt: skip
    shapes = {
        "x": (batch, x.shape[1], h, x.shape[3]), "a": (batch, x.shape[1], h, m), "first": (batch, k, h, m),
        "b": (batch, x.shape[1], h, rows), "second": (batch, columns, h, rows), "y": (batch, n, h, m),
    }  # fmt: skip
    stored = rounded(x, dtype).double().permute(0, 2, 3, 1)
    first, second = stored[:, :, :m, :k], stored[:, :, :rows, :columns]
    expected = 0.5 * first @ (second.transpose(-1, -2) if transposed else second)
    return execute(nodes, shapes, x, isa, workers, dtype=dtype), expected.permute(0, 3, 1, 2).float()


@settings(max_examples=60)
@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 140), sizes, sizes, st.data())
def test_products_of_each_row_of_pixels(batch: int, h: int, m: int, k: int, n: int, data: st.DataObject) -> None:
    dtype = data.draw(precisions)
    x = values(dtype, batch, max(k, n), h, max(m, k, n), fan_in=math.isqrt(k))
    given_sets = data.draw(st.booleans()), data.draw(instruction_set), data.draw(threads)
    got, expected = product(x, m, k, n, *given_sets, dtype)
    assert_close(got, expected, dtype)


@pytest.mark.parametrize("isa", SETS)
def test_an_infinite_value_leaves_the_padding_zero(isa: str) -> None:
    x = torch.ones(1, 5, 1, 5)
    x[0, 0, 0, 0] = math.inf
    got, expected = product(x, 5, 5, 3, False, isa, 1, torch.float32)
    assert torch.equal(got.isinf(), expected.isinf())
    assert torch.equal(got.isnan(), expected.isnan())
