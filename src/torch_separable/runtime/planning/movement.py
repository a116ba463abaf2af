"""Strided copies: what a rearrangement, a part or a concatenation has to move, as the kernel library takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch_separable.runtime.graph.arrangement import Axes, axis_strides
from torch_separable.runtime.native.operations import COPY_DIMENSIONS, StridedCopyParams


@dataclass(frozen=True)
class Dimension:
    """A loop of a copy: its trip count, and its strides in elements."""

    size: int
    source: int
    target: int


def rearranging(
    sizes: Sequence[int], before: Sequence[Axes], after: Sequence[Axes], source_stride: int, target_stride: int
) -> list[Dimension]:
    """Return the loops that copy elements from one order of axes to another.

    Args:
        sizes: size of each axis.
        before: axes of the source's stored N, C, H and W; ``after`` those of the target.
        after: see ``before``.
        source_stride: elements from a pixel of the source to the next.
        target_stride: elements from a pixel of the target to the next.
    """
    n, c, h, w = after
    from_strides = axis_strides(sizes, before, source_stride)
    to_strides = axis_strides(sizes, after, target_stride)
    order = [*n, *h, *w, *c]
    return [Dimension(sizes[axis], from_strides[axis], to_strides[axis]) for axis in order]


def copying(shape: Sequence[int], source: Sequence[int], target: Sequence[int]) -> list[Dimension]:
    """Return the loops of a copy of (N, C, H, W), from the strides of source and target."""
    return [Dimension(shape[i], source[i], target[i]) for i in (0, 2, 3, 1)]


def value_strides(shape: Sequence[int], pixel_stride: int) -> tuple[int, int, int, int]:
    """Elements from one image, channel, row and pixel of a stored value to the next."""
    _, _, h, w = shape
    return h * w * pixel_stride, 1, w * pixel_stride, pixel_stride


def strided_copy(dimensions: Sequence[Dimension], *, keeps_padding: bool = False) -> StridedCopyParams:
    """Return the library's form of a copy: adjacent loops merged, contiguous elements innermost, two outer task loops.

    Example:
        >>> pixels = [Dimension(2, 80, 80), Dimension(10, 8, 8), Dimension(8, 1, 1)]
        >>> list(strided_copy(pixels).sizes)
        [1, 1, 1, 1, 1, 1, 1, 160]
    """
    loops = [loop for loop in dimensions if loop.size != 1]
    contiguous = [loop for loop in loops if loop.source == loop.target == 1] or [
        loop for loop in loops if loop.target == 1
    ]
    if contiguous:
        loops = [*(loop for loop in loops if loop is not contiguous[0]), contiguous[0]]
    merged: list[Dimension] = []
    for loop in reversed(loops):
        inner = merged[0] if merged else None
        if inner and loop.source == inner.size * inner.source and loop.target == inner.size * inner.target:
            merged[0] = Dimension(loop.size * inner.size, inner.source, inner.target)
        else:
            merged.insert(0, loop)
    if len(merged) > COPY_DIMENSIONS:
        raise ValueError(f"a copy of {len(merged)} dimensions: the library takes {COPY_DIMENSIONS}")
    one = Dimension(1, 0, 0)
    outer, inner_loops = merged[: min(2, len(merged) - 1)], merged[min(2, max(len(merged) - 1, 0)) :]
    full = [*outer, *[one] * (COPY_DIMENSIONS - len(merged)), *inner_loops]
    params = StridedCopyParams(keeps_padding=keeps_padding)
    params.sizes[:] = [loop.size for loop in full]
    params.in_strides[:] = [loop.source for loop in full]
    params.out_strides[:] = [loop.target for loop in full]
    return params
