"""Tile sizes: by rule from a convolution's shape and the cache sizes, or as measured."""

from __future__ import annotations

from collections.abc import Mapping

from torch_separable._system.hardware import cache_bytes
from torch_separable.runtime.native.instruction_sets import InstructionSet
from torch_separable.runtime.native.operations import Kind, MatrixSource, Operation

# Rows of a tile (pixels of a pointwise convolution), and parts that its output channels are divided in.
Tile = tuple[int, int]

# Pixels a thread below which threads divide large weights by output channels, instead of dividing the pixels. A thread
# that takes pixels streams all weights, for fewer than five blocks of 14 pixels here. Measure: benchmarks/tiles.py.
FEW_PIXELS = 64

# Bytes of a tile's matrix in depth-first order. About one L1 data cache (32 to 64 KB), so that few rows wait in L2
# for the next layer. Measure: benchmarks/tiles.py.
_DEPTH_FIRST_BYTES = 48 * 1024


def tile_of(
    operation: Operation, kernels: InstructionSet, threads: int, known: Mapping[str, Tile], depth_first: bool = False
) -> Tile:
    """Return the tile of a convolution: the measured one of its `shape_key`, or one by rule."""
    shape = shape_key(operation)
    measured = known.get(shape) if shape is not None else None
    rows, parts = _by_rule(operation, kernels, threads, depth_first) if measured is None else measured
    # An empty batch has no rows, but a tile has at least one.
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
    size = small if weights <= cache_bytes(2) // 2 else cache_bytes(2) // 2
    pointwise = operation.product.source == MatrixSource.POINTWISE
    rows = rows_of(operation)
    images = 1 if pointwise else operation.batch
    tile = _rows_within(operation, kernels, size)
    if threads > 1 and images * rows >= threads:
        few = rows < threads * FEW_PIXELS
        splits_pay = pointwise and few and weights > cache_bytes(2) // 2 and panels >= threads
        if splits_pay:
            return min(tile, rows), threads
        tile = _balanced(tile, rows, images, threads)
    elif threads > 1 and panels >= threads:
        return min(tile, rows), threads
    return min(tile, rows), 1


def _balanced(tile: int, rows: int, images: int, threads: int) -> int:
    """Return a tile height near ``tile`` that balances the rows among the threads."""

    def busiest(height: int) -> int:
        """Rows of the busiest thread; threads take whole tiles."""
        return -(-images * -(-rows // height) // threads) * height

    heights = {-(-rows // tiles) for tiles in range(-(-rows // (2 * tile)), -(-2 * rows // tile) + 1)}
    heights.add(min(tile, rows, -(-images * rows // threads)))
    return min(heights, key=lambda height: (busiest(height), height > tile, abs(height - tile)))


def _rows_within(operation: Operation, kernels: InstructionSet, size: int) -> int:
    """Rows of a tile whose matrix takes ``size`` bytes, but at least enough to fill a micro-kernel."""
    o, value, convolution = operation, kernels.operand_bytes, operation.product
    if convolution.source == MatrixSource.ROW_VIEW:
        window = convolution.window
        line = value * o.in_channels * ((o.out_width - 1) * window.stride_width + window.kernel_width)
        # Input rows of the last output row's window beyond its stride.
        beyond = (window.kernel_height - 1) * window.dilation_height + 1 - window.stride_height
        return int(max(1, (size // line - beyond) // window.stride_height))
    width = 1 if convolution.source == MatrixSource.POINTWISE else o.out_width
    return int(max(1, size // (value * convolution.depth * width), -(-kernels.rows // width)))


def panels_of(operation: Operation, kernels: InstructionSet) -> int:
    """Number of panels of output channels, the last of which may be padded."""
    return int(-(-operation.product.out_vectors * kernels.vector // kernels.panel))


def rows_of(operation: Operation) -> int:
    """Rows that the tiles divide: output rows of an image, or all pixels of a pointwise convolution."""
    pointwise = operation.product.source == MatrixSource.POINTWISE
    return int(operation.out_height * (operation.batch * operation.out_width if pointwise else 1))


def shape_key(operation: Operation) -> str | None:
    """Describe everything that a convolution's time depends on; ``None`` for int8 and other operations."""
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
