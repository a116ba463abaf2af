"""Factorising one dense convolution into a depthwise and a pointwise one: pure linear algebra.

A convolution with kernel ``W`` of shape (M, C, K), ``K`` the number of kernel entries, maps a patch ``x`` of ``C·K``
values to ``M`` outputs. Both factorisations replace ``W`` by a product:

* depthwise first, multiplier ``D``:  ``W[m, c, :] ≈ Σ_d P[m, c, d] · B[c, d, :]``
* pointwise first, rank ``D`` ("blueprint", BSConv, CVPR 2020):  ``W[m, c, :] ≈ Σ_d P[m, c, d] · B[m, d, :]``

and with ``D = K`` both are exact. `decouple` minimises the error of the *weights* by one SVD a channel: "network
decoupling" (arXiv 1808.05517), which sees no data. `fit` minimises the error of the layer's *output* over real inputs,

    E ‖t − Ŵ x − b‖²  weighted by output channel,

by alternating least squares: for fixed depthwise kernels the optimum over ``P`` is a linear system, and the other way
round; systems too large to be solved exactly are approached by conjugate gradients. All that it needs of the data are
the second moments ``E[x xᵀ]`` and ``E[t xᵀ]`` and the means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Order = Literal["depthwise_first", "pointwise_first"]

# Added to the diagonal of the second moments, as a share of their mean: far below the noise of a few hundred images,
# and enough for moments that are singular (dead channels, fewer patches than entries).
RIDGE = 1e-6

# Share of the target's variance below which what is left to gain is rounding of the samples.
_EXACT = 1e-10

# Share of the target's variance from which on products with the moments are taken in single precision: their rounding
# errors are a thousandth of that.
SINGLE = 1e-4

# Conjugate gradient steps towards one factor before it is the other's turn.
_STEPS = 3

# Channels whose depthwise kernels are solved for between two passes over what all others have left to explain.
_TOGETHER = 16


@dataclass(frozen=True)
class Moments:
    """What the fit of one layer (or one group of it) has to know about its data, in float64.

    Attributes:
        patches: ``E[(x − μ)(x − μ)ᵀ]``, shape (C·K, C·K).
        cross: ``E[(t − τ)(x − μ)ᵀ]``, shape (M, C·K).
        patch_mean: ``μ``, shape (C·K,).
        target_mean: ``τ``, shape (M,).
        target_variance: ``E[(t − τ)²]`` of each output channel, shape (M,).
        count: number of patches that were seen.
    """

    patches: Tensor
    cross: Tensor
    patch_mean: Tensor
    target_mean: Tensor
    target_variance: Tensor
    count: int


@dataclass(frozen=True)
class Factors:
    """The two kernels of a factorised convolution.

    Attributes:
        order: which of the two runs first.
        depthwise: ``B``, shape (C, D, K) depthwise first, (M, D, K) pointwise first.
        pointwise: ``P``, shape (M, C, D).
    """

    order: Order
    depthwise: Tensor
    pointwise: Tensor

    @property
    def rank(self) -> int:
        """The multiplier or rank ``D``."""
        return self.depthwise.shape[1]

    def truncated(self, rank: int) -> Factors:
        """The first ``rank`` of the terms: what `decouple` and `decouple_weighted` give for a lower rank."""
        return Factors(self.order, self.depthwise[:, :rank], self.pointwise[..., :rank])

    def kernel(self) -> Tensor:
        """The dense kernel that the product amounts to, shape (M, C, K)."""
        equation = "mcd,cdk->mck" if self.order == "depthwise_first" else "mcd,mdk->mck"
        return torch.einsum(equation, self.pointwise, self.depthwise)


def dense_moments(weight: Tensor, bias: Tensor | None, patches: Tensor, patch_mean: Tensor, count: int) -> Moments:
    """Return the moments of a layer whose target is its own dense output, ``t = W x + bias``.

    Args:
        weight: dense kernel, shape (M, C, K).
        bias: shape (M,) or None.
        patches: centred second moments of the input patches, shape (C·K, C·K).
        patch_mean: shape (C·K,).
        count: number of patches.
    """
    flat = weight.double().flatten(1)
    cross = flat @ patches
    mean = flat @ patch_mean
    return Moments(
        patches=patches,
        cross=cross,
        patch_mean=patch_mean,
        target_mean=mean if bias is None else mean + bias.double(),
        target_variance=(cross * flat).sum(1),
        count=count,
    )


def decouple(weight: Tensor, order: Order, rank: int) -> Factors:
    """Factorise by the SVD of each channel's slice of the weights ("network decoupling", arXiv 1808.05517, eq. 4-6).

    Args:
        weight: dense kernel, shape (M, C, K).
        order: ``"depthwise_first"`` slices by input channel, ``"pointwise_first"`` by output channel.
        rank: ``D``, from 1 to K.

    Example:
        >>> weight = torch.randn(8, 4, 9, dtype=torch.float64)
        >>> torch.allclose(decouple(weight, "depthwise_first", 9).kernel(), weight)
        True
    """
    slices = _slices(weight.double(), order)
    left, values, right = torch.linalg.svd(slices, full_matrices=False)
    return _factors(order, left[..., :rank] * values[..., None, :rank], right[:, :rank], rank)


def decouple_weighted(weight: Tensor, patches: Tensor, order: Order, rank: int) -> Factors:
    """Factorise by SVD in the metric of the data, as far as a closed form exists: where `fit` starts from.

    Depthwise first, the metric of a channel's slice is that channel's own block of the second moments; pointwise
    first, the moments are taken for the Kronecker product of their mean over taps and their mean over channels.

    Args:
        weight: dense kernel, shape (M, C, K).
        patches: second moments, shape (C·K, C·K).
        order: which factor runs first.
        rank: ``D``, from 1 to K.
    """
    _, channels, taps = weight.shape
    S = ridged(patches).view(channels, taps, channels, taps)
    slices = _slices(weight.double(), order)
    if order == "depthwise_first":
        over_taps = torch.linalg.cholesky(torch.einsum("cicj->cij", S))
        whitened = slices @ over_taps
    else:
        over_taps = torch.linalg.cholesky(torch.einsum("cicj->ij", S) / channels)
        over_channels = torch.linalg.cholesky(torch.einsum("ciei->ce", S) / taps)
        whitened = over_channels.T @ slices @ over_taps
    left, values, right = torch.linalg.svd(whitened, full_matrices=False)
    pointwise = left[..., :rank] * values[..., None, :rank]
    if order == "pointwise_first":
        outputs = len(pointwise)
        flat = pointwise.transpose(0, 1).reshape(channels, -1)  # one system for all outputs, not one each
        solved = torch.linalg.solve_triangular(over_channels.T, flat, upper=True)
        pointwise = solved.view(channels, outputs, -1).transpose(0, 1)
    depthwise = torch.linalg.solve_triangular(over_taps, right[:, :rank], upper=False, left=False)
    return _factors(order, pointwise, depthwise, rank)


def _slices(weight: Tensor, order: Order) -> Tensor:
    """Matrices whose low rank makes the factorisation: (C, M, K) depthwise first, (M, C, K) pointwise first."""
    return weight.transpose(0, 1) if order == "depthwise_first" else weight


def _factors(order: Order, pointwise: Tensor, depthwise: Tensor, rank: int) -> Factors:
    """Pad to ``rank`` (a slice has no more singular values than rows) and put the pointwise kernel as (M, C, D)."""
    missing = rank - depthwise.shape[1]
    if missing > 0:
        pointwise = torch.nn.functional.pad(pointwise, (0, missing))
        depthwise = torch.nn.functional.pad(depthwise, (0, 0, 0, missing))
    if order == "depthwise_first":
        pointwise = pointwise.transpose(0, 1)
    return Factors(order, depthwise.contiguous(), pointwise.contiguous())


def fit(
    moments: Moments,
    start: Factors,
    *,
    weights: Tensor | None = None,
    towards: Tensor | None = None,
    sweeps: int = 12,
    tolerance: float = 3e-3,
) -> tuple[Factors, float]:
    """Minimise the error of the output over the data by alternating least squares.

    The depthwise-first kernels of one channel are solved for together with the others held (block Gauss-Seidel): no
    system has more than ``C·D`` unknowns, where solving for all depthwise kernels at once takes ``C·D·K``. It needs as
    many sweeps and is tens of times faster. Pointwise first, conjugate gradients do without the ``M`` systems of
    ``C·D`` unknowns.

    Args:
        moments: of the layer's inputs and target.
        start: factors to begin from; they decide order and rank.
        weights: importance of each output channel, shape (M,); matters depthwise first only, where outputs share
            kernels.
        towards: dense kernel (M, C, K) to stay near to where the patches say nothing, as fewer patches than entries do
            of most directions; by default that of ``start``.
        sweeps: at most so many alternations.
        tolerance: stop when a sweep lowers the error by less than this share of it.

    Returns:
        Factors that are never worse on these moments than ``start``, and the share of the target's variance that they
        lose (weighted, and with a trace of the ridge).
    """
    channels, taps = start.pointwise.shape[1], start.depthwise.shape[2]
    S = ridged(moments.patches)
    # The ridge draws to a kernel that is known, and not to zero: other images than these have patches there.
    anchor, ridge = (start.kernel() if towards is None else towards).flatten(1), _ridge(moments.patches)
    problem = _Problem(
        S.view(channels, taps, channels, taps),
        (moments.cross + ridge * anchor).view(-1, channels, taps),
        moments.target_variance + ridge * anchor.square().sum(1),
        torch.ones(len(anchor), dtype=S.dtype) if weights is None else weights.to(S),
        ridge,
    )
    step = _sweep_depthwise_first if start.order == "depthwise_first" else _sweep_pointwise_first
    kernel = start.kernel()
    best = current = _Fitted(start, problem.left_by(kernel))
    lost = best_lost = problem.lost_by(kernel, best.left)
    if lost > SINGLE:
        problem = replace(problem, single=S.float())
    for _ in range(sweeps):
        if best_lost <= _EXACT:
            break
        if problem.single is not None and lost <= SINGLE:
            problem = replace(problem, single=None)
            current = _Fitted(current.factors, problem.left_by(current.factors.kernel()))
        current, lost = step(current, problem)
        gain = best_lost - lost
        if gain > 0:
            best, best_lost = current, lost
        if gain <= tolerance * best_lost:
            break
    return best.factors, max(best_lost, 0.0)


@dataclass(frozen=True)
class _Problem:
    """What is minimised: with the kernel ``W`` of each output, ``v − 2 W·T + W S W``, weighted.

    Attributes:
        moments: ``S``, of the patches, ridged, (C, K, C, K).
        cross: ``T``, with the target, ridged, (M, C, K).
        variance: ``v`` of each output, and the ridge's share, (M,).
        weights: of each output, (M,).
        ridge: what the moments have on their diagonal at the least.
        single: the moments in single precision, (C·K, C·K), where that is exact enough for conjugate gradients.
    """

    moments: Tensor
    cross: Tensor
    variance: Tensor
    weights: Tensor
    ridge: float
    single: Tensor | None = None

    def left_by(self, kernel: Tensor) -> Tensor:
        """What a kernel leaves to explain of the cross moments, (M, C, K)."""
        return self.cross - (kernel.flatten(1) @ self.flat_moments).view_as(kernel)

    def lost_by(self, kernel: Tensor, left: Tensor) -> float:
        """The share of the variance that a kernel loses, by what it leaves."""
        lost = self.variance - (kernel * (self.cross + left)).flatten(1).sum(1)
        return float((lost * self.weights).sum() / self.total)

    @property
    def total(self) -> Tensor:
        """The weighted variance of all outputs."""
        return (self.variance * self.weights).sum().clamp_min(1e-300)

    def times(self, kernel: Tensor) -> Tensor:
        """A kernel times the moments, (M, C, K), in single precision where that will do."""
        return (kernel.flatten(1).to(self.products) @ self.products).to(kernel).view_as(kernel)

    @property
    def products(self) -> Tensor:
        """The moments to multiply with, (C·K, C·K)."""
        return self.flat_moments if self.single is None else self.single

    @property
    def flat_moments(self) -> Tensor:
        entries = self.moments.shape[0] * self.moments.shape[1]
        return self.moments.reshape(entries, entries)


@dataclass(frozen=True)
class _Fitted:
    """Factors, and what they leave to explain (of pointwise-first ones: the other order finds it anew)."""

    factors: Factors
    left: Tensor


def ridged(patches: Tensor) -> Tensor:
    """Second moments with `RIDGE` added to the diagonal, so that dead channels and few patches leave them definite."""
    ridged = patches.double().clone()
    ridged.diagonal().add_(_ridge(patches))
    return ridged


def _ridge(patches: Tensor) -> float:
    return RIDGE * (float(patches.diagonal().mean()) or 1.0)


def output_error(kernel: Tensor, moments: Moments, weights: Tensor | None = None) -> float:
    """Return the share of the target's variance that ``kernel`` (M, C, K), with its best bias, leaves unexplained."""
    flat = kernel.flatten(1)
    squared = moments.target_variance - 2 * (flat * moments.cross).sum(1) + ((flat @ moments.patches) * flat).sum(1)
    variance = moments.target_variance
    if weights is not None:
        squared, variance = squared * weights, variance * weights
    return float((squared.sum() / variance.sum().clamp_min(1e-300)).clamp_min(0))


