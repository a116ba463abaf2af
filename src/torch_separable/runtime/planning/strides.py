"""Strides of values in the workspace: how far apart pixels lie, and where a kernel row is one run of memory."""

from __future__ import annotations

from torch_separable.runtime.graph.ir import (
    Convolution,
    Program,
    inputs_of,
)
from torch_separable.runtime.native.instruction_sets import InstructionSet
from torch_separable.runtime.planning.memory_plan import CACHE_LINE
from torch_separable.runtime.planning.movement import value_strides
from torch_separable.runtime.planning.packing import (
    padded,
)


def pixel_stride(channels: int, blocks: int, lanes: int, bytes_each: int) -> int:
    """Elements from a pixel to the next: whole vectors for each block of channels, and perhaps an unused cache line.

    Pixels that are a multiple of 1,024 bytes apart map to 4 of the 64 sets of the L1 cache, so the window of a
    depthwise kernel would evict its own lines. One unused cache line separates such pixels; it costs at most 6 %.
    """
    packed = blocks * padded(channels // blocks, lanes)
    return packed + (CACHE_LINE // bytes_each if blocks == 1 and packed * bytes_each % 1024 == 0 else 0)


def row_view_channels(node: Convolution, out_width: int, kernels: InstructionSet) -> int | None:
    """Channels, with zeros, of a dense convolution that reads its input in place (row view); ``None`` for im2col.

    In a row view each kernel row is one contiguous run of the input. The run must be a multiple of ``kernels.depth``
    and begin at a multiple of four bytes, because bfloat16 values are multiplied in pairs. A few zero channels may make
    it so: a fourth channel for RGB images in bfloat16. im2col is better for a kernel of one pixel, which shares
    nothing between neighbours, and for output rows that fill less than half of a micro-kernel's rows.
    """
    channels, window = node.weight.shape[1], node.window
    fits = (
        window.kernel[1] * channels % kernels.depth == 0
        and window.stride[1] * channels * kernels.operand_bytes % 4 == 0
    )
    whole = channels if fits else padded(channels, kernels.depth)
    few = (whole - channels) * (3 if kernels.operand_bytes == kernels.dtype.itemsize else 16) <= channels
    shares = window.kernel != (1, 1) and window.dilation[1] == 1
    return whole if shares and few and 2 * out_width >= kernels.rows else None


def image_stride(program: Program, kernels: InstructionSet) -> int | None:
    """Pixel stride of the input if it need not be padded to whole vectors; ``None`` if it must be.

    Only dense kernels read single elements, so they alone can read unpadded pixels.
    """
    channels = program.shapes[program.input][1]
    readers = [node for node in program.nodes if program.input in inputs_of(node)]
    dense = [
        node for node in readers
        if isinstance(node, Convolution) and node.depthwise is None and not node.window.is_pointwise
    ]  # fmt: skip
    if not dense or len(dense) < len(readers):
        return None
    row_views = {row_view_channels(node, program.shapes[node.output][3], kernels) for node in dense}
    return max(channels, row_views.pop() or 0) if len(row_views) == 1 else channels


def broadcast_strides(shape: tuple[int, int, int, int], pixel_stride: int) -> tuple[int, int, int, int]:
    """Elements from one image, row, pixel and channel of an operand to the next; 0 for a dimension that broadcasts."""
    n, c, h, w = shape
    image, channel, row, pixel = value_strides(shape, pixel_stride)
    return image if n > 1 else 0, row if h > 1 else 0, pixel if w > 1 else 0, channel if c > 1 else 0
