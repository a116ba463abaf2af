from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from torch_separable.conversion.calibration.moments import sample_moments
from torch_separable.conversion.solvers.alternating import (
    _Iterate,
    _Problem,
    _sweep_depthwise_first,
    _sweep_pointwise_first,
    fit,
)
from torch_separable.conversion.solvers.factorize import (
    Factors,
    Moments,
    Order,
    add_ridge,
    best_bias,
    decouple,
    decouple_weighted,
    dense_moments,
    output_error,
)

ORDERS: tuple[Order, ...] = get_args(Order)
order_of_each = pytest.mark.parametrize("order", ORDERS)
shapes = st.tuples(st.integers(1, 6), st.integers(1, 6), st.sampled_from([2, 3, 4, 9]))


def patches(channels: int, taps: int, count: int = 600) -> Tensor:
    """Samples whose entries have correlations, scales and means of their own, (P, C·K)."""
    n = channels * taps
    return (torch.randn(count, n) @ (torch.randn(n, n) / n**0.5) + torch.randn(n)).double()


def case(shape: tuple[int, int, int], count: int = 600) -> tuple[Tensor, Moments, Tensor]:
    weight, x = torch.randn(shape).double(), patches(*shape[1:], count)
    return weight, moments_of(x, x @ weight.flatten(1).T), x


def moments_of(x: Tensor, t: Tensor) -> Moments:
    xc, tc = x - x.mean(0), t - t.mean(0)
    n = len(x)
    return Moments(xc.T @ xc / n, tc.T @ xc / n, x.mean(0), t.mean(0), tc.square().mean(0), n)


def fitted(weight: Tensor, moments: Moments, order: Order, rank: int, **options: Any) -> Factors:
    return fit(moments, decouple_weighted(weight, moments.patches, order, rank), **options)[0]


def network_decoupling(W: NDArray[Any], order: Order, rank: int) -> NDArray[Any]:
    """Guo et al., "Network Decoupling" (arXiv 1808.05517): the truncated SVD of each channel's slice, by NumPy."""
    result = np.zeros_like(W)
    slices = W.shape[1] if order == "depthwise_first" else W.shape[0]
    for i in range(slices):
        where = np.s_[:, i] if order == "depthwise_first" else np.s_[i]
        U, s, V = np.linalg.svd(W[where], full_matrices=False)
        for d in range(min(rank, len(s))):
            result[where] += s[d] * np.outer(U[:, d], V[d])
    return result


@order_of_each
@given(shape=shapes, rank=st.integers(1, 9))
def test_svd_is_network_decoupling(order: Order, shape: tuple[int, int, int], rank: int) -> None:
    weight, rank = torch.randn(shape).double(), min(rank, shape[2])
    factors = decouple(weight, order, rank)
    assert (factors.rank, factors.order) == (rank, order)
    expected = network_decoupling(weight.numpy(), order, rank)
    np.testing.assert_allclose(factors.kernel().numpy(), expected, atol=1e-12)


@order_of_each
def test_svd_is_the_nearest_kernel_of_its_rank(order: Order) -> None:
    weight = torch.randn(5, 4, 9).double()
    slices = weight.transpose(0, 1) if order == "depthwise_first" else weight
    values = torch.linalg.svdvals(slices)
    for rank in range(1, 10):
        error = (decouple(weight, order, rank).kernel() - weight).square().sum()
        torch.testing.assert_close(error, values[:, rank:].square().sum())  # Eckart and Young


@order_of_each
@given(shape=shapes, data=st.data())
def test_full_rank_reproduces_the_kernel(order: Order, shape: tuple[int, int, int], data: st.DataObject) -> None:
    weight, moments, _ = case(shape, count=data.draw(st.sampled_from([1, 20, 600])))
    rank = shape[2]
    for factors in (
        decouple(weight, order, rank),
        decouple_weighted(weight, moments.patches, order, rank),
        fitted(weight, moments, order, rank),
    ):
        assert factors.depthwise.shape == (shape[1] if order == "depthwise_first" else shape[0], rank, rank)
        assert factors.pointwise.shape == (*shape[:2], rank)
        torch.testing.assert_close(factors.kernel(), weight, rtol=0, atol=1e-10)


@order_of_each
@given(shape=shapes, rank=st.integers(1, 8), data=st.data())
def test_fit_is_never_worse_than_its_start_nor_than_svd(
    order: Order, shape: tuple[int, int, int], rank: int, data: st.DataObject
) -> None:
    weight, moments, _ = case(shape, count=data.draw(st.sampled_from([3, 30, 600])))
    rank = min(rank, shape[2])
    svd = decouple(weight, order, rank)
    start = decouple_weighted(weight, moments.patches, order, rank)
    least = output_error(fit(moments, start)[0].kernel(), moments)
    assert least <= output_error(start.kernel(), moments)
    assert output_error(fit(moments, svd)[0].kernel(), moments) <= output_error(svd.kernel(), moments)
    assert least <= output_error(svd.kernel(), moments) + 1e-12


