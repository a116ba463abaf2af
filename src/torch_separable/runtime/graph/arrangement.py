"""Where the elements of a tensor lie in an NHWC value: views and permutations without moving anything.

A value is stored pixel by pixel, (N, H, W, C). The network sees it in another order and shape: (N, C, H, W) images,
(N, L, C) tokens, (N, C, L) sequences, or whatever ``view`` and ``permute`` make of them. An `Arrangement` describes
both sides as sequences of axes, so that a chain of views either renames what is there, which costs nothing, or ends in
one copy (`torch_separable.runtime.graph.ir.Rearrange`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Axes = tuple[int, ...]

# The logical dimensions that hold images, pixels (two of them or one) and channels.
LAYOUTS: dict[str, tuple[int | None, tuple[int, ...], int]] = {
    "NCHW": (0, (2, 3), 1),
    "NHWC": (0, (1, 2), 3),
    "NLC": (0, (1,), 2),
    "NCL": (0, (2,), 1),
    "NC": (0, (), 1),
}
_OF_DIMENSIONS = {4: ("NCHW", "NHWC"), 3: ("NLC", "NCL"), 2: ("NC",)}


@dataclass(frozen=True)
class Arrangement:
    """A tensor as the network sees it, and how its elements lie in a stored value.

    Attributes:
        source: name of the stored value.
        sizes: of each axis. Axes of size 1 are left out.
        logical: the axes of each dimension that the network sees, the outermost first.
        storage: the axes of the stored N, C, H and W.
    """

    source: str
    sizes: tuple[int, ...]
    logical: tuple[Axes, ...]
    storage: tuple[Axes, Axes, Axes, Axes]

    @classmethod
    def stored(cls, source: str, shape: Sequence[int], layout: str) -> Arrangement:
        """Describe a value of shape (N, C, H, W) that the network sees in one of `LAYOUTS`.

        Example:
            >>> Arrangement.stored("x", (2, 3, 4, 5), "NLC").shape
            (2, 20, 3)
        """
        axes: list[Axes] = []
        sizes: list[int] = []
        for size in shape:
            axes.append((len(sizes),) if size != 1 else ())
            sizes += [size] if size != 1 else []
        n, c, h, w = axes
        batch, pixels, channels = LAYOUTS[layout]
        logical: list[Axes] = [()] * (2 + len(pixels))
        if batch is not None:
            logical[batch] = n
        logical[channels] = c
        if len(pixels) == 1:
            logical[pixels[0]] = h + w
        elif pixels:
            logical[pixels[0]], logical[pixels[1]] = h, w
        return cls(source, tuple(sizes), tuple(logical), (n, c, h, w))

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions that the network sees."""
        return tuple(self.size(axes) for axes in self.logical)

    def size(self, axes: Axes) -> int:
        """The number of elements along some axes."""
        return math.prod(self.sizes[axis] for axis in axes)

    def permuted(self, order: Sequence[int]) -> Arrangement:
        """Order the dimensions anew, as ``torch.permute``.

        Example:
            >>> Arrangement.stored("x", (2, 3, 4, 5), "NCHW").permuted((0, 2, 3, 1)).shape
            (2, 4, 5, 3)
        """
        return Arrangement(self.source, self.sizes, tuple(self.logical[i] for i in order), self.storage)

    def viewed(self, shape: Sequence[int]) -> Arrangement | None:
        """See the same elements, in the same order, in another shape; ``None`` where an axis would be cut unevenly.

        Example:
            >>> image = Arrangement.stored("x", (2, 6, 4, 5), "NCHW")
            >>> image.viewed((2, 2, 3, 20)).shape
            (2, 2, 3, 20)
            >>> image.viewed((2, 4, 30)) is None
            True
        """
        if math.prod(shape) != math.prod(self.shape):
            raise ValueError(f"{tuple(shape)} has another number of elements than {self.shape}")
        if 0 in self.shape:
            return None
        current, left = self, [axis for axes in self.logical for axis in axes]
        logical: list[Axes] = []
        for size in shape:
            taken: list[int] = []
            wanted = size
            while wanted > 1:
                axis = left.pop(0)
                have = current.sizes[axis]
                if wanted % have == 0:
                    taken.append(axis)
                    wanted //= have
                elif have % wanted == 0:
                    current, (outer, inner) = current._split(axis, wanted)
                    left.insert(0, inner)
                    taken.append(outer)
                    wanted = 1
                else:
                    return None
            logical.append(tuple(taken))
        # Axes that were split stand in earlier dimensions only as their outer part, which kept its number.
        return Arrangement(current.source, current.sizes, tuple(logical), current.storage)

    def _split(self, axis: int, outer: int) -> tuple[Arrangement, tuple[int, int]]:
        """Cut an axis into one of size ``outer`` and a new one behind it."""
        inner = len(self.sizes)
        sizes = [*self.sizes, self.sizes[axis] // outer]
        sizes[axis] = outer

        def within(axes: Axes) -> Axes:
            return tuple(part for one in axes for part in ((axis, inner) if one == axis else (one,)))

        n, c, h, w = (within(axes) for axes in self.storage)
        return Arrangement(self.source, tuple(sizes), tuple(map(within, self.logical)), (n, c, h, w)), (axis, inner)

    def target(self, layout: str) -> tuple[Axes, Axes, Axes, Axes]:
        """The axes of N, C, H and W of a value that holds this tensor in a layout."""
        batch, pixels, channels = LAYOUTS[layout]
        rows = self.logical[pixels[0]] if len(pixels) == 2 else ()
        columns = self.logical[pixels[-1]] if pixels else ()
        return self.logical[batch] if batch is not None else (), self.logical[channels], rows, columns

    def is_renamed(self, layout: str) -> bool:
        """Whether the stored value, read as it lies, holds this tensor in a layout."""
        n, c, h, w = self.storage
        to_n, to_c, to_h, to_w = self.target(layout)
        return c == to_c and n + h + w == to_n + to_h + to_w

    def layouts(self) -> tuple[str, ...]:
        """The layouts that a value of so many dimensions can have, those that need no copy first."""
        possible = _OF_DIMENSIONS.get(len(self.logical), ())
        return tuple(sorted(possible, key=lambda layout: not self.is_renamed(layout)))


def stored_shape(sizes: Sequence[int], target: Sequence[Axes]) -> tuple[int, int, int, int]:
    """(N, C, H, W) of a value whose dimensions consist of some axes."""
    n, c, h, w = (math.prod(sizes[axis] for axis in axes) for axes in target)
    return n, c, h, w


def axis_strides(sizes: Sequence[int], storage: Sequence[Axes], pixel_stride: int) -> dict[int, int]:
    """Values from one element of an axis to the next, in a value whose pixels are ``pixel_stride`` values apart.

    Example:
        >>> axis_strides((2, 6, 4, 5), ((0,), (1,), (2,), (3,)), 8)
        {1: 1, 3: 8, 2: 40, 0: 160}
    """
    n, c, h, w = storage
    strides: dict[int, int] = {}
    step = 1
    for axis in reversed(c):
        strides[axis] = step
        step *= sizes[axis]
    step = pixel_stride
    for axis in reversed(n + h + w):
        strides[axis] = step
        step *= sizes[axis]
    return strides
