"""Layout of the figure: which channels and filters are shown, at which height and in which group's colour.

The columns follow the data from left to right: channels, filters, channels, and for a separable layer filters and
channels again. Heights ``y`` are positive upwards, and the middle of the figure is 0. A filter has the height of its
output channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch_separable.explanation.stages import Stage
from torch_separable.explanation.text import elide

ELLIPSIS_PITCH = 0.5
_BAND_GAP = 0.3
_MOST_GROUPS = 4
_MOST_SLABS = 4

# By the number of groups shown: the most channels to show of a group, and how many of them precede the ellipsis.
_MOST_INPUTS = {1: (6, 3), 2: (4, 2)}
_MOST_FILTERS = {1: (8, 3), 2: (4, 2)}
_MOST_CROWDED = (2, 1)


@dataclass(frozen=True)
class Item:
    """A channel or a filter in its column.

    Attributes:
        index: its number; ``None`` for an ellipsis in place of those not shown.
        y: its height.
        colour: index of its colour; ``None`` if it belongs to no single group.
    """

    index: int | None
    y: float
    colour: int | None


@dataclass(frozen=True)
class Fan:
    """The arrows of one group, from the channels at heights ``inputs`` to the filters at heights ``filters``.

    Attributes:
        group: number of the group.
        inputs: heights of its first and last input channel.
        filters: heights of its shown filters.
        colour: index of its colour; ``None`` if it belongs to no single group.
    """

    group: int
    inputs: tuple[float, float]
    filters: tuple[float, ...]
    colour: int | None


@dataclass(frozen=True)
class Layout:
    """Columns of channels (one more than stages), and columns of filters with their fans (one per stage)."""

    channels: tuple[tuple[Item, ...], ...]
    filters: tuple[tuple[Item, ...], ...]
    fans: tuple[tuple[Fan, ...], ...]

    @property
    def top(self) -> float:
        """The highest item's height."""
        return max(item.y for column in self.channels for item in column)

    @property
    def bottom(self) -> float:
        """The lowest item's height."""
        return min(item.y for column in self.channels for item in column)


def slabs(depth: int) -> list[int | None]:
    """Return the channels of a filter that are drawn as slabs, from the top; ``None`` stands for those left out."""
    return elide(depth, _MOST_SLABS)


def arrange(stages: Sequence[Stage], sheet_pitch: float, filter_pitches: Sequence[float]) -> Layout:
    """Compute the layout.

    Args:
        stages: one convolution, or the two of a separable layer.
        sheet_pitch: height of a channel.
        filter_pitches: height of a filter of each stage.
    """
    rows = [max(sheet_pitch, pitch) for pitch in filter_pitches]
    if len(stages) == 1:
        inputs, filters, fans = _bands(stages[0], sheet_pitch, rows[0])
        return Layout((inputs, filters), (filters,), (fans,))
    grouped = 0 if stages[0].name == "depthwise" else 1
    if grouped == 0:
        inputs, middle, fans = _bands(stages[0], sheet_pitch, rows[0])
        outputs = _spread(elide(stages[1].spec.out_channels, *_MOST_FILTERS[1]), rows[1], 0.0, None)
        return Layout((inputs, middle, outputs), (middle, outputs), (fans, (_mixing(middle, outputs),)))
    middle, outputs, fans = _bands(stages[1], rows[0], rows[1])
    inputs = _spread(elide(stages[0].spec.in_channels, *_MOST_INPUTS[1]), sheet_pitch, 0.0, None)
    return Layout((inputs, middle, outputs), (middle, outputs), ((_mixing(inputs, middle),), fans))


def _mixing(inputs: Sequence[Item], filters: Sequence[Item]) -> Fan:
    """Return the fan of a pointwise stage, in which every filter reads every channel."""
    return Fan(0, (inputs[0].y, inputs[-1].y), tuple(item.y for item in filters if item.index is not None), None)


def _bands(
    stage: Stage, input_pitch: float, filter_pitch: float
) -> tuple[tuple[Item, ...], tuple[Item, ...], tuple[Fan, ...]]:
    """Stack the groups of a stage from top to bottom, each with its input channels beside its filters."""
    shown = elide(stage.spec.groups, _MOST_GROUPS)
    groups = [group for group in shown if group is not None]
    bands: list[tuple[float, int | None, list[int | None], list[int | None]]] = []
    for group in shown:
        if group is None:
            bands.append((ELLIPSIS_PITCH, None, [None], [None]))
            continue
        link = stage.links[group]
        inputs = _of(link.inputs, *_MOST_INPUTS.get(len(groups), _MOST_CROWDED))
        filters = _of(link.filters, *_MOST_FILTERS.get(len(groups), _MOST_CROWDED))
        height = max(_height(inputs, input_pitch), _height(filters, filter_pitch))
        bands.append((height, group, inputs, filters))
    y = (sum(height for height, *_ in bands) + _BAND_GAP * (len(bands) - 1)) / 2
    all_inputs: list[Item] = []
    all_filters: list[Item] = []
    fans = []
    for height, group, inputs, filters in bands:
        colour = None if group is None else groups.index(group)
        one = _spread(inputs, input_pitch, y - height / 2, colour)
        other = _spread(filters, filter_pitch, y - height / 2, colour)
        if group is not None:
            heights = tuple(item.y for item in other if item.index is not None)
            fans.append(Fan(group, (one[0].y, one[-1].y), heights, colour))
        all_inputs += one
        all_filters += other
        y -= height + _BAND_GAP
    return tuple(all_inputs), tuple(all_filters), tuple(fans)


def _of(channels: range, most: int, head: int) -> list[int | None]:
    return [None if i is None else channels[i] for i in elide(len(channels), most, head)]


def _height(indices: Sequence[int | None], pitch: float) -> float:
    return sum(ELLIPSIS_PITCH if index is None else pitch for index in indices)


def _spread(indices: Sequence[int | None], pitch: float, centre: float, colour: int | None) -> tuple[Item, ...]:
    y = centre + _height(indices, pitch) / 2
    items = []
    for index in indices:
        height = ELLIPSIS_PITCH if index is None else pitch
        items.append(Item(index, y - height / 2, None if index is None else colour))
        y -= height
    return tuple(items)