@order_of_each
@given(shape=shapes)
def test_more_rank_loses_less(order: Order, shape: tuple[int, int, int]) -> None:
    weight, moments, _ = case(shape)
    errors = [output_error(fitted(weight, moments, order, rank).kernel(), moments) for rank in range(1, shape[2] + 1)]
    assert all(more <= less + 1e-9 for less, more in pairwise(errors))
    assert errors[-1] < 1e-12


def least_squares(x: NDArray[Any], t: NDArray[Any]) -> NDArray[Any]:
    solution, *_ = np.linalg.lstsq(x, t, rcond=None)
    return solution


def best_pointwise(factors: Factors, x: Tensor, t: Tensor) -> Factors:
    """All pointwise weights for fixed depthwise kernels, by dense least squares on the samples themselves."""
    B = factors.depthwise.numpy()
    _, channels, rank = factors.pointwise.shape
    xs = (x - x.mean(0)).numpy().reshape(len(x), channels, -1)
    ts = (t - t.mean(0)).numpy()
    if factors.order == "depthwise_first":
        z = np.einsum("pck,cdk->pcd", xs, B).reshape(len(x), -1)
        P = least_squares(z, ts).T.reshape(-1, channels, rank)
    else:
        z = np.einsum("pck,mdk->mpcd", xs, B)
        P = np.stack([least_squares(z[m].reshape(len(x), -1), ts[:, m]) for m in range(len(B))])
        P = P.reshape(-1, channels, rank)
    return replace(factors, pointwise=torch.from_numpy(P))


def best_depthwise(factors: Factors, x: Tensor, t: Tensor) -> Factors:
    """All depthwise kernels for fixed pointwise weights, by dense least squares on the samples themselves."""
    P = factors.pointwise.numpy()
    outputs, channels, rank = P.shape
    xs = (x - x.mean(0)).numpy().reshape(len(x), channels, -1)
    ts = (t - t.mean(0)).numpy()
    if factors.order == "depthwise_first":
        design = np.einsum("mcd,pck->mpcdk", P, xs).reshape(outputs * len(x), -1)
        B = least_squares(design, ts.T.reshape(-1)).reshape(channels, rank, -1)
    else:
        design = np.einsum("mcd,pck->mpdk", P, xs).reshape(outputs, len(x), -1)
        B = np.stack([least_squares(design[m], ts[:, m]) for m in range(outputs)]).reshape(outputs, rank, -1)
    return replace(factors, depthwise=torch.from_numpy(B))


@order_of_each
def test_dense_least_squares_on_the_samples_is_not_better(order: Order) -> None:
    weight, moments, x = case((5, 3, 4))
    t = x @ weight.flatten(1).T
    for rank in (1, 2, 3):
        factors = fitted(weight, moments, order, rank, sweeps=1000, tolerance=1e-9)
        error = output_error(factors.kernel(), moments)
        for refit in (best_pointwise(factors, x, t), best_depthwise(factors, x, t)):
            assert output_error(refit.kernel(), moments) == pytest.approx(error, rel=1e-3)


