"""Weights in the order in which micro-kernels read them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_separable.runtime.native.instruction_sets import InstructionSet


def padded(channels: int, lanes: int) -> int:
    """Channels rounded up to whole vectors."""
    return -(-channels // lanes) * lanes


def pad_blocks(tensor: Tensor, blocks: int, lanes: int, dimension: int) -> Tensor:
    """Pad each of ``blocks`` equal parts of a dimension with zeros to whole vectors."""
    size = tensor.shape[dimension] // blocks
    more = padded(size, lanes) - size
    if not more:
        return tensor
    parts = tensor.movedim(dimension, -1).unflatten(-1, (blocks, size))
    return F.pad(parts, (0, more)).flatten(-2).movedim(-1, dimension)


def pack_matrix(weight: Tensor, kernels: InstructionSet) -> Tensor:
    """Pack a matrix (M, K) as [panel][K][panel's channels], in the kernels' type, padded with zeros.

    A micro-kernel reads a panel from front to back, in words of four bytes for each channel. For bfloat16 a word holds
    two neighbouring values of K: [panel][K / 2][panel's channels][2]. The channels of a paired tail stand twice, once
    for each of the two pixels that share the vector (see `has_paired_tail`).
    """
    depth = padded(weight.shape[1], kernels.depth)
    full = _in_panels(F.pad(weight, (0, depth - weight.shape[1])), kernels).to(kernels.dtype)
    in_word = 4 // full.element_size()
    return full.view(-1, kernels.panel, depth // in_word, in_word).transpose(1, 2).flatten(2).contiguous()


def pack_bias(bias: Tensor, kernels: InstructionSet) -> Tensor:
    """Pad a bias (M,) to whole panels, in the channel order of `pack_matrix`."""
    return _in_panels(bias[:, None], kernels)[:, 0].contiguous()


def has_paired_tail(channels: int, kernels: InstructionSet) -> bool:
    """Return whether the last output channels fill at most half of a vector, so that two pixels can share it."""
    return kernels.paired_tail and channels > kernels.vector and 0 < channels % kernels.vector <= kernels.vector // 2


def _in_panels(rows: Tensor, kernels: InstructionSet) -> Tensor:
    if not has_paired_tail(len(rows), kernels):
        return _padded_rows(rows, kernels.panel)
    whole = len(rows) // kernels.vector * kernels.vector
    first, beside, half = rows.tensor_split((whole - kernels.vector, whole))
    half = _padded_rows(half, kernels.vector // 2)
    return torch.cat([_padded_rows(first, kernels.panel), beside, half, half])


def _padded_rows(rows: Tensor, multiple: int) -> Tensor:
    return F.pad(rows, (0, 0, 0, padded(len(rows), multiple) - len(rows)))


def pack_dense(weight: Tensor, channels: int) -> Tensor:
    """Turn a dense kernel (M, C, kh, kw) into a matrix whose columns follow patches: (kh, kw, ``channels``)."""
    more = channels - weight.shape[1]
    return F.pad(weight, (0, 0, 0, 0, 0, more)).permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def pack_filters(weight: Tensor, lanes: int, kernels: InstructionSet) -> Tensor:
    """Pad depthwise weights (multiplier, taps, C) to whole vectors of channels, in the order of `even_odd`."""
    full = torch.constant_pad_nd(weight, (0, padded(weight.shape[2], lanes) - weight.shape[2]))
    return even_odd(full, kernels).contiguous()


def even_odd(tensor: Tensor, kernels: InstructionSet) -> Tensor:
    """Reorder the channels of the last dimension as the depthwise stage of the kernels computes them.

    With 16 lanes and bfloat16, each two whole vectors hold their even channels first, then the odd ones (even/odd
    order, see native/README.md). The channels beyond the last two whole vectors keep their order.
    """
    both = tensor.shape[-1] // (2 * kernels.vector) * 2 * kernels.vector
    if not kernels.even_odd or not both:
        return tensor
    turns = tensor[..., :both].unflatten(-1, (-1, kernels.vector, 2)).transpose(-1, -2).flatten(-3)
    return torch.cat([turns, tensor[..., both:]], -1)
