"""Scales and zero points of activations, by least squared error."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_separable.runtime.graph.ir import Quantization

_BINS = 4096
_CANDIDATES = 120
_SMALLEST = 1e-30


def choose_range(values: Sequence[Tensor]) -> Quantization:
    """Choose the scale and zero point of values by least squared error.

    The error is that of rounding, step² / 12, for values within the range and that of clamping for those outside. It is
    evaluated on a histogram. Zero is always represented exactly.

    Args:
        values: float32, finite.

    Example:
        >>> chosen = choose_range([torch.linspace(0, 2.55, 1000)])
        >>> round(chosen.scale, 4), chosen.zero_point
        (0.01, 0)
    """
    low = min(0.0, *(float(value.min()) for value in values))
    high = max(0.0, *(float(value.max()) for value in values))
    if high - low < _SMALLEST:  # a dead value
        return Quantization(1.0, 0)
    counts = torch.zeros(_BINS, dtype=torch.float64)
    for value in values:
        counts += torch.histc(value.float(), _BINS, low, high).double()
    width = (high - low) / _BINS
    centres = low + width * (torch.arange(_BINS, dtype=torch.float64) + 0.5)
    for _ in range(2):  # each end in turn
        if high > 0:
            ends = high * torch.linspace(1, 0.2, _CANDIDATES, dtype=torch.float64)
            high = float(ends[_errors(centres, counts, torch.full_like(ends, low), ends).argmin()])
        if low < 0:
            ends = low * torch.linspace(1, 0.2, _CANDIDATES, dtype=torch.float64)
            low = float(ends[_errors(centres, counts, ends, torch.full_like(ends, high)).argmin()])
    return as_quantization(low, high)


def _errors(centres: Tensor, counts: Tensor, lows: Tensor, highs: Tensor) -> Tensor:
    """Squared errors of ranges, one a candidate."""
    below = (lows[:, None] - centres).clamp_min(0)
    above = (centres - highs[:, None]).clamp_min(0)
    inside = (below == 0) & (above == 0)
    steps = (highs - lows)[:, None] / 255
    return ((below**2 + above**2 + inside * steps**2 / 12) * counts).sum(1)


def as_quantization(low: float, high: float) -> Quantization:
    """Return scale and zero point of a range that contains 0; the scale is a float32 value.

    Example:
        >>> as_quantization(0.0, 255.0)
        Quantization(scale=1.0, zero_point=0)
    """
    scale = float(torch.tensor(max((high - low) / 255, _SMALLEST), dtype=torch.float32))
    return Quantization(scale, min(max(round(-low / scale), 0), 255))
