"""How much of the error of earlier layers a layer should correct.

A layer of the partly converted network receives ``x'`` where the dense one received ``x``. Its target is
``t = W x' + λ c``, where ``c`` is the correction that makes up for the earlier error. With ``λ = 1`` the target is the
dense output itself. From few images a fit of ``c`` is mostly noise, and less of it is better on other images.

The share has a closed form. A dense kernel ``Δ`` is fitted to the correction on one half of the samples. The other,
with the moments ``S = E[x' x'ᵀ]`` and ``T = E[c x'ᵀ]``, gives the factor by which it should be scaled:
``q = ⟨T, Δ⟩ / ⟨Δ S, Δ⟩``. A fit on all samples has half the noise of a fit on one half, so ``λ = 2q / (1 + q)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torch_separable.conversion.calibration.moments import sample_moments
from torch_separable.conversion.solvers.factorize import Moments, add_ridge

_Halves = tuple[tuple[Moments, ...], tuple[Moments, ...]]


def half_moments(patches: Tensor, correction: Tensor, groups: int) -> _Halves:
    """Return the moments of the first and the second half of the samples, which stem from different images.

    Args:
        patches: (P, C·K), in the order of the images.
        correction: (P, M).
        groups: groups of the convolution.
    """
    middle = len(patches) // 2
    first, second = slice(0, middle), slice(middle, None)
    return (
        sample_moments(patches[first], correction[first], groups),
        sample_moments(patches[second], correction[second], groups),
    )


def correction_share(halves: _Halves, importance: Tensor) -> float:
    """Return the share ``λ`` of the correction to fit to, from 0 to 1.

    Args:
        halves: from `half_moments`.
        importance: of each output channel, (M,).
    """
    explained = power = 0.0
    shares = importance.chunk(len(halves[0]))
    for one, other, weights in zip(*halves, shares, strict=True):
        for fitted, judge in ((one, other), (other, one)):
            delta = torch.cholesky_solve(fitted.cross.T, torch.linalg.cholesky(add_ridge(fitted.patches))).T
            explained += float(((judge.cross * delta).sum(1) * weights).sum())
            power += float((((delta @ judge.patches) * delta).sum(1) * weights).sum())
    if power <= 0:  # there is nothing to correct
        return 1.0
    q = min(max(explained / power, 0.0), 1.0)
    return 2 * q / (1 + q)


def corrected_moments(halves: _Halves, weight: Tensor, bias: Tensor, share: float) -> tuple[Moments, ...]:
    """Return the moments of all samples with the target ``W x' + bias + share · correction``.

    Args:
        halves: from `half_moments`.
        weight: dense kernel by group, (groups, M/groups, C/groups, K).
        bias: of the dense layer, (M,).
        share: of the correction.
    """
    result = []
    for one, other, kernel, own in zip(*halves, weight.flatten(2), bias.chunk(len(weight)), strict=True):
        m = combine(one, other)
        dense = kernel @ m.patches  # E[W x' x'ᵀ]
        result.append(
            Moments(
                patches=m.patches,
                cross=dense + share * m.cross,
                patch_mean=m.patch_mean,
                target_mean=kernel @ m.patch_mean + own + share * m.target_mean,
                target_variance=(dense * kernel).sum(1)
                + 2 * share * (m.cross * kernel).sum(1)
                + share**2 * m.target_variance,
                count=m.count,
            )
        )
    return tuple(result)


def combine(one: Moments, other: Moments) -> Moments:
    """Return the moments of two sets of samples together."""
    count = one.count + other.count
    a, b = one.count / count, other.count / count
    patch_gap, target_gap = one.patch_mean - other.patch_mean, one.target_mean - other.target_mean
    return Moments(
        patches=a * one.patches + b * other.patches + a * b * torch.outer(patch_gap, patch_gap),
        cross=a * one.cross + b * other.cross + a * b * torch.outer(target_gap, patch_gap),
        patch_mean=a * one.patch_mean + b * other.patch_mean,
        target_mean=a * one.target_mean + b * other.target_mean,
        target_variance=a * one.target_variance + b * other.target_variance + a * b * target_gap.square(),
        count=count,
    )
