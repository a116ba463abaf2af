"""Least squares on a layer's output by alternating over the two factors.

`fit` minimises

    E ‖t − Ŵ x − b‖²,  weighted by output channel,

over the factors of ``Ŵ``. For fixed depthwise kernels the optimal pointwise weights solve a linear system, and the
other way round. Systems too large to be solved exactly are approximated by conjugate gradients. Of the data, only the
second moments ``E[x xᵀ]`` and ``E[t xᵀ]`` and the means are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torch_separable.conversion.solvers.factorize import Factors, Moments, add_ridge, ridge_of

# Below this share of the target's variance the remaining error is rounding of the samples.
_EXACT = 1e-10

# While a fit loses more than this share of the target's variance, products with the moments are taken in single
# precision: their rounding error is a thousandth of it.
SINGLE = 1e-4

# Steps of conjugate gradients on one factor before the other factor's turn.
_STEPS = 3

# Channels whose depthwise kernels are solved for between two updates of the residual of all channels.
_CHANNEL_BLOCK = 16


def fit(
    moments: Moments,
    start: Factors,
    *,
    weights: Tensor | None = None,
    towards: Tensor | None = None,
    sweeps: int = 12,
    tolerance: float = 3e-3,
) -> tuple[Factors, float]:
    """Minimise the error of a layer's output over the data by alternating least squares.

    Depthwise first, the kernels of one channel are solved for with those of all others fixed (block Gauss-Seidel). No
    system has more than ``C·D`` unknowns; solving for all depthwise kernels at once takes ``C·D·K``, needs as many
    sweeps and is tens of times slower. Pointwise first, a few steps of conjugate gradients replace ``M`` systems of
    ``C·D`` unknowns.

    Args:
        moments: of the layer's inputs and target.
        start: initial factors; they determine order and rank.
        weights: importance of each output channel, shape (M,). They only matter depthwise first, where outputs share
            kernels.
        towards: dense kernel (M, C, K) that the ridge draws to, in directions that the patches do not cover. By
            default the kernel of ``start``.
        sweeps: maximum number of alternations.
        tolerance: stop once a sweep lowers the error by less than this share of it.

    Returns:
        Factors that are never worse on these moments than ``start``, and the share of the target's variance that they
        lose (weighted, including the ridge).
    """
    channels, taps = start.pointwise.shape[1], start.depthwise.shape[2]
    S = add_ridge(moments.patches)
    # The ridge draws to a known kernel instead of to zero: other images may have patches in those directions.
    anchor, ridge = (start.kernel() if towards is None else towards).flatten(1), ridge_of(moments.patches)
    problem = _Problem(
        S.view(channels, taps, channels, taps),
        (moments.cross + ridge * anchor).view(-1, channels, taps),
        moments.target_variance + ridge * anchor.square().sum(1),
        torch.ones(len(anchor), dtype=S.dtype) if weights is None else weights.to(S),
        ridge,
    )
    sweep = _sweep_depthwise_first if start.order == "depthwise_first" else _sweep_pointwise_first
    kernel = start.kernel()
    best = current = _Iterate(start, problem.residual(kernel))
    lost = best_lost = problem.lost_share(kernel, best.residual)
    if lost > SINGLE:
        problem = replace(problem, single=S.float())
    for _ in range(sweeps):
        if best_lost <= _EXACT:
            break
        if problem.single is not None and lost <= SINGLE:
            problem = replace(problem, single=None)
            current = _Iterate(current.factors, problem.residual(current.factors.kernel()))
        current, lost = sweep(current, problem)
        gain = best_lost - lost
        if gain > 0:
            best, best_lost = current, lost
        if gain <= tolerance * best_lost:
            break
    return best.factors, max(best_lost, 0.0)


@dataclass(frozen=True)
class _Problem:
    """Minimise ``v − 2 W·T + W S W`` over the kernel ``W`` of each output, weighted.

    Attributes:
        moments: ``S``, second moments of the patches with the ridge, (C, K, C, K).
        cross: ``T``, cross moments with the target and the ridge, (M, C, K).
        variance: ``v`` of each output including the ridge, (M,).
        weights: importance of each output, (M,).
        ridge: lower bound of the moments' eigenvalues.
        single: the moments in single precision, (C·K, C·K), while that is exact enough; else ``None``.
    """

    moments: Tensor
    cross: Tensor
    variance: Tensor
    weights: Tensor
    ridge: float
    single: Tensor | None = None

    def residual(self, kernel: Tensor) -> Tensor:
        """Return ``T − W S``, the cross moments that a kernel leaves unexplained, (M, C, K)."""
        return self.cross - (kernel.flatten(1) @ self.flat_moments).view_as(kernel)

    def lost_share(self, kernel: Tensor, residual: Tensor) -> float:
        """Return the share of the variance that a kernel with this residual loses."""
        lost = self.variance - (kernel * (self.cross + residual)).flatten(1).sum(1)
        return float((lost * self.weights).sum() / self.total)

    @property
    def total(self) -> Tensor:
        """Weighted variance of all outputs."""
        return (self.variance * self.weights).sum().clamp_min(1e-300)

    def times_moments(self, kernel: Tensor) -> Tensor:
        """Return ``W S``, (M, C, K), in single precision where that is exact enough."""
        return (kernel.flatten(1).to(self.factor) @ self.factor).to(kernel).view_as(kernel)

    @property
    def factor(self) -> Tensor:
        """The moments to multiply by, (C·K, C·K)."""
        return self.flat_moments if self.single is None else self.single

    @property
    def flat_moments(self) -> Tensor:
        entries = self.moments.shape[0] * self.moments.shape[1]
        return self.moments.reshape(entries, entries)


@dataclass(frozen=True)
class _Iterate:
    """Factors and the residual of their kernel, (M, C, K)."""

    factors: Factors
    residual: Tensor


def _sweep_depthwise_first(iterate: _Iterate, problem: _Problem) -> tuple[_Iterate, float]:
    """Solve for all pointwise weights, then for the depthwise kernels channel by channel. Also return the loss."""
    S, T = problem.moments, problem.cross
    B = _unit_rows(iterate.factors.depthwise).clone()
    channels, rank, taps = B.shape
    # All pointwise weights at once: (B S Bᵀ) Pᵀ = B Tᵀ.
    SB = torch.einsum("ciej,edj->cied", S, B)
    A = torch.einsum("cqi,cied->cqed", B, SB).reshape(channels * rank, channels * rank)
    R = torch.einsum("mci,cdi->cdm", T, B).reshape(channels * rank, -1)
    P = _solve(A, R).T.reshape(-1, channels, rank)
    # The depthwise kernels of one channel after the other: (PᵀΩP ⊗ S[c, c]) ΔB[c] = PᵀΩ · residual[c].
    ΩP = P * problem.weights[:, None, None]
    kernel = torch.einsum("mcd,cdk->mck", P, B)
    residual = T - problem.times_moments(kernel)
    lost = problem.lost_share(kernel, residual)
    residual = residual.flatten(1)
    own = torch.einsum("cicj->cij", S)
    rows, gained = S.reshape(channels, taps, -1), torch.zeros((), dtype=S.dtype)
    for first in range(0, channels, _CHANNEL_BLOCK):
        block = slice(first, first + _CHANNEL_BLOCK)
        PP = torch.einsum("mcd,mcq->cdq", ΩP[:, block], P[:, block])
        L = _cholesky(torch.einsum("cdq,cij->cdiqj", PP, own[block]).reshape(-1, rank * taps, rank * taps))
        before, columns = B[block].clone(), slice(first * taps, (first + len(L)) * taps)
        for c, factor in enumerate(L, start=first):
            R = ΩP[:, c].T @ residual[:, c * taps : (c + 1) * taps]
            step = torch.cholesky_solve(R.reshape(-1, 1), factor).reshape(rank, taps)
            B[c] += step
            gained += (R * step).sum()
            residual[:, columns] -= P[:, c] @ (step @ rows[c, :, columns])
        # Later channels see these steps once the block is done: one update of their residual for each block.
        change = torch.einsum("mcd,cdk->mck", P[:, block], B[block] - before).flatten(1)
        rest = slice(columns.stop, None)
        moments = problem.factor[columns, rest]
        residual[:, rest] -= (change.to(moments) @ moments).to(residual)
    lost -= float(gained / problem.total)
    # The residual of earlier blocks is stale by now; the next sweep computes all of it anew.
    return _Iterate(Factors("depthwise_first", B, P), residual), lost


def _sweep_pointwise_first(iterate: _Iterate, problem: _Problem, steps: int = _STEPS) -> tuple[_Iterate, float]:
    """Improve the pointwise weights of all outputs, then their depthwise kernels. Also return the loss.

    An exact solution takes a system of ``C·D`` unknowns for each output. A few steps of conjugate gradients from the
    last sweep's factors reach as far at one product with the moments each. They are preconditioned by the moments'
    Kronecker approximation ``E ⊗ F`` (over channels, over taps).
    """
    S, factors = problem.moments, iterate.factors
    B = _unit_rows(factors.depthwise)
    P = factors.pointwise * factors.depthwise.norm(dim=2)[:, None, :]
    outputs, rank, _ = B.shape
    channels = len(S)
    over_taps = torch.einsum("cicj->ij", S)
    over_channels = torch.einsum("ciei->ce", S) / over_taps.trace()
    taps_factor, channels_factor = _cholesky(over_taps), _cholesky(over_channels)

    small = _cholesky(B @ over_taps @ B.mT)
    P, residual = _conjugate_gradients(
        P, iterate.residual, problem, steps, lambda X: X @ B, lambda V: V @ B.mT,
        lambda R: torch.cholesky_solve(
            torch.cholesky_solve(R.transpose(0, 1).reshape(channels, -1), channels_factor)
            .view(channels, outputs, rank).permute(1, 2, 0), small,
        ).mT,
    )  # fmt: skip
    small = _cholesky(P.mT @ over_channels @ P)
    B, residual = _conjugate_gradients(
        B, residual, problem, steps, lambda X: P @ X, lambda V: P.mT @ V,
        lambda R: torch.cholesky_solve(torch.cholesky_solve(R, small).mT, taps_factor).mT,
    )  # fmt: skip
    improved = Factors("pointwise_first", B, P)
    return _Iterate(improved, residual), problem.lost_share(improved.kernel(), residual)


def _conjugate_gradients(
    X: Tensor,
    residual: Tensor,
    problem: _Problem,
    steps: int,
    kernel: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Take steps of preconditioned conjugate gradients, independently for every output.

    Args:
        X: the unknowns of each output, (M, ., .).
        residual: of the current kernel, (M, C, K).
        problem: with the moments of the patches.
        steps: how many.
        kernel: linear map from unknowns to the dense kernel, (M, C, K).
        adjoint: adjoint of ``kernel``.
        precondition: an approximate inverse of ``adjoint(kernel(X) · moments)``.

    Returns:
        The improved unknowns and their residual.
    """
    gradient = adjoint(residual)
    direction = scaled = precondition(gradient)
    height = (gradient * scaled).sum((1, 2), keepdim=True)
    for _ in range(steps):
        along = kernel(direction)
        change = problem.times_moments(along)
        curved = adjoint(change)
        # The curvature is at least that of the ridge; rounding to single precision could push it below.
        least = problem.ridge * along.square().sum((1, 2), keepdim=True)
        length = height / (direction * curved).sum((1, 2), keepdim=True).maximum(least).clamp_min(1e-300)
        X, residual, gradient = X + length * direction, residual - length * change, gradient - length * curved
        scaled = precondition(gradient)
        height, before = (gradient * scaled).sum((1, 2), keepdim=True), height
        direction = scaled + height / before.clamp_min(1e-300) * direction
    return X, residual


def _unit_rows(depthwise: Tensor) -> Tensor:
    """Scale depthwise kernels to norm 1, which keeps the systems for the pointwise weights balanced."""
    norms: Tensor = depthwise.norm(dim=2, keepdim=True)
    return depthwise / norms.clamp_min(1e-30)


def _solve(A: Tensor, R: Tensor) -> Tensor:
    """Solve the symmetric positive semi-definite systems ``A X = R`` (batched)."""
    return torch.cholesky_solve(R, _cholesky(A))


def _cholesky(A: Tensor) -> Tensor:
    """Return Cholesky factors of positive semi-definite matrices (batched).

    A small share of the mean diagonal makes them definite. The share of the whole batch's mean is for matrices that
    are zero: kernels that no output uses.
    """
    A = A.clone()
    diagonal = A.diagonal(dim1=-2, dim2=-1)
    level = diagonal.mean(dim=-1, keepdim=True)
    diagonal.add_(1e-9 * level + 1e-12 * level.mean() + 1e-300)
    factors: Tensor = torch.linalg.cholesky(A)
    return factors
