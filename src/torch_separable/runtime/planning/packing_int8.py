"""int8 weights in the order in which kernels read them, and what turns their sums into results.

A word is four bytes: the operands of neighbouring rows of a matrix for one output channel, four of int8, or two of
int16 where the processor multiplies pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_separable.errors import SeparableError
from torch_separable.runtime.native.instruction_sets import InstructionSet
from torch_separable.runtime.planning.packing import pad_blocks, padded

# Channels of every uint8 value are padded to a multiple of it: kByteChannels of native/kernels/int8_vector.h.
BYTE_LANES = 16

# A multiplier or an offset beyond it could make a result infinite, and a difference of infinities NaN.
_LARGEST = 1e28


def pack_matrix_int8(weight: Tensor, kernels: InstructionSet) -> Tensor:
    """Pack a matrix (M, K) of int8 as [panel][word of K][panel's channels][operands of the word], padded with zeros."""
    in_word = 4 // kernels.operand_bytes
    m, k = weight.shape
    full = F.pad(weight, (0, padded(k, kernels.depth) - k, 0, padded(m, whole_panels(kernels)) - m))
    panels = full.view(-1, kernels.panel, full.shape[1] // in_word, in_word).transpose(1, 2)
    return panels.to(_operand_type(kernels)).contiguous()


def pack_filters_int8(weight: Tensor, kernels: InstructionSet) -> Tensor:
    """Pack depthwise kernels as [block of 16 channels][group][kernel column][word of a column][channel][operand].

    Args:
        weight: int8 (groups that are summed, kernel height, kernel width, C).
        kernels: of uint8.
    """
    in_word = 4 // kernels.operand_bytes
    groups, height, width, channels = weight.shape
    more = padded(channels, BYTE_LANES) - channels, padded(height, in_word) - height
    full = F.pad(weight, (0, more[0], 0, 0, 0, more[1]))
    blocks = full.view(groups, -1, in_word, width, full.shape[3] // BYTE_LANES, BYTE_LANES)
    return blocks.permute(4, 0, 3, 1, 5, 2).to(_operand_type(kernels)).contiguous()


def whole_panels(kernels: InstructionSet) -> int:
    """What output channels are padded to: all channels of a uint8 tensor are written, also where panels are smaller."""
    return max(kernels.panel, BYTE_LANES)


def _operand_type(kernels: InstructionSet) -> torch.dtype:
    return torch.int8 if kernels.operand_bytes == 1 else torch.int16


@dataclass(frozen=True)
class Constants:
    """Of each output channel: what its sum begins with, and what the sum is multiplied with and added to.

    Attributes:
        initial: int32 (M,).
        multiplier: float32 (M,).
        offset: float32 (M,).
    """

    initial: Tensor
    multiplier: Tensor
    offset: Tensor

    @staticmethod
    def of(
        name: str, weight: Tensor, multiplier: Tensor, offset: Tensor, zero_point: int, kernels: InstructionSet
    ) -> Constants:
        """Take the input's zero point out of the sums, whose padding holds it.

        Args:
            name: of the layer, for messages.
            weight: int8 (M, ...).
            multiplier: float32 (M,).
            offset: float32 (M,).
            zero_point: of the input.
            kernels: of uint8; their operands may be shifted.

        Raises:
            SeparableError: a sum might not fit 32 bits, or a result might not be finite.
        """
        factors = weight.flatten(1).long()
        initial = (kernels.shift - zero_point) * factors.sum(1)
        largest = int((255 * factors.abs().sum(1) + initial.abs()).max()) if len(factors) else 0
        if largest >= 2**31:
            raise SeparableError(
                f"{name}: sums of {factors.shape[1]} products of uint8 and int8 can reach {largest}, beyond 32 bits. "
                "Exclude the layer from quantization"
            )
        for what, values in (("multiplier", multiplier), ("offset", offset)):
            if not bool((values.abs() <= _LARGEST).all()):
                raise SeparableError(
                    f"{name}: the {what} of its requantization is {float(values.abs().max())}, not a number up to "
                    f"{_LARGEST}: check the scales. Exclude the layer from quantization"
                )
        return Constants(initial.int(), multiplier.float(), offset.float())

    def reordered(self, order: Tensor) -> Constants:
        """Take channels in another order, or some of them."""
        return Constants(self.initial[order], self.multiplier[order], self.offset[order])

    def in_blocks(self, blocks: int) -> Constants:
        """Pad each of ``blocks`` equal parts to whole blocks of channels, as the value's own channels are padded."""
        parts = (pad_blocks(x, blocks, BYTE_LANES, 0) for x in (self.initial, self.multiplier, self.offset))
        return Constants(*parts)

    def padded(self, multiple: int) -> Constants:
        """Pad with zeros to whole panels: what lies beyond the channels stays finite."""
        more = padded(len(self.initial), multiple) - len(self.initial)
        return Constants(*(F.pad(x, (0, more)).contiguous() for x in (self.initial, self.multiplier, self.offset)))
