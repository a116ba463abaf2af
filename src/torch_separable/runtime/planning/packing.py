"""Weights in the order in which micro-kernels read them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_separable.runtime.native.bindings import InstructionSet


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

    A micro-kernel reads a panel from front to back, four bytes of each channel at a time: of bfloat16, pairs of
    neighbouring rows lie together, [panel][K / 2][panel's channels, two values each]. Channels that would fill half of
    a last vector stand there twice, for two pixels, behind those of a whole one (see `halved`).
    """
    depth = padded(weight.shape[1], kernels.depth)
    full = _in_panels(F.pad(weight, (0, depth - weight.shape[1])), kernels).to(kernels.dtype)
    in_word = 4 // full.element_size()
    return full.view(-1, kernels.panel, depth // in_word, in_word).transpose(1, 2).flatten(2).contiguous()


def pack_bias(bias: Tensor, kernels: InstructionSet) -> Tensor:
    """Pad a bias (M,) to whole panels, as the rows of `pack_matrix`."""
    return _in_panels(bias[:, None], kernels)[:, 0].contiguous()


def halved(channels: int, kernels: InstructionSet) -> bool:
    """Whether the last of so many output channels fill at most half of a vector, which two pixels can share then."""
    return kernels.halves and channels > kernels.vector and 0 < channels % kernels.vector <= kernels.vector // 2


def _in_panels(rows: Tensor, kernels: InstructionSet) -> Tensor:
    if not halved(len(rows), kernels):
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
    """Pad depthwise kernels (multiplier, taps, C) as channels are padded, in the order that `in_turns` gives."""
    full = torch.constant_pad_nd(weight, (0, padded(weight.shape[2], lanes) - weight.shape[2]))
    return in_turns(full, kernels).contiguous()


def in_turns(tensor: Tensor, kernels: InstructionSet) -> Tensor:
    """Order the last dimension's channels as the depthwise stage of the kernels takes them and hands them on.

    Of each two vectors of bfloat16, wide sets take the even channels first, then the odd ones; whatever is not two
    vectors stays as it is.
    """
    both = tensor.shape[-1] // (2 * kernels.vector) * 2 * kernels.vector
    if not kernels.in_turns or not both:
        return tensor
    turns = tensor[..., :both].unflatten(-1, (-1, kernels.vector, 2)).transpose(-1, -2).flatten(-3)
    return torch.cat([turns, tensor[..., both:]], -1)
