"""Fit one layer at its place in the partly converted network: sequential, residual- and rectifier-aware.

A converted layer receives the output of layers that were converted before it, and its own output goes into a batch
norm, perhaps a residual sum, perhaps a ReLU. So it is fitted to the activations of the partly converted network. Its
target is not the dense layer's own output but the output that makes the *sum* right: ``t = y + (r − r') / a``, where
``y`` is the dense output, ``r`` and ``r'`` are the residual branch's values in the dense and the converted network,
and ``a`` is the batch norm's scale.

Where a ReLU follows, values below zero may be anything below zero. Following Zhang et al., "Accelerating Very Deep
Convolutional Networks" (arXiv 1505.06798, section 3.2), the fit alternates with an auxiliary target ``z``:

    min over z, Ŵ of  ‖relu(v) − relu(z)‖² + λ ‖z − v̂‖²,

where ``v`` and ``v̂`` are the dense and the fitted values before the ReLU; ``z`` has a closed form for each entry.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_separable.conversion.calibration.moments import sample_moments
from torch_separable.conversion.calibration.recording import Recording
from torch_separable.conversion.calibration.statistics import LayerStatistics
from torch_separable.conversion.solvers.alternating import SINGLE, fit
from torch_separable.conversion.solvers.factorize import Factors, Moments, Order, best_bias, decouple_weighted
from torch_separable.conversion.solvers.mismatch import corrected_moments, correction_share, half_moments

# λ of each alternation: small at first, so that the target can move, then 1 (section 3.2.2 of the paper).
RECTIFIER_SCHEDULE = (0.3, 1.0, 1.0, 1.0)

# A channel whose batch norm scale is below this share of the layer's median cannot correct a residual error: the
# division would ask it for huge outputs.
_SMALLEST_SCALE = 0.05


@dataclass(frozen=True)
class FitOptions:
    """Which parts of the method a fit uses; all by default, and fewer for ablations.

    Attributes:
        rectifier: whether fits take the ReLU after a layer into account.
        residual: whether fits correct the error of the residual branch that a layer is added to.
        sequential: whether each layer is fitted to the activations of the partly converted network, or to the dense
            network's.
        share: whether the data decide how much of the earlier layers' error a layer corrects (see
            `torch_separable.conversion.solvers.mismatch`), or all of it.
    """

    rectifier: bool = True
    residual: bool = True
    sequential: bool = True
    share: bool = True


def fit_groups(
    moments: tuple[Moments, ...],
    weight: Tensor,
    order: Order,
    rank: int,
    importance: Tensor,
    *,
    start: tuple[Factors, ...] | None = None,
    sweeps: int = 12,
) -> tuple[tuple[Factors, ...], float]:
    """Fit each group of a convolution by `fit`; return the factors and the share of the outputs' variance lost.

    Args:
        moments: one entry for each group.
        weight: dense kernel by group, (groups, M/groups, C/groups, K), float64.
        order: which factor runs first.
        rank: ``D``.
        importance: of each output channel, (M,).
        start: initial factors; by default the closed form on these moments.
        sweeps: maximum number of alternations.
    """
    if start is None:
        start = tuple(decouple_weighted(w, m.patches, order, rank) for w, m in zip(weight, moments, strict=True))
    shares = importance.chunk(len(moments))
    fitted = [
        fit(m, s, weights=i, towards=w, sweeps=sweeps)
        for m, s, i, w in zip(moments, start, shares, weight, strict=True)
    ]
    variances = [float((m.target_variance * i).sum()) for m, i in zip(moments, shares, strict=True)]
    lost = sum(share * variance for (_, share), variance in zip(fitted, variances, strict=True))
    return tuple(factors for factors, _ in fitted), lost / max(sum(variances), 1e-300)


def biases(factors: tuple[Factors, ...], moments: tuple[Moments, ...]) -> Tensor:
    """Return the best bias of each output channel, (M,)."""
    return torch.cat([best_bias(f.kernel(), m) for f, m in zip(factors, moments, strict=True)])


def importance_of(layer: LayerStatistics) -> Tensor:
    """Weight each output channel by the square of the scale of the batch norm that follows, (M,)."""
    squared = layer.scale.square()
    return squared.clamp_min(1e-6 * float(squared.mean()) + 1e-30)


def fit_layer(
    layer: LayerStatistics,
    weight: Tensor,
    bias: Tensor | None,
    dense: Recording,
    converted: Recording,
    order: Order,
    rank: int,
    options: FitOptions = FitOptions(),
) -> tuple[tuple[Factors, ...], Tensor]:
    """Fit a factorised layer at its place in the converted network.

    Args:
        layer: its statistics.
        weight: dense kernel by group, (groups, M/groups, C/groups, K), float64.
        bias: dense bias, (M,), or ``None``.
        dense: outputs and residual values in the dense network.
        converted: patches and residual values in the partly converted network, at the same pixels.
        order: which factor runs first.
        rank: ``D``.
        options: which parts of the method to use.

    Returns:
        The factors, one entry for each group, and the bias (M,).
    """
    assert converted.patches is not None
    scale, shift = layer.scale.to(dense.outputs), layer.shift.to(dense.outputs)
    # Whether there is a residual sum says the whole pass: one that stopped early may have missed another use.
    has_residual = layer.consumer.residual and dense.residual is not None
    dense_residual = dense.residual if has_residual and dense.residual is not None else torch.zeros(())
    converted_residual = dense_residual
    target = dense.outputs
    if options.residual and has_residual and converted.residual is not None:
        converted_residual = converted.residual
        smallest = _SMALLEST_SCALE * scale.abs().median().clamp_min(1e-12)
        divisor = torch.where(scale.abs() < smallest, torch.inf, scale)
        target = target + (dense_residual - converted_residual) / divisor

    groups, importance = layer.spec.groups, importance_of(layer)
    own_bias = torch.zeros(len(importance), dtype=torch.float64) if bias is None else bias.detach().cpu().double()
    own = _convolve(tuple(weight), converted.patches) + own_bias.to(target)
    halves = half_moments(converted.patches, target - own, groups)
    share = correction_share(halves, importance) if options.share and options.sequential else 1.0
    moments = corrected_moments(halves, weight, own_bias, share)
    factors, lost = fit_groups(moments, weight, order, rank, importance)
    if not (options.rectifier and layer.consumer.rectified):
        return factors, biases(factors, moments)

    wanted = share * (scale * dense.outputs + shift + dense_residual)
    wanted = (wanted + (1 - share) * (scale * own + shift + converted_residual)).clamp_min(0)
    divisor = torch.where(scale == 0, 1.0, scale)
    for strength in RECTIFIER_SCHEDULE:
        kernels = tuple(f.kernel() for f in factors)
        fitted = _convolve(kernels, converted.patches) + biases(factors, moments).to(target)
        before = scale * fitted + shift + converted_residual
        z = _rectified_target(wanted, before, strength)
        target = (z - shift - converted_residual) / divisor
        moments = sample_moments(converted.patches, target, groups, moments, single=lost > SINGLE)
        factors, _ = fit_groups(moments, weight, order, rank, importance, start=factors, sweeps=2)
    return factors, biases(factors, moments)


def _convolve(kernels: tuple[Tensor, ...], patches: Tensor) -> Tensor:
    """Apply dense kernels (M/groups, C/groups, K), one for each group, to patches (P, C·K)."""
    parts = zip(kernels, patches.chunk(len(kernels), dim=1), strict=True)
    return torch.cat([x @ kernel.flatten(1).T.to(x) for kernel, x in parts], dim=1)


def _rectified_target(wanted: Tensor, before: Tensor, strength: float) -> Tensor:
    """Minimise ``(wanted − relu(z))² + strength·(z − before)²`` over ``z``, entry by entry.

    On either side of zero this is a parabola; the better of the two minima is taken (equation 7 of the paper).
    """
    below = before.clamp_max(0)
    above = ((strength * before + wanted) / (strength + 1)).clamp_min(0)
    cost_below = wanted.square() + strength * (below - before).square()
    cost_above = (wanted - above).square() + strength * (above - before).square()
    return torch.where(cost_below < cost_above, below, above)