def best_bias(kernel: Tensor, moments: Moments) -> Tensor:
    """Return the bias (M,) that matches the mean of the target for a given ``kernel`` (M, C, K)."""
    return moments.target_mean - kernel.flatten(1) @ moments.patch_mean


def _sweep_depthwise_first(fitted: _Fitted, problem: _Problem) -> tuple[_Fitted, float]:
    """Solve for all pointwise weights, then for the depthwise kernels; return what is lost, too."""
    S, T = problem.moments, problem.cross
    B = _unit_rows(fitted.factors.depthwise).clone()
    channels, rank, taps = B.shape
    # All pointwise weights at once: (B S Bᵀ) Pᵀ = B Tᵀ.
    SB = torch.einsum("ciej,edj->cied", S, B)
    A = torch.einsum("cqi,cied->cqed", B, SB).reshape(channels * rank, channels * rank)
    R = torch.einsum("mci,cdi->cdm", T, B).reshape(channels * rank, -1)
    P = _solve(A, R).T.reshape(-1, channels, rank)
    # The depthwise kernels of one channel after the other: (PᵀΩP ⊗ S[c, c]) ΔB[c] = PᵀΩ × what is left to explain.
    ΩP = P * problem.weights[:, None, None]
    kernel = torch.einsum("mcd,cdk->mck", P, B)
    left = T - problem.times(kernel)
    lost = problem.lost_by(kernel, left)
    left = left.flatten(1)
    own = torch.einsum("cicj->cij", S)
    rows, gained = S.reshape(channels, taps, -1), torch.zeros((), dtype=S.dtype)
    for first in range(0, channels, _TOGETHER):
        some = slice(first, first + _TOGETHER)
        PP = torch.einsum("mcd,mcq->cdq", ΩP[:, some], P[:, some])
        L = _cholesky(torch.einsum("cdq,cij->cdiqj", PP, own[some]).reshape(-1, rank * taps, rank * taps))
        before, near = B[some].clone(), slice(first * taps, (first + len(L)) * taps)
        for c, factor in enumerate(L, start=first):
            R = ΩP[:, c].T @ left[:, c * taps : (c + 1) * taps]
            step = torch.cholesky_solve(R.reshape(-1, 1), factor).reshape(rank, taps)
            B[c] += step
            gained += (R * step).sum()
            left[:, near] -= P[:, c] @ (step @ rows[c, :, near])
        # The other channels see these steps when their turn comes: one pass over what is left, not one a channel.
        change = torch.einsum("mcd,cdk->mck", P[:, some], B[some] - before).flatten(1)
        rest = slice(near.stop, None)
        moments = problem.products[near, rest]
        left[:, rest] -= (change.to(moments) @ moments).to(left)
    lost -= float(gained / problem.total)
    return _Fitted(Factors("depthwise_first", B, P), left), lost


