"""Views, permutations, concatenations and parts of tensors: most of them only rename what is stored.

``view``, ``permute`` and their kin become an `Arrangement` of a stored value, and cost nothing until something needs
the elements in another order than they lie in.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from torch_separable.runtime.graph.arrangement import LAYOUTS, Arrangement
from torch_separable.runtime.graph.ir import Binary, BinaryOperator, Concat, Copy, Slice
from torch_separable.runtime.graph.lower_common import Unsupported, arguments
from torch_separable.runtime.graph.lower_elementwise import stored_constant

if TYPE_CHECKING:
    from torch_separable.runtime.graph.lower import Lowering

aten = torch.ops.aten

# Dimensions of the stored (N, C, H, W).
BATCH, CHANNELS, ROWS, COLUMNS = range(4)


def stored_dimension(layout: str, dimension: int) -> int:
    """Say which stored dimension a logical one of a layout is.

    Example:
        >>> stored_dimension("NHWC", 3), stored_dimension("NLC", 1)
        (1, 3)
    """
    batch, pixels, channels = LAYOUTS[layout]
    if dimension == batch:
        return BATCH
    if dimension == channels:
        return CHANNELS
    return (ROWS, COLUMNS)[pixels.index(dimension) + 2 - len(pixels)]


def view_handler(lowering: Lowering, node: fx.Node) -> None:
    """``view``, ``reshape``, ``flatten``, ``squeeze``, ...: the same elements in the shape of the result."""
    seen = lowering.arrangement(node.args[0]).viewed(tuple(node.meta["val"].shape))
    if seen is None:
        raise Unsupported("a view that cuts a dimension unevenly")
    lowering.add_view(node, seen)


def permute_handler(lowering: Lowering, node: fx.Node) -> None:
    """``permute``: the dimensions in another order."""
    source = lowering.arrangement(node.args[0])
    dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs["dims"]
    lowering.add_view(node, source.permuted([d % len(source.logical) for d in dims]))


def transpose_handler(lowering: Lowering, node: fx.Node) -> None:
    """``transpose``: two dimensions change places."""
    source = lowering.arrangement(node.args[0])
    order = list(range(len(source.logical)))
    given: Any = node.args[1:]
    one, other = (given[0] % len(order), given[1] % len(order)) if given else (0, 1)
    order[one], order[other] = order[other], order[one]
    lowering.add_view(node, source.permuted(order))


def pixel_shuffle_handler(lowering: Lowering, node: fx.Node) -> None:
    """``pixel_shuffle`` (Shi et al., arXiv 1609.05158): (N, C·r², H, W) to (N, C, H·r, W·r)."""
    factor: Any = node.args[1]
    n, c, h, w = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    source = lowering.arrangement(node.args[0]).viewed((n, c // factor**2, factor, factor, h, w))
    seen = None if source is None else source.permuted((0, 1, 4, 2, 5, 3)).viewed(tuple(node.meta["val"].shape))
    if seen is None:
        raise Unsupported("a pixel shuffle of an empty tensor")
    lowering.add_view(node, seen)


def pixel_unshuffle_handler(lowering: Lowering, node: fx.Node) -> None:
    """``pixel_unshuffle``: (N, C, H·r, W·r) to (N, C·r², H, W)."""
    factor: Any = node.args[1]
    n, c, h, w = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    source = lowering.arrangement(node.args[0]).viewed((n, c, h // factor, factor, w // factor, factor))
    seen = None if source is None else source.permuted((0, 1, 3, 5, 2, 4)).viewed(tuple(node.meta["val"].shape))
    if seen is None:
        raise Unsupported("a pixel unshuffle of an empty tensor")
    lowering.add_view(node, seen)


def channel_shuffle_handler(lowering: Lowering, node: fx.Node) -> None:
    """``channel_shuffle`` (Zhang et al., arXiv 1707.01083): (N, g·c, H, W), channels of the groups in turn."""
    groups: Any = node.args[1]
    n, c, h, w = node.meta["val"].shape
    source = lowering.arrangement(node.args[0]).viewed((n, groups, c // groups, h, w))
    seen = None if source is None else source.permuted((0, 2, 1, 3, 4)).viewed((n, c, h, w))
    if seen is None:
        raise Unsupported("a channel shuffle of an empty tensor")
    lowering.add_view(node, seen)


def concat_handler(lowering: Lowering, node: fx.Node) -> None:
    """``cat``: activations and weights in one value, without a copy wherever their producers can write there."""
    given = arguments(node, ("tensors", "dim"), {"dim": 0})
    activation = next(part for part in given["tensors"] if part.name not in lowering.constants)
    layout = lowering.operand(activation)[1]
    names = [
        _constant_part(lowering, node, part, activation, layout)
        if part.name in lowering.constants
        else lowering.in_layout(part, layout)
        for part in given["tensors"]
    ]
    axis = stored_dimension(layout, given["dim"] % node.meta["val"].dim())
    if layout in ("NLC", "NCL") and axis == COLUMNS:
        names = [lowering.as_one_row(name) for name in names]
    shape = list(lowering.shapes[names[0]])
    shape[axis] = sum(lowering.shapes[name][axis] for name in names)
    lowering.record(node.name, shape, layout)
    lowering.nodes.append(Concat(node.name, tuple(names), node.name, axis))


def _constant_part(lowering: Lowering, node: fx.Node, part: fx.Node, activation: fx.Node, layout: str) -> str:
    """Name of a value that holds a weight, as a class token; ``activation`` is any other value of the concatenation."""
    constant = stored_constant(lowering.constant(part), layout)
    value = f"{node.name}.{part.name}"
    if value not in lowering.shapes:
        lowering.record(value, constant.shape, layout)
        source = lowering.in_layout(activation, layout)
        lowering.nodes.append(Binary(value, source, None, value, BinaryOperator.SECOND, constant))
    return value


def _add_slice(lowering: Lowering, name: str, source: Any, dimension: int, start: int, size: int, step: int) -> None:
    value, layout = lowering.operand(source)
    axis = stored_dimension(layout, dimension)
    whole = start == 0 and size == -(-lowering.shapes[value][axis] // step)
    if layout == "NCHW" and axis in (ROWS, COLUMNS) and whole:
        # Every step-th row or column, as a shortcut without weights takes them: merged with its neighbours by fuse.py.
        shape = list(lowering.shapes[value])
        shape[axis] = size
        lowering.record(name, shape, layout)
        lowering.nodes.append(Copy(name, value, name, (step, 1) if axis == ROWS else (1, step)))
        return
    if layout in ("NLC", "NCL") and axis == COLUMNS:
        value = lowering.as_one_row(value)
    shape = list(lowering.shapes[value])
    shape[axis] = size
    lowering.record(name, shape, layout)
    lowering.nodes.append(Slice(name, value, name, axis, start, step))


def slice_handler(lowering: Lowering, node: fx.Node) -> None:
    """``slice`` and ``narrow``: a part of one dimension, every ``step``-th element of it."""
    source: Any
    dimension: Any
    start: Any
    step: Any
    if node.target is aten.narrow.default:
        (source, dimension, start), step = node.args[:3], 1
    else:
        given = arguments(
            node, ("input", "dim", "start", "end", "step"), {"dim": 0, "start": 0, "end": None, "step": 1}
        )
        source, dimension, start, step = given["input"], given["dim"], given["start"] or 0, given["step"]
    before = source.meta["val"]
    at = dimension % before.dim()
    size = before.shape[at]
    first = min(start + size if start < 0 else start, size)
    if tuple(before.shape) == tuple(node.meta["val"].shape) and step == 1:
        lowering.add_view(node, lowering.arrangement(source))
        return
    _add_slice(lowering, node.name, source, at, first, node.meta["val"].shape[at], step)


def select_handler(lowering: Lowering, node: fx.Node) -> None:
    """``select``: one element of a dimension, which goes."""
    source: Any = node.args[0]
    dimension: Any = node.args[1]
    index: Any = node.args[2]
    before = source.meta["val"]
    _add_element(lowering, node, source, dimension % before.dim(), index % before.shape[dimension])


def _add_element(lowering: Lowering, node: fx.Node, source: Any, at: int, index: int) -> None:
    """Let a node be one element of dimension ``at``, without that dimension."""
    part = f"{node.name}.part"
    seen = lowering.arrangement(source)
    if _is_outermost_channel(seen, at):
        n, _, h, w = lowering.shapes[seen.source]
        channels = seen.storage[CHANNELS][1:]
        size = seen.size(channels)
        lowering.record(part, (n, size, h, w), lowering.layouts[seen.source])
        lowering.nodes.append(Slice(part, seen.source, part, CHANNELS, index * size))
        storage = (seen.storage[BATCH], channels, seen.storage[ROWS], seen.storage[COLUMNS])
        lowering.add_view(node, Arrangement(part, seen.sizes, (*seen.logical[:at], *seen.logical[at + 1 :]), storage))
        return
    _add_slice(lowering, part, source, at, index, 1, 1)
    held = Arrangement.stored(part, lowering.shapes[part], lowering.layouts[part])
    remaining = held.viewed(tuple(node.meta["val"].shape))
    if remaining is None:
        raise Unsupported("an element of an empty dimension")
    lowering.add_view(node, remaining)


def _is_outermost_channel(seen: Arrangement, at: int) -> bool:
    """Whether an element of one of five or more dimensions is one run of stored channels, as in attention."""
    return len(seen.logical) > 4 and seen.logical[at] == seen.storage[CHANNELS][:1] != ()


def unbind_handler(lowering: Lowering, node: fx.Node) -> None:
    """``unbind``: every element of a dimension, each a part of the tensor when it is read."""
    source: Any = node.args[0]
    dimension: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    at = dimension % source.meta["val"].dim()
    if 0 in source.meta["val"].shape:
        raise Unsupported("an element of an empty dimension")
    if not _is_outermost_channel(lowering.arrangement(source), at):
        lowering.operand(source)
    lowering.pieces[node.name] = [(source, at, index) for index in range(len(node.meta["val"]))]
    lowering.unbound.add(node.name)


def pieces_handler(lowering: Lowering, node: fx.Node) -> None:
    """``chunk``, ``split`` and ``split_with_sizes``: each piece is a part of the tensor when it is read."""
    dimension: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    source: Any = node.args[0]
    lowering.operand(source)
    at, start = dimension % source.meta["val"].dim(), 0
    places: list[tuple[Any, int, int]] = []
    for piece in node.meta["val"]:
        places.append((source, at, start))
        start += piece.shape[at]
    lowering.pieces[node.name] = places


def getitem_handler(lowering: Lowering, node: fx.Node) -> None:
    """One of the pieces of `pieces_handler`."""
    split = getattr(node.args[0], "name", "")
    places = lowering.pieces.get(split)
    if places is None:
        raise Unsupported("a part of what PyTorch gives")
    index: Any = node.args[1]
    source, at, start = places[index]
    if split in lowering.unbound:
        _add_element(lowering, node, source, at, start)
        return
    _add_slice(lowering, node.name, source, at, start, node.meta["val"].shape[at], 1)


def _all_of(*names: str) -> Sequence[Any]:
    found = []
    for name in names:
        packet, _, overload = name.partition(".")
        if hasattr(aten, packet) and hasattr(getattr(aten, packet), overload or "default"):
            found.append(getattr(getattr(aten, packet), overload or "default"))
    return found


Handler = Callable[["Lowering", fx.Node], None]
HANDLERS: dict[Any, Handler] = {
    **dict.fromkeys(
        _all_of(
            *("view", "_unsafe_view", "reshape", "flatten.using_ints", "unflatten.int", "squeeze", "squeeze.dim"),
            *("squeeze.dims", "unsqueeze", "view_as", "reshape_as", "alias", "contiguous", "clone", "detach"),
        ),
        view_handler,
    ),
    **dict.fromkeys(_all_of("permute"), permute_handler),
    **dict.fromkeys(_all_of("transpose.int", "t"), transpose_handler),
    **dict.fromkeys(_all_of("pixel_shuffle"), pixel_shuffle_handler),
    **dict.fromkeys(_all_of("pixel_unshuffle"), pixel_unshuffle_handler),
    **dict.fromkeys(_all_of("channel_shuffle", "native_channel_shuffle"), channel_shuffle_handler),
    **dict.fromkeys(_all_of("cat"), concat_handler),
    **dict.fromkeys(_all_of("slice.Tensor", "narrow"), slice_handler),
    **dict.fromkeys(_all_of("select.int"), select_handler),
    **dict.fromkeys(_all_of("unbind.int"), unbind_handler),
    **dict.fromkeys(_all_of("chunk", "split.Tensor", "split_with_sizes"), pieces_handler),
    operator.getitem: getitem_handler,
}
