"""Values that share the memory of another one: concatenated, cut and renamed tensors, without a copy.

A concatenation along channels is the place that its parts are written to; a part of the channels is read where it lies.
Either needs the part to begin and end with whole vectors, because kernels read and write nothing smaller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch_separable.runtime.graph.ir import Concat, Program, Rename, Slice

_BATCH, _CHANNELS, _ROWS = 0, 1, 2


@dataclass(frozen=True)
class Place:
    """Where a value lies in another one.

    Attributes:
        root: name of the value whose memory it shares; its own where it shares none.
        channel: its first channel there.
        pixel: its first pixel there, counted through all images.
    """

    root: str
    channel: int = 0
    pixel: int = 0


def aliases(program: Program, lanes: int) -> dict[str, Place]:
    """Find the place of every value; ``lanes`` is what channels are padded to.

    Later concatenations come first, so that of a chain in which each holds the one before (as in DenseNet), every value
    lies in the last one.
    """
    found: dict[str, Place] = {}
    for node in reversed(program.nodes):
        if isinstance(node, Concat) and node.axis == _CHANNELS:
            _place_parts(program, node, lanes, found)
    for node in program.nodes:
        if isinstance(node, Rename):
            found[node.output] = _within(found, node.input)
        elif isinstance(node, Slice) and node.output not in found:
            place = _part(program, node, lanes)
            if place is not None:
                outer = _within(found, node.input)
                found[node.output] = Place(outer.root, outer.channel + place.channel, outer.pixel + place.pixel)
    return {name: _within(found, name) for name in program.shapes}


def _within(found: Mapping[str, Place], name: str) -> Place:
    """Follow a value to the root of what it lies in."""
    place = found.get(name)
    if place is None or place.root == name:
        return Place(name)
    outer = _within(found, place.root)
    return Place(outer.root, outer.channel + place.channel, outer.pixel + place.pixel)


def _place_parts(program: Program, node: Concat, lanes: int, found: dict[str, Place]) -> None:
    together = [found.get(name) for name in node.inputs]
    if _side_by_side(program, node, together):
        assert together[0] is not None
        found[node.output] = together[0]
        return
    made_by = {other.output: other for other in program.nodes}
    start = 0
    for i, name in enumerate(node.inputs):
        channels = program.shapes[name][_CHANNELS]
        whole = start % lanes == 0 and (channels % lanes == 0 or i == len(node.inputs) - 1)
        maker = made_by.get(name)
        # A value that is itself only renamed, or cut from another, lies elsewhere already.
        free = name not in found and maker is not None and not isinstance(maker, Rename | Slice)
        if whole and free and node.inputs.count(name) == 1 and program.blocks.get(name, 1) == 1:
            found[name] = Place(node.output, start)
        start += channels


def _side_by_side(program: Program, node: Concat, places: Sequence[Place | None]) -> bool:
    """Whether all parts lie one after the other in one later concatenation already."""
    first = places[0]
    if first is None:
        return False
    channel = first.channel
    for name, place in zip(node.inputs, places, strict=True):
        if place != Place(first.root, channel, first.pixel):
            return False
        channel += program.shapes[name][_CHANNELS]
    return True


def _part(program: Program, node: Slice, lanes: int) -> Place | None:
    """Where a part of a value lies in it; ``None`` where it has to be copied."""
    n, c, h, w = program.shapes[node.input]
    size = program.shapes[node.output][node.axis]
    if node.step != 1:
        return None
    if node.axis == _CHANNELS:
        whole = node.start % lanes == 0 and (size % lanes == 0 or node.start + size == c)
        return Place(node.input, node.start) if whole and program.blocks.get(node.input, 1) == 1 else None
    if node.axis == _BATCH:
        return Place(node.input, 0, node.start * h * w)
    if node.axis == _ROWS and n == 1:
        return Place(node.input, 0, node.start * w)
    return None
