"""Fitting one layer to what the network around it needs: the sequential, rectifier-aware reconstruction.

A layer that is converted gets its input from layers that were converted before, and hands its output to a batch norm,
perhaps a residual sum, perhaps a ReLU. So it is fitted on the inputs that the converted network delivers, and not to
the dense layer's own output but to what makes the *sum* right: ``t = y + (r − r') / a``, with ``y`` the dense output,
``r`` and ``r'`` the residual branch's values in the dense and the converted network, ``a`` the batch norm's scale.

Where a ReLU follows, what happens below zero does not matter. Following Zhang et al., "Accelerating Very Deep
Convolutional Networks" (arXiv 1505.06798, section 3.2), an auxiliary target ``z`` is alternated with the fit:

    min over z, Ŵ of  ‖relu(v) − relu(z)‖² + λ ‖z − v̂‖²,

where ``v`` and ``v̂`` are the dense and the fitted values before the ReLU; ``z`` has a closed form for each entry.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torch_separable.conversion.calibration.calibrate import LayerStatistics, sample_moments
from torch_separable.conversion.calibration.observer import Recording
from torch_separable.conversion.solvers.factorize import (
    SINGLE,
    Factors,
    Moments,
    Order,
    best_bias,
    decouple_weighted,
    fit,
)

# λ of each alternation: small at first, so that the target may move, then 1 (section 3.2.2 of the paper).
RECTIFIER_SCHEDULE = (0.3, 1.0, 1.0, 1.0)

# A batch norm's scale below this share of the layer's typical one does not divide a residual error: such a channel
# could not correct it, and would be asked for huge outputs.
_LEAST_SCALE = 0.05


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
    """Fit each group of a convolution; see `fit`. Returns the factors, and the share of the outputs' variance lost.

    Args:
        moments: one entry a group.
        weight: dense kernel by group, (groups, M/groups, C/groups, K), float64.
        order: which factor runs first.
        rank: ``D``.
        importance: of each output channel, (M,).
        start: factors to begin from; by default the closed form on these moments.
        sweeps: at most so many alternations.
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
    """Weigh each output channel by the square of the batch norm's scale that follows, (M,)."""
    squared = layer.scale.square()
    return squared.clamp_min(1e-6 * float(squared.mean()) + 1e-30)


def reconstruct(
    layer: LayerStatistics,
    weight: Tensor,
    dense: Recording,
    converted: Recording,
    order: Order,
    rank: int,
    *,
    rectifier: bool = True,
    residual: bool = True,
) -> tuple[tuple[Factors, ...], Tensor]:
    """Fit a factorised layer at its place in the converted network.

    Args:
        layer: its statistics.
        weight: dense kernel by group, (groups, M/groups, C/groups, K), float64.
        dense: outputs and residual values in the dense network.
        converted: patches and residual values, at the same pixels, in the network converted so far.
        order: which factor runs first.
        rank: ``D``.
        rectifier: whether to mind the ReLU that follows.
        residual: whether to correct the residual branch's error.

    Returns:
        The factors, one entry a group, and the bias (M,).
    """
    assert converted.patches is not None
    scale, shift = layer.scale.to(dense.outputs), layer.shift.to(dense.outputs)
    target = dense.outputs
    # By the flow of a whole pass: one that was left early has not seen what else an output may be used for.
    residuals = (dense.residual, converted.residual) if layer.flow.residual else (None, None)
    own = torch.zeros(()) if residuals[0] is None else residuals[0]
    theirs = own
    if residual and residuals[0] is not None and residuals[1] is not None:
        theirs = residuals[1]
        least = _LEAST_SCALE * scale.abs().median().clamp_min(1e-12)
        correction = (own - theirs) / torch.where(scale.abs() < least, torch.inf, scale)
        target = target + correction

    groups, importance = layer.spec.groups, importance_of(layer)
    moments = sample_moments(converted.patches, target, groups)
    factors, lost = fit_groups(moments, weight, order, rank, importance)
    if not (rectifier and layer.flow.rectified):
        return factors, biases(factors, moments)

    wanted = (scale * dense.outputs + shift + own).clamp_min(0)
    divisor = torch.where(scale == 0, 1.0, scale)
    for strength in RECTIFIER_SCHEDULE:
        fitted = _apply(factors, converted.patches) + biases(factors, moments).to(target)
        before = scale * fitted + shift + theirs
        z = _rectified_target(wanted, before, strength)
        target = (z - shift - theirs) / divisor
        moments = sample_moments(converted.patches, target, groups, moments, single=lost > SINGLE)
        factors, _ = fit_groups(moments, weight, order, rank, importance, start=factors, sweeps=2)
    return factors, biases(factors, moments)


def _apply(factors: tuple[Factors, ...], patches: Tensor) -> Tensor:
    parts = zip(factors, patches.chunk(len(factors), dim=1), strict=True)
    return torch.cat([x @ f.kernel().flatten(1).T.to(x) for f, x in parts], dim=1)


def _rectified_target(wanted: Tensor, before: Tensor, strength: float) -> Tensor:
    """Minimise ``(wanted − relu(z))² + strength·(z − before)²`` over ``z``, entry by entry.

    On either side of zero this is a parabola; the better of the two minima is taken (equation 7 of the paper).
    """
    below = before.clamp_max(0)
    above = ((strength * before + wanted) / (strength + 1)).clamp_min(0)
    cost_below = wanted.square() + strength * (below - before).square()
    cost_above = (wanted - above).square() + strength * (above - before).square()
    return torch.where(cost_below < cost_above, below, above)
