"""Second moments of sampled input patches: all that a least-squares fit needs to know about the data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torch_separable.conversion.calibration.processes import sum_over_processes
from torch_separable.conversion.calibration.recording import Recording, record
from torch_separable.conversion.calibration.statistics import Statistics
from torch_separable.conversion.convolutions import Conv, grouped_weight, patch_entries
from torch_separable.conversion.solvers.factorize import Moments, dense_moments

_BLOCK = 512  # rows of samples that are centred at a time, and rows of the moments that are accumulated at a time


def layer_moments(model: nn.Module, conv: Conv, statistics: Statistics, name: str) -> tuple[Moments, ...]:
    """Return the moments of one layer; run the network for them where `calibrate` had no memory to keep them."""
    layer = statistics[name]
    if layer.moments is not None:
        return layer.moments
    once = layer.calls == 1
    recording = record(model, statistics.batches, {name: conv}, {name: layer.pixels}, patches=True, stop_early=once)
    return recorded_moments(conv, recording[name])


def recorded_moments(conv: Conv, recording: Recording) -> tuple[Moments, ...]:
    """Return the moments of a recording of ``conv`` with the dense output as target, one entry for each group."""
    assert recording.patches is not None
    gathered = sample_moments(recording.patches, recording.outputs, conv.groups)
    weights = grouped_weight(conv)
    biases = [None] * conv.groups if conv.bias is None else list(conv.bias.detach().cpu().double().chunk(conv.groups))
    return tuple(
        dense_moments(w, b, m.patches, m.patch_mean, m.count) for w, b, m in zip(weights, biases, gathered, strict=True)
    )


def moment_bytes(conv: Conv) -> int:
    """Return the bytes that the moments of ``conv`` take."""
    entries = patch_entries(conv)
    return 8 * entries * (conv.groups * entries + conv.out_channels)


def sample_moments(
    patches: Tensor, target: Tensor, groups: int, known: tuple[Moments, ...] | None = None, *, single: bool = False
) -> tuple[Moments, ...]:
    """Compute centred second moments of samples in float64, one entry for each group.

    Args:
        patches: (P, C·K).
        target: (P, M).
        groups: groups of the convolution.
        known: moments of the same patches with another target; the patches' own moments are taken from them.
        single: whether ``cross`` may be multiplied in the samples' own precision. Only for fits that lose more than
            `SINGLE`, and only together with ``known``.
    """
    result = []
    for g, (x, t) in enumerate(zip(patches.chunk(groups, dim=1), target.chunk(groups, dim=1), strict=True)):
        count, sum_x, sum_t = sum_over_processes(
            torch.tensor(float(len(x)), dtype=torch.float64),
            x.sum(0, dtype=torch.float64),
            t.sum(0, dtype=torch.float64),
        )
        mean_x, mean_t = sum_x / count, sum_t / count
        entries, outputs = x.shape[1], t.shape[1]
        S, T, v = (sum_x.new_zeros(shape) for shape in ((entries, entries), (outputs, entries), (outputs,)))
        # In double precision: S rounded to single may have eigenvalues below zero by more than the ridge.
        precision = x.dtype if single and known is not None else torch.float64
        for xb, tb in zip(x.split(_BLOCK), t.split(_BLOCK), strict=True):
            xc, tc = xb - mean_x.to(precision), tb - mean_t.to(precision)
            if known is None:
                _add_gram(S, xc)
            T += tc.T @ xc
            v += tc.square().sum(0, dtype=v.dtype)
        S, T, v = sum_over_processes(S, T, v)
        S = (S.triu() + S.triu(1).T) / count if known is None else known[g].patches
        result.append(Moments(S, T / count, mean_x, mean_t, v / count, int(count)))
    return tuple(result)


def _add_gram(S: Tensor, samples: Tensor) -> None:
    """Add ``samplesᵀ samples`` to the upper triangle of ``S``, block row by block row."""
    for first in range(0, len(S), _BLOCK):
        S[first : first + _BLOCK, first:] += samples[:, first : first + _BLOCK].T @ samples[:, first:]