def _sweep_pointwise_first(fitted: _Fitted, problem: _Problem, steps: int = _STEPS) -> tuple[_Fitted, float]:
    """Improve the pointwise weights of all ranks, then the depthwise kernels, of every output by itself.

    Exact solutions take a system of C·D unknowns for each output. A few steps of conjugate gradients from where the
    last sweep ended, preconditioned by the moments' Kronecker approximation ``E ⊗ F`` (over channels, over taps), reach
    as far for one product with the moments each.
    """
    S, factors = problem.moments, fitted.factors
    B = _unit_rows(factors.depthwise)
    P = factors.pointwise * factors.depthwise.norm(dim=2)[:, None, :]
    outputs, rank, _ = B.shape
    channels = len(S)
    over_taps = torch.einsum("cicj->ij", S)
    over_channels = torch.einsum("ciei->ce", S) / over_taps.trace()
    taps_factor, channels_factor = _cholesky(over_taps), _cholesky(over_channels)

    small = _cholesky(B @ over_taps @ B.mT)
    P, left = _conjugate_gradients(
        P, fitted.left, problem, steps, lambda X: X @ B, lambda V: V @ B.mT,
        lambda R: torch.cholesky_solve(
            torch.cholesky_solve(R.transpose(0, 1).reshape(channels, -1), channels_factor)
            .view(channels, outputs, rank).permute(1, 2, 0), small,
        ).mT,
    )  # fmt: skip
    small = _cholesky(P.mT @ over_channels @ P)
    B, left = _conjugate_gradients(
        B, left, problem, steps, lambda X: P @ X, lambda V: P.mT @ V,
        lambda R: torch.cholesky_solve(torch.cholesky_solve(R, small).mT, taps_factor).mT,
    )  # fmt: skip
    improved = Factors("pointwise_first", B, P)
    return _Fitted(improved, left), problem.lost_by(improved.kernel(), left)


