"""int8 weights that keep a layer's outputs: rounding with error feedback on second moments of its inputs.

Source: Frantar et al., GPTQ (ICLR 2023, arXiv 2210.17323): weights are rounded one column after the other, and each
column's error is compensated by the columns that are still to come, as the inverse of ``E[x xᵀ]`` has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]
Settings = tuple[Pair, Pair, Pair]  # stride, padding, dilation

LARGEST = 127
_DAMPING = 0.01  # of the mean diagonal, as in the paper
_SHRINKING = torch.linspace(1.0, 0.8, 11, dtype=torch.float64)  # candidates for a row's scale
_FEWEST_SAMPLES = 4096


def round_weights(weight: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
    """Round weights to int8 with a scale for each output channel.

    Args:
        weight: (groups, M/groups, K).
        moments: second moments of the inputs' patches, (groups, K, K).

    Returns:
        int8 weights of the same shape, and float32 scales (groups, M/groups).

    Example:
        >>> stored, scales = round_weights(torch.tensor([[[1.27, -0.5]]]), torch.eye(2)[None])
        >>> stored.tolist(), [round(float(scale), 4) for scale in scales]
        ([[[127, -50]]], [0.01])
    """
    weight, moments = weight.double(), moments.double()
    diagonal = moments.diagonal(dim1=1, dim2=2)
    scales = _scales(weight, diagonal)
    entries = weight.shape[2]
    damping = (_DAMPING * diagonal.mean(1)).clamp_min(1e-12)
    damped = moments + damping[:, None, None] * torch.eye(entries, dtype=torch.float64)
    # Large inputs first: their errors are the ones that the others can compensate.
    order = diagonal.argsort(dim=1, descending=True)
    rows = order[:, :, None].expand(-1, -1, entries)
    damped = damped.gather(1, rows).gather(2, rows.transpose(1, 2))
    columns = order[:, None].expand(-1, weight.shape[1], -1)
    rest = weight.gather(2, columns).clone()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    feedback = torch.linalg.cholesky(inverse, upper=True)
    stored = torch.zeros_like(rest)
    block = 64
    for begin in range(0, entries, block):
        end = min(begin + block, entries)
        errors = torch.zeros(*rest.shape[:2], end - begin, dtype=torch.float64)
        for k in range(begin, end):
            stored[..., k] = (rest[..., k] / scales).round().clamp(-LARGEST, LARGEST)
            error = (rest[..., k] - stored[..., k] * scales) / feedback[:, k, k, None]
            rest[..., k:end] -= error[..., None] * feedback[:, None, k, k:end]
            errors[..., k - begin] = error
        rest[..., end:] -= errors @ feedback[:, begin:end, end:]
    back = torch.empty_like(stored).scatter_(2, columns, stored)
    return back.to(torch.int8), scales.float()


def round_bias(weight: Tensor, scales: Tensor, bias: Tensor, input_scale: float) -> tuple[Tensor, Tensor]:
    """Round a bias to a multiple of its sums' step, input scale times weight scale, so that int32 can hold it.

    QDQ files store biases in this way, and other runtimes add them to the integer sums. A bias that could make such a
    sum overflow stays as it is.

    Args:
        weight: int8 (M, ...).
        scales: of the weights (M,).
        bias: (M,).
        input_scale: of the layer's input.

    Returns:
        The scales, of which those of rows of zeros are chosen to suit the bias, and the bias, both float32.

    Example:
        >>> round_bias(torch.ones(2, 1, dtype=torch.int8), torch.tensor([0.5, 0.25]), torch.tensor([1.2, 1.2]), 1.0)
        (tensor([0.5000, 0.2500]), tensor([1.0000, 1.2500]))
    """
    exact = bias.double()
    dead = ~weight.flatten(1).any(1)
    suited = (exact.abs() / (input_scale * 2**20)).clamp_min(1e-30)
    scales = torch.where(dead & (exact != 0), suited, scales.double()).float()
    steps = input_scale * scales.double()
    multiples = (exact / steps).round()
    largest = multiples.abs() + 255 * weight.flatten(1).double().abs().sum(1)
    return scales, torch.where(largest < 2**31, multiples * steps, exact).float()


def _scales(weight: Tensor, importance: Tensor) -> Tensor:
    """Scales of least squared error, weighted by the inputs' squares; float32 values. Of rows of zeros: 1."""
    largest = weight.abs().amax(2)
    full = torch.where(largest > 0, largest / LARGEST, 1.0)
    best, least = full, torch.full_like(full, torch.inf)
    for factor in _SHRINKING:
        scales = (full * factor).float().double().clamp_min(1e-30)[..., None]
        rounded = (weight / scales).round().clamp(-LARGEST, LARGEST) * scales
        error = ((weight - rounded) ** 2 * importance[:, None]).sum(2)
        best = torch.where(error < least, scales[..., 0], best)
        least = torch.minimum(error, least)
    return best


def input_moments(batches: Sequence[Tensor], kernel: Pair, settings: Settings, groups: int) -> Tensor:
    """Second moments of a layer's input patches, (groups, K, K), from as many pixels as they need.

    Args:
        batches: inputs (N, C, H, W) or (N, C).
        kernel: height and width.
        settings: stride, padding and dilation, as ``F.unfold`` takes them by name.
        groups: of channels.
    """
    channels = batches[0].shape[1]
    entries = channels // groups * kernel[0] * kernel[1]
    wanted = max(_FEWEST_SAMPLES, 3 * entries)
    images = sum(len(batch) for batch in batches)
    total = torch.zeros(groups, entries, entries, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for batch in batches:
        x = batch if batch.dim() == 4 else batch[:, :, None, None]
        stride, padding, dilation = settings
        pixels = 1
        for size, k, s, p, d in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True):
            pixels *= (size + 2 * p - d * (k - 1) - 1) // s + 1
        share = min(pixels * len(x), max(1, wanted * len(x) // images))
        per_image = max(1, min(pixels, -(-share // len(x))))
        patches = F.unfold(x, kernel, dilation=dilation, padding=padding, stride=stride)  # (N, C·kh·kw, L)
        chosen = torch.randint(0, patches.shape[2], (per_image,), generator=generator)
        picked = patches[:, :, chosen].unflatten(1, (groups, entries)).permute(1, 0, 3, 2).flatten(1, 2)
        total += (picked.transpose(1, 2) @ picked).double()
    return total / images
