"""How much the network's output changes when one layer alone is converted.

The change is measured where it matters, at the network's output on calibration images, and only at a few options of
each layer. Between them it follows the layer's own error closely as a power law, ``change ≈ α · error^β``: the error is
cheap to know for every option, a forward pass is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torch_separable._network.outputs import evaluating, logits_of
from torch_separable.conversion.calibration.calibrate import LayerStatistics, Statistics, flat, over_processes
from torch_separable.conversion.calibration.observer import Batch, images_in, input_of, placed, run_on
from torch_separable.conversion.calibration.replay_cache import ReplayCache
from torch_separable.conversion.layers import Conv, grouped_weight
from torch_separable.conversion.planning.plan import Method
from torch_separable.conversion.solvers.factorize import (
    Factors,
    Moments,
    Order,
    decouple,
    decouple_weighted,
    output_error,
)
from torch_separable.conversion.solvers.reconstruct import biases, fit_groups, importance_of

Choice = tuple[Order, int]

# Ranks that are fitted; the error of others is interpolated, for its logarithm falls almost evenly with the rank.
_FITTED_RANKS = (1, 2, 3, 5, 8, 13, 21, 34)
# Unknowns of the largest system, and entries of the largest patch, for which a rank is fitted: beyond, the closed form
# is near enough to compare by, and the fits would take minutes (kernels of 7x7 at ranks above 8; 3x3 of 512 channels).
_LARGEST_SYSTEM, _LARGEST_PATCH = 400, 2500
# Errors near which the network's output is measured.
_PROBES = (0.3, 0.03)
# On so many images of up to 80x80 pixels, and on fewer larger ones, whose outputs take longer.
_PROBE_IMAGES, _LEAST_PROBE_IMAGES, _PROBE_PIXELS = 128, 16, 128 * 80 * 80
_LEAST = 1e-9


@dataclass(frozen=True)
class Option:
    """A factorisation of one layer, fitted to that layer alone.

    Attributes:
        order: which factor runs first.
        rank: multiplier or rank.
        error: share of the output's variance that is lost.
        factors: one entry a group; ``None`` where the error is interpolated.
    """

    order: Order
    rank: int
    error: float
    factors: tuple[Factors, ...] | None = None


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
        moments: one entry a group.
        choices: orders and ranks.
        method: of fitting.
        every: whether to fit all choices, and interpolate none.
        sweeps: of each fit: few suffice to compare.
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
            if every or rank in _FITTED_RANKS or rank == ranks[-1] or rank == ranks[0]:
                if method == "svd":
                    factors = tuple(decouple(w, order, rank) for w in weight)
                    error = layer_error(factors, moments, importance)
                else:
                    small = rank * weight.shape[-1] <= _LARGEST_SYSTEM and weight[0, 0].numel() <= _LARGEST_PATCH
                    start = tuple(f.truncated(rank) for f in closed)
                    few = sweeps if small else 0
                    factors, error = fit_groups(moments, weight, order, rank, importance, start=start, sweeps=few)
                fitted[rank] = Option(order, rank, error, factors)
        known = sorted(fitted)
        logs = [np.log(max(fitted[rank].error, _LEAST)) for rank in known]
        for rank in ranks:
            error = float(np.exp(np.interp(rank, known, logs)))
            options.append(fitted.get(rank) or Option(order, rank, error))
    return options


def layer_error(factors: tuple[Factors, ...], moments: tuple[Moments, ...], importance: Tensor) -> float:
    """Return the weighted share of the output's variance that the factors of all groups lose."""
    shares = importance.chunk(len(moments))
    lost = total = 0.0
    for f, m, i in zip(factors, moments, shares, strict=True):
        variance = float((m.target_variance * i).sum())
        lost += output_error(f.kernel(), m, i) * variance
        total += variance
    return lost / max(total, 1e-300)


def measure(
    model: nn.Module,
    statistics: Statistics,
    layer: LayerStatistics,
    conv: Conv,
    moments: tuple[Moments, ...],
    options: Sequence[Option],
    method: Method,
    cache: ReplayCache,
) -> list[float]:
    """Return for each option the mean squared change of the network's outputs when this layer alone takes it.

    ``cache`` is one for all layers, measured in the order in which they run.
    """
    fitted = [option for option in options if option.factors is not None]
    probes: dict[tuple[str, int], float] = {}
    batches = _some(statistics.batches)
    reference = statistics.outputs[: sum(images_in(batch) for batch in batches)]
    for target in _PROBES:
        option = min(fitted, key=lambda o: abs(np.log(max(o.error, _LEAST) / target)))
        if (option.order, option.rank) not in probes:
            change = _change(model, batches, reference, conv, option, moments, method, cache)
            probes[option.order, option.rank] = max(change, 0.0)
    points = sorted(
        (max(option.error, _LEAST), max(probes[option.order, option.rank], 1e-30))
        for option in fitted
        if (option.order, option.rank) in probes
    )
    (low, low_change), (high, high_change) = points[0], points[-1]
    slope = 1.0
    if high > 1.5 * low:
        slope = float(np.clip(np.log(high_change / low_change) / np.log(high / low), 0.5, 2.0))
    changes = []
    for option in options:
        error = max(option.error, _LEAST)
        near, change = min(points, key=lambda p: abs(np.log(p[0] / error)))
        changes.append(change * (error / near) ** slope)
    return changes


def _change(
    model: nn.Module,
    batches: Sequence[Batch],
    reference: Tensor,
    conv: Conv,
    option: Option,
    moments: tuple[Moments, ...],
    method: Method,
    cache: ReplayCache,
) -> float:
    """Run the network with one kernel exchanged for what its factors amount to."""
    assert option.factors is not None
    kernel = torch.cat([f.kernel() for f in option.factors]).reshape(conv.weight.shape)
    bias = None if method == "svd" else biases(option.factors, moments)
    if bias is not None and conv.bias is not None:
        bias = bias - conv.bias.detach().cpu().double()

    def exchanged(module: Conv, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
        result: Tensor = module._conv_forward(input_of(args, kwargs), kernel.to(module.weight), module.bias)
        if bias is None:
            return result
        return result + bias.to(result).view(-1, *[1] * len(module.kernel_size))

    handle = conv.register_forward_hook(exchanged, prepend=True, with_kwargs=True)
    try:
        with evaluating(model), torch.no_grad():
            returned = [
                cache.run(i, conv, partial(run_on, model, placed(model, batch))) for i, batch in enumerate(batches)
            ]
            outputs = [flat(logits_of(output)) for output in returned]
    finally:
        handle.remove()
    squared = (torch.cat(outputs) - reference)[:, reference.isfinite().all(0)].square()  # without masked ones
    total, count = over_processes(squared.sum(dtype=torch.float64), torch.tensor(squared.numel(), dtype=torch.float64))
    return float(total / count)


def _some(batches: Sequence[Batch]) -> list[Batch]:
    """Return the first images, in batches: enough to see a change of the network's outputs."""
    first = batches[0]
    tensors = first.values() if isinstance(first, Mapping) else [first]
    pixels = max((tensor[0, 0].numel() for tensor in tensors if tensor.dim() > 2), default=1)
    wanted = max(_LEAST_PROBE_IMAGES, min(_PROBE_IMAGES, _PROBE_PIXELS // pixels))
    chosen: list[Batch] = []
    for batch in batches:
        if wanted <= 0:
            break
        chosen.append({k: v[:wanted] for k, v in batch.items()} if isinstance(batch, Mapping) else batch[:wanted])
        wanted -= images_in(batch)
    return chosen