def _conjugate_gradients(
    X: Tensor,
    left: Tensor,
    problem: _Problem,
    steps: int,
    kernel: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Take steps of preconditioned conjugate gradients, for every output by itself.

    Args:
        X: the unknowns of each output, (M, ., .).
        left: what is left to explain of the cross moments, (M, C, K).
        problem: with the moments of the patches.
        steps: how many.
        kernel: from unknowns to the dense kernel that they amount to, (M, C, K); linear.
        adjoint: of ``kernel``.
        precondition: an approximate inverse of ``adjoint(kernel(X) · moments)``.

    Returns:
        The improved unknowns, and what is left then.
    """
    residual = adjoint(left)
    direction = steep = precondition(residual)
    height = (residual * steep).sum((1, 2), keepdim=True)
    for _ in range(steps):
        along = kernel(direction)
        change = problem.times(along)
        curved = adjoint(change)
        # The moments curve by their ridge at the least; rounded to single precision, they might not.
        least = problem.ridge * along.square().sum((1, 2), keepdim=True)
        length = height / (direction * curved).sum((1, 2), keepdim=True).maximum(least).clamp_min(1e-300)
        X, left, residual = X + length * direction, left - length * change, residual - length * curved
        steep = precondition(residual)
        height, before = (residual * steep).sum((1, 2), keepdim=True), height
        direction = steep + height / before.clamp_min(1e-300) * direction
    return X, left


def _unit_rows(depthwise: Tensor) -> Tensor:
    """Depthwise kernels of norm 1, which keeps the systems for the pointwise weights balanced."""
    norms: Tensor = depthwise.norm(dim=2, keepdim=True)
    return depthwise / norms.clamp_min(1e-30)


def _solve(A: Tensor, R: Tensor) -> Tensor:
    """Solve the symmetric positive semi-definite systems ``A X = R`` (batched)."""
    return torch.cholesky_solve(R, _cholesky(A))


def _cholesky(A: Tensor) -> Tensor:
    """Cholesky factors of positive semi-definite matrices (batched), made definite by a trace of their diagonal.

    The floor over the whole batch is for those that are zero: kernels that no output uses.
    """
    A = A.clone()
    diagonal = A.diagonal(dim1=-2, dim2=-1)
    level = diagonal.mean(dim=-1, keepdim=True)
    diagonal.add_(1e-9 * level + 1e-12 * level.mean() + 1e-300)
    factors: Tensor = torch.linalg.cholesky(A)
    return factors
