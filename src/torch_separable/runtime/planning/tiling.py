"""Sizes of tiles: by rule from a convolution's shape and the sizes of caches, or as they were measured."""

from __future__ import annotations

from collections.abc import Mapping

from torch_separable._system.hardware import cache_bytes
from torch_separable.runtime.native.instruction_sets import InstructionSet
from torch_separable.runtime.native.operations import Kind, MatrixSource, Operation

# Rows of a tile (pixels, where the input is the matrix), and parts that its channels are shared out in.
Tile = tuple[int, int]

# Pixels a thread below which large weights are divided among threads by output channels, instead of the pixels: each
# thread would stream all weights for fewer than five blocks of 14 pixels.
FEW_PIXELS = 64

# Bytes of a tile's matrix in depth-first order. It is small, so that few rows wait for the next layer.
_DEPTH_FIRST_BYTES = 48 * 1024


def tile_of(
    operation: Operation, kernels: InstructionSet, threads: int, known: Mapping[str, Tile], depth_first: bool = False
) -> Tile:
    """The tile of a convolution: the one that is known for its shape, by `shape_key`, or by rule."""
    shape = shape_key(operation)
    measured = known.get(shape) if shape is not None else None
    rows, parts = _by_rule(operation, kernels, threads, depth_first) if measured is None else measured
    # Of no images there are no rows; a tile has one at the least.
    return max(1, min(rows, rows_of(operation))), min(parts, panels_of(operation, kernels))


def _by_rule(operation: Operation, kernels: InstructionSet, threads: int, depth_first: bool) -> Tile:
    """Choose the rows of a tile (pixels for a pointwise convolution) and the parts of its output channels.

    Weights that fit in half of L2 stay there while tiles of an eighth of L2 pass by, and a panel of weights stays in L1
    while several blocks of pixels are multiplied with it. Larger weights are streamed from L3 once for each tile, so
    tiles are as large as L2 allows. With several threads there is at least one tile for each, or the output channels
    of a tile are divided.
    """
    panels = panels_of(operation, kernels)
    each = kernels.operand_bytes if operation.is_int8 else kernels.dtype.itemsize
    weights = each * operation.product.depth * panels * kernels.panel
    small = _DEPTH_FIRST_BYTES if depth_first else cache_bytes(2) // 8
    room = small if weights <= cache_bytes(2) // 2 else cache_bytes(2) // 2
    direct = operation.product.source == MatrixSource.POINTWISE
    rows = rows_of(operation)
    images = 1 if direct else operation.batch
    tile = _rows_within(operation, kernels, room)
    if threads > 1 and images * rows >= threads:
        few = rows < threads * FEW_PIXELS
        splits_pay = direct and few and weights > cache_bytes(2) // 2 and panels >= threads
        if splits_pay:
            return min(tile, rows), threads
        tile = _shared_out(tile, rows, images, threads)
    elif threads > 1 and panels >= threads:
        return min(tile, rows), threads
    return min(tile, rows), 1


def _shared_out(tile: int, rows: int, images: int, threads: int) -> int:
    """Rows of a tile, about ``tile``, of which each thread gets as nearly the same number as can be."""

    def most(height: int) -> int:
        """Rows that the thread with the most of them gets: tiles are shared out whole."""
        return -(-images * -(-rows // height) // threads) * height

    heights = {-(-rows // tiles) for tiles in range(-(-rows // (2 * tile)), -(-2 * rows // tile) + 1)}
    heights.add(min(tile, rows, -(-images * rows // threads)))
    return min(heights, key=lambda height: (most(height), height > tile, abs(height - tile)))


def _rows_within(operation: Operation, kernels: InstructionSet, room: int) -> int:
    """Rows of a tile whose matrix takes ``room`` bytes; more where they would not fill a micro-kernel."""
    o, value, convolution = operation, kernels.operand_bytes, operation.product
    if convolution.source == MatrixSource.ROW_VIEW:
        window = convolution.window
        line = value * o.in_channels * ((o.out_width - 1) * window.stride_width + window.kernel_width)
        beyond = (
            (window.kernel_height - 1) * window.dilation_height + 1 - window.stride_height
        )  # of the last row's lines
        return int(max(1, (room // line - beyond) // window.stride_height))
    width = 1 if convolution.source == MatrixSource.POINTWISE else o.out_width
    return int(max(1, room // (value * convolution.depth * width), -(-kernels.rows // width)))


def panels_of(operation: Operation, kernels: InstructionSet) -> int:
    """Panels of output channels, the last of which may be filled up."""
    return int(-(-operation.product.out_vectors * kernels.vector // kernels.panel))


def rows_of(operation: Operation) -> int:
    """Rows that a convolution's tiles divide: of each image's output, or all pixels where the input is the matrix."""
    direct = operation.product.source == MatrixSource.POINTWISE
    return int(operation.out_height * (operation.batch * operation.out_width if direct else 1))


def shape_key(operation: Operation) -> str | None:
    """Say in words all that the time of a convolution depends on; ``None`` for int8 and for other operations."""
    if operation.kind != Kind.CONVOLUTION or operation.is_int8:
        return None
    o, convolution, w = operation, operation.convolution, operation.convolution.window
    kernel = f"{w.kernel_height}x{w.kernel_width}/{w.stride_height}x{w.stride_width}"
    where = f"pad {w.pad_height}x{w.pad_width} dilation {w.dilation_height}x{w.dilation_width}"
    acts = f"{convolution.depthwise_activation.kind},{o.activation.kind}"
    residual = "" if o.second_input < 0 else " + residual"
    return (
        f"{MatrixSource(convolution.source).convolution} {o.batch}x{o.in_height}x{o.in_width}x{o.in_channels} > "
        f"{o.out_height}x{o.out_width}x{o.out_channels} {kernel} {where} "
        f"multiplier {convolution.depth_multiplier} activations {acts}{residual}"
    )
