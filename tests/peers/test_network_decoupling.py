"""The baseline beside "Network Decoupling" (Guo et al., arXiv 1808.05517), written out in NumPy from its equations.

A kernel K of n_o x n_i x k x k is a sum of at most k² pairs of a depthwise and a pointwise convolution, of either
order, K = Σ_t P_t ∘ D_t, which the singular value decompositions of its slices give; the first pairs approximate it.
Nothing here calls a convolution of PyTorch.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import torch_separable as ts

Array = NDArray[np.float64]
Order = Literal["depthwise_first", "pointwise_first"]


def slid(x: Array, kernel: Array, padding: int, stride: int) -> Array:
    """One image (H, W) under one kernel: the sum of products at every place."""
    k = kernel.shape[0]
    x = np.pad(x, padding)
    places = [range(0, n - k + 1, stride) for n in x.shape]
    return np.array([[float((x[i : i + k, j : j + k] * kernel).sum()) for j in places[1]] for i in places[0]])


def decoupled(x: Array, K: Array, order: Order, pairs: int, padding: int, stride: int) -> Array:
    """Σ_t P_t ∘ D_t applied to one image x of (n_i, H, W)."""
    n_o, n_i, k, _ = K.shape
    total: Array | int = 0
    if order == "depthwise_first":  # the slice of an input channel: n_o x k², K[:, c] = U S Vᵀ
        factors = [np.linalg.svd(K[:, c].reshape(n_o, k * k), full_matrices=False) for c in range(n_i)]
        for t in range(pairs):
            depthwise = np.stack([slid(x[c], factors[c][2][t].reshape(k, k), padding, stride) for c in range(n_i)])
            P = np.stack([factors[c][0][:, t] * factors[c][1][t] for c in range(n_i)], axis=1)
            total = total + np.einsum("oc,chw->ohw", P, depthwise)
    else:  # the slice of an output channel: n_i x k²
        factors = [np.linalg.svd(K[o].reshape(n_i, k * k), full_matrices=False) for o in range(n_o)]
        for t in range(pairs):
            P = np.stack([factors[o][0][:, t] * factors[o][1][t] for o in range(n_o)])
            mixed = np.einsum("oc,chw->ohw", P, x)
            total = total + np.stack(
                [slid(mixed[o], factors[o][2][t].reshape(k, k), padding, stride) for o in range(n_o)]
            )
    assert isinstance(total, np.ndarray)
    return total


def in_order(order: Order, rank: int, conv: nn.Conv2d, x: Tensor) -> Array:
    network = nn.Sequential(conv).double()
    plan = ts.plan(network, ts.calibrate(network, x), rank=rank, order=order, method="svd")
    (layer,) = plan.layers
    assert (layer.order, layer.rank) == (order, rank)
    converted = ts.apply(network, plan, x).double()
    with torch.no_grad():
        result: Array = converted(x).numpy()
    return result


@pytest.mark.parametrize("order", ["depthwise_first", "pointwise_first"])
@pytest.mark.parametrize("pairs", [1, 2, 4])
def test_baseline_computes_the_papers_sum_of_pairs(order: Order, pairs: int) -> None:
    conv = nn.Conv2d(5, 6, 3, stride=2, padding=1, bias=False)
    x = torch.randn(8, 5, 9, 8, dtype=torch.float64)
    ours = in_order(order, pairs, conv, x)
    K: Any = conv.weight.detach().double().numpy()
    theirs = np.stack([decoupled(image, K, order, pairs, 1, 2) for image in x.numpy()])
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", ["depthwise_first", "pointwise_first"])
def test_all_pairs_are_the_kernel_itself(order: Order) -> None:
    conv = nn.Conv2d(10, 9, 3, padding=1, bias=False).double()
    x = torch.randn(1, 10, 6, 6, dtype=torch.float64)
    theirs = decoupled(x[0].numpy(), conv.weight.detach().numpy(), order, 9, 1, 1)
    np.testing.assert_allclose(theirs, conv(x)[0].detach().numpy(), atol=1e-10)