def test_sweep_depthwise_first_equals_dense_least_squares() -> None:
    weight, moments, x = case((5, 1, 9))
    t = x @ weight.flatten(1).T
    start = decouple(weight, "depthwise_first", 1)
    # With one channel, the block that a sweep solves for is the whole factor.
    expected = best_depthwise(best_pointwise(start, x, t), x, t).kernel()
    torch.testing.assert_close(fit(moments, start, sweeps=1)[0].kernel(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
def test_sweep_depthwise_first_returns_the_loss(rank: int) -> None:
    weight, moments, _ = case((5, 20, 9))
    weights = torch.rand(5).double()
    problem = _Problem(
        add_ridge(moments.patches).view(20, 9, 20, 9),
        moments.cross.view(-1, 20, 9),
        moments.target_variance,
        weights,
        0.0,
    )
    begin = _Iterate(decouple(weight, "depthwise_first", rank), moments.cross)
    fitted, lost = _sweep_depthwise_first(begin, problem)
    assert lost == pytest.approx(output_error(fitted.factors.kernel(), moments, weights), rel=1e-3)


@pytest.mark.parametrize("rank", [1, 3])
def test_sweep_pointwise_first_approaches_dense_least_squares(rank: int) -> None:
    weight, moments, x = case((5, 4, 9))
    t = x @ weight.flatten(1).T
    start = decouple(weight, "pointwise_first", rank)
    best = best_depthwise(best_pointwise(start, x, t), x, t).kernel()
    S, T = add_ridge(moments.patches).view(4, 9, 4, 9), moments.cross.view(-1, 4, 9)
    problem = _Problem(S, T, moments.target_variance, torch.ones(5).double(), 0.0)
    begin = _Iterate(start, problem.residual(start.kernel()))
    swept = [_sweep_pointwise_first(begin, problem, steps) for steps in (0, 2, 4, 60)]
    kernels = [fitted.factors.kernel() for fitted, _ in swept]
    for kernel, (fitted, lost) in zip(kernels, swept, strict=True):
        torch.testing.assert_close(fitted.residual, problem.residual(kernel))
        assert lost == pytest.approx(output_error(kernel, moments), rel=1e-3)
    distances = [float((kernel - best).norm() / best.norm()) for kernel in kernels]
    assert distances[-1] < 1e-3
    assert distances == sorted(distances, reverse=True)


@order_of_each
@given(shape=shapes, rank=st.integers(1, 8))
def test_svd_is_optimal_for_white_inputs(order: Order, shape: tuple[int, int, int], rank: int) -> None:
    weight, rank = torch.randn(shape).double(), min(rank, shape[2])
    n = shape[1] * shape[2]
    moments = dense_moments(weight, None, torch.eye(n).double(), torch.zeros(n).double(), 1000)
    error = output_error(fitted(weight, moments, order, rank).kernel(), moments)
    svd = decouple(weight, order, rank).kernel()
    assert error == pytest.approx(float((svd - weight).square().sum() / weight.square().sum()), abs=1e-9)


def definite(n: int) -> Tensor:
    root = torch.randn(n, n).double()
    return root @ root.T / n + 0.1 * torch.eye(n)


def weighted_low_rank(W: Tensor, over_rows: Tensor, over_columns: Tensor, rank: int) -> float:
    """The least of tr((W − X) B (W − X)ᵀ A) over X of a rank, by the SVD of A^½ W B^½."""
    A, B = (torch.linalg.cholesky(S) for S in (over_rows, over_columns))
    return float(torch.linalg.svdvals(A.T @ W @ B)[rank:].square().sum())


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_closed_form_is_optimal_for_uncorrelated_channels(rank: int) -> None:
    weight = torch.randn(6, 4, 9).double()
    blocks = [definite(9) for _ in range(4)]
    moments = dense_moments(weight, None, torch.block_diag(*blocks), torch.zeros(36).double(), 1000)
    optimum = sum(weighted_low_rank(weight[:, c], torch.eye(6).double(), blocks[c], rank) for c in range(4))
    error = output_error(fitted(weight, moments, "depthwise_first", rank).kernel(), moments)
    assert error == pytest.approx(optimum / float(moments.target_variance.sum()), rel=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_closed_form_is_optimal_for_kronecker_moments(rank: int) -> None:
    weight = torch.randn(6, 4, 9).double()
    over_channels, over_taps = definite(4), definite(9)
    moments = dense_moments(weight, None, torch.kron(over_channels, over_taps), torch.zeros(36).double(), 1000)
    optimum = sum(weighted_low_rank(weight[m], over_channels, over_taps, rank) for m in range(6))
    error = output_error(fitted(weight, moments, "pointwise_first", rank).kernel(), moments)
    assert error == pytest.approx(optimum / float(moments.target_variance.sum()), rel=1e-4)


def test_single_channel_needs_rank_one() -> None:
    for order, shape in (("depthwise_first", (1, 5, 9)), ("pointwise_first", (5, 1, 9))):
        weight, moments, _ = case(shape)
        torch.testing.assert_close(fitted(weight, moments, order, 1).kernel(), weight, rtol=0, atol=1e-10)  # type: ignore[arg-type]


@order_of_each
@pytest.mark.parametrize("rank", [1, 3, 9])
def test_factors_are_finite_for_dead_channels_and_constant_inputs(order: Order, rank: int) -> None:
    weight, _, x = case((5, 4, 9))
    for dead in (slice(9, 18), slice(None)):
        x[:, dead] = 0.5
        moments = moments_of(x, x @ weight.flatten(1).T)
        factors = fitted(weight, moments, order, rank)
        assert torch.isfinite(factors.depthwise).all()
        assert torch.isfinite(factors.pointwise).all()
        # Of all nine filters a channel both are exact, up to rounding.
        least = output_error(decouple(weight, order, rank).kernel(), moments)
        assert output_error(factors.kernel(), moments) <= least + 1e-14


@order_of_each
def test_filters_that_are_zero_stay_zero(order: Order) -> None:
    weight, _, x = case((5, 4, 9))
    weight[2] = 0
    weight[:, 1] = 0
    moments = moments_of(x, x @ weight.flatten(1).T)
    kernel = fitted(weight, moments, order, 2).kernel()
    assert torch.isfinite(kernel).all()
    assert float(kernel[2].abs().max()) < 1e-9
    assert output_error(kernel, moments) < output_error(decouple(weight, order, 2).kernel(), moments)


@order_of_each
def test_kernel_stays_bounded_with_fewer_patches_than_entries(order: Order) -> None:
    weight, moments, _ = case((5, 4, 9), count=12)
    kernel = fitted(weight, moments, order, 2).kernel()
    assert output_error(kernel, moments) < 0.05
    assert float(kernel.abs().max()) < 20 * float(weight.abs().max())


@order_of_each
@given(scale=st.floats(-5, 5))
def test_result_is_invariant_to_the_scale_of_the_inputs(order: Order, scale: float) -> None:
    weight, _, x = case((4, 3, 4))
    errors = []
    for unit in (1.0, 10.0**scale):
        moments = moments_of(unit * x, unit * x @ weight.flatten(1).T)
        errors.append(output_error(fitted(weight, moments, order, 2).kernel(), moments))
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_important_outputs_lose_less_when_outputs_share_kernels() -> None:
    weight, moments, x = case((6, 3, 9))
    weights = torch.tensor([100.0, 100.0, 1.0, 1.0, 1.0, 1.0]).double()

    def errors(factors: Factors) -> Tensor:
        lost = (x - x.mean(0)) @ (factors.kernel() - weight).flatten(1).T
        return lost.square().mean(0)

    even = errors(fitted(weight, moments, "depthwise_first", 1, sweeps=200, tolerance=1e-8))
    uneven = errors(fitted(weight, moments, "depthwise_first", 1, weights=weights, sweeps=200, tolerance=1e-8))
    assert uneven[:2].sum() < 0.5 * even[:2].sum()
    assert (uneven * weights).sum() < (even * weights).sum()
    assert uneven.sum() > even.sum()


def test_importance_does_not_matter_pointwise_first() -> None:
    weight, moments, _ = case((4, 3, 9))
    weights = torch.tensor([100.0, 1.0, 0.01, 7.0]).double()
    one, other = (fitted(weight, moments, "pointwise_first", 2, weights=w, tolerance=0) for w in (None, weights))
    torch.testing.assert_close(one.kernel(), other.kernel(), rtol=1e-3, atol=1e-4)


def test_error_and_bias_equal_those_of_the_samples() -> None:
    weight, moments, x = case((5, 4, 9))
    t = x @ weight.flatten(1).T + torch.randn(5).double() + 0.3 * torch.randn(len(x), 5).double()
    moments = moments_of(x, t)
    kernel, importance = torch.randn(5, 4, 9).double(), torch.rand(5).double()
    bias = best_bias(kernel, moments)
    residuals = t - x @ kernel.flatten(1).T
    torch.testing.assert_close(bias, residuals.mean(0))
    lost, variance = (residuals - bias).square().mean(0), t.var(0, unbiased=False)
    assert output_error(kernel, moments) == pytest.approx(float(lost.sum() / variance.sum()))
    expected = float((lost * importance).sum() / (variance * importance).sum())
    assert output_error(kernel, moments, importance) == pytest.approx(expected)


def test_dense_moments_equal_sampled_moments() -> None:
    weight, moments, x = case((5, 4, 9))
    bias = torch.randn(5).double()
    expected = moments_of(x, x @ weight.flatten(1).T + bias)
    given = dense_moments(weight, bias, moments.patches, moments.patch_mean, len(x))
    for name in ("patches", "cross", "patch_mean", "target_mean", "target_variance"):
        torch.testing.assert_close(getattr(given, name), getattr(expected, name))


@given(groups=st.sampled_from([1, 2, 3]), count=st.integers(2, 9000))
def test_sample_moments_equal_numpy_covariances(groups: int, count: int) -> None:
    x, t = torch.randn(count, 12) + 5, torch.randn(count, 6) - 3
    for g, moments in enumerate(sample_moments(x, t, groups)):
        xs, ts = x.chunk(groups, 1)[g].double().numpy(), t.chunk(groups, 1)[g].double().numpy()
        together = np.cov(np.concatenate([xs, ts], 1), rowvar=False, bias=True)
        entries = xs.shape[1]
        np.testing.assert_allclose(moments.patches, together[:entries, :entries], atol=1e-5)
        np.testing.assert_allclose(moments.cross, together[entries:, :entries], atol=1e-5)
        np.testing.assert_allclose(moments.target_variance, together.diagonal()[entries:], atol=1e-5)
        np.testing.assert_allclose(moments.patch_mean, xs.mean(0), atol=1e-9)
        np.testing.assert_allclose(moments.target_mean, ts.mean(0), atol=1e-9)
        assert moments.count == count
