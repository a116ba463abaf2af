"""The factorisations that one layer may take, and the error of each when fitted to that layer alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from torch import Tensor

from torch_separable.conversion.calibration.statistics import LayerStatistics, Statistics
from torch_separable.conversion.convolutions import Conv, grouped_weight
from torch_separable.conversion.planning.plan import Method, separable_macs, separable_specs
from torch_separable.conversion.solvers.factorize import (
    Factors,
    Moments,
    Order,
    decouple,
    decouple_weighted,
    output_error,
)
from torch_separable.conversion.solvers.layer_fit import fit_groups, importance_of

Choice = tuple[Order, int]

# Ranks that are fitted. The error of other ranks is interpolated, because its logarithm is almost linear in the rank.
_FITTED_RANKS = (1, 2, 3, 5, 8, 13, 21, 34)
# Largest system (unknowns) and largest patch (entries) for which a rank is fitted. Beyond that, the closed form is near
# enough for a comparison, and fits take minutes (7x7 kernels at ranks above 8; 3x3 kernels of 512 channels).
_LARGEST_SYSTEM, _LARGEST_PATCH = 400, 2500
SMALLEST_ERROR = 1e-9  # the logarithm of an error must be finite


@dataclass(frozen=True)
class Option:
    """A factorisation of one layer, fitted to that layer alone.

    Attributes:
        order: which factor runs first.
        rank: depth multiplier or rank.
        error: share of the output's variance that is lost.
        factors: one entry for each group; ``None`` where the error is interpolated.
    """

    order: Order
    rank: int
    error: float
    factors: tuple[Factors, ...] | None = None

    @property
    def choice(self) -> Choice:
        """Order and rank."""
        return self.order, self.rank


def possible_choices(statistics: Statistics, rank: int | None, order: Order | None) -> list[list[Choice]]:
    """Return the choices of each layer: orders, and within each order ascending ranks.

    Args:
        statistics: from `calibrate`.
        rank: one rank for all layers (at most the taps of the kernel); ``None`` for every rank with fewer MACs than
            the dense layer.
        order: the only order allowed; ``None`` for both.
    """
    orders = get_args(Order) if order is None else (order,)
    choices: list[list[Choice]] = []
    for layer in statistics.layers:
        largest = math.prod(layer.spec.kernel_size)
        if rank is not None:
            choices.append([(o, min(rank, largest)) for o in orders])
        else:
            every = [(o, r) for o in orders for r in range(1, largest + 1)]
            choices.append([choice for choice in every if macs_of(layer, choice) < layer.macs])
    return choices


def macs_of(layer: LayerStatistics, choice: Choice | None) -> int:
    """Return the multiply-accumulates of a layer for one image: dense (``None``) or factorised."""
    if choice is None:
        return layer.macs
    return separable_macs(layer.spec, *choice, layer.input_pixels, layer.macs // layer.spec.weights)


def parameters_of(layer: LayerStatistics, choice: Choice | None, method: Method) -> int:
    """Return the parameters of a layer: dense (``None``) or factorised. A least-squares fit always has a bias."""
    if choice is None:
        return layer.parameters
    first, second = separable_specs(layer.spec, *choice)
    has_bias = method == "least_squares" or layer.spec.bias
    return first.weights + second.weights + (layer.spec.out_channels if has_bias else 0)


def fit_options(
    layer: LayerStatistics,
    conv: Conv,
    moments: tuple[Moments, ...],
    choices: Sequence[Choice],
    method: Method,
    *,
    every: bool = False,
    sweeps: int = 3,
) -> list[Option]:
    """Return the error of each choice of order and rank for one layer.

    Args:
        layer: its statistics.
        conv: the dense convolution.
        moments: one entry for each group.
        choices: orders and ranks.
        method: how factors are found.
        every: whether to fit all choices and interpolate none.
        sweeps: maximum number of alternations of each fit; few suffice for a comparison.
    """
    weight, importance = grouped_weight(conv), importance_of(layer)
    options: list[Option] = []
    for order in dict.fromkeys(order for order, _ in choices):
        ranks = sorted({rank for o, rank in choices if o == order})
        closed: tuple[Factors, ...] = ()
        if method != "svd":
            pairs = zip(weight, moments, strict=True)
            closed = tuple(decouple_weighted(w, m.patches, order, ranks[-1]) for w, m in pairs)
        fitted: dict[int, Option] = {}
        for rank in ranks:
            if not (every or rank in (*_FITTED_RANKS, ranks[0], ranks[-1])):
                continue
            if method == "svd":
                factors = tuple(decouple(w, order, rank) for w in weight)
                error = layer_error(factors, moments, importance)
            else:
                is_small = rank * weight.shape[-1] <= _LARGEST_SYSTEM and weight[0, 0].numel() <= _LARGEST_PATCH
                start = tuple(f.truncated(rank) for f in closed)
                factors, error = fit_groups(
                    moments, weight, order, rank, importance, start=start, sweeps=sweeps if is_small else 0
                )
            fitted[rank] = Option(order, rank, error, factors)
        options += _interpolate(order, ranks, fitted)
    return options


def _interpolate(order: Order, ranks: Sequence[int], fitted: dict[int, Option]) -> list[Option]:
    """Return an option for each rank: the fitted one, or one whose error is interpolated between fitted ranks."""
    known = sorted(fitted)
    logarithms = [np.log(max(fitted[rank].error, SMALLEST_ERROR)) for rank in known]
    return [
        fitted.get(rank) or Option(order, rank, float(np.exp(np.interp(rank, known, logarithms)))) for rank in ranks
    ]


def layer_error(factors: tuple[Factors, ...], moments: tuple[Moments, ...], importance: Tensor) -> float:
    """Return the weighted share of the output's variance that the factors of all groups lose."""
    shares = importance.chunk(len(moments))
    lost = total = 0.0
    for f, m, i in zip(factors, moments, shares, strict=True):
        variance = float((m.target_variance * i).sum())
        lost += output_error(f.kernel(), m, i) * variance
        total += variance
    return lost / max(total, 1e-300)
