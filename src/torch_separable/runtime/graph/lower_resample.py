"""Interpolation, padding, flipping and transposed convolution.

Interpolation and padding are tables of rows and columns (`Taps`). They are read off what PyTorch itself makes of a
ramp, or of the unit vectors, so that every corner convention and scale factor gives PyTorch's own positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from torch_separable.runtime.graph.ir import Convolution, Rearrange, Resample, Slice, Taps, Window
from torch_separable.runtime.graph.lower_common import Unsupported, arguments, pair

if TYPE_CHECKING:
    from torch_separable.runtime.graph.lower import Lowering

aten = torch.ops.aten
_RAMP = 2**24  # whole numbers below are exact in float32


def nearest_handler(lowering: Lowering, node: fx.Node) -> None:
    """``upsample_nearest2d`` and its exact form."""
    source = lowering.value(node.args[0])
    n, c, h, w = lowering.shapes[source]
    out_h, out_w = node.meta["val"].shape[2:]
    run: Any = node.target
    rest = node.args[1:]
    rows = run(_ramp(h).view(1, 1, h, 1).expand(1, 1, h, w), *rest, **node.kwargs)[0, 0, :, 0]
    columns = run(_ramp(w).view(1, 1, 1, w).expand(1, 1, h, w), *rest, **node.kwargs)[0, 0, 0, :]
    lowering.record(node.name, (n, c, out_h, out_w), "NCHW")
    lowering.nodes.append(Resample(node.name, source, node.name, picked(rows), picked(columns)))


def bilinear_handler(lowering: Lowering, node: fx.Node) -> None:
    """``upsample_bilinear2d`` in both corner conventions."""
    source = lowering.value(node.args[0])
    n, c, h, w = lowering.shapes[source]
    out_h, out_w = node.meta["val"].shape[2:]
    run: Any = node.target
    rest = node.args[1:]
    by_row = run(torch.eye(h).view(1, h, h, 1).expand(1, h, h, w), *rest, **node.kwargs)[0, :, :, 0].T
    by_column = run(torch.eye(w).view(1, w, 1, w).expand(1, w, h, w), *rest, **node.kwargs)[0, :, 0, :].T
    lowering.record(node.name, (n, c, out_h, out_w), "NCHW")
    lowering.nodes.append(Resample(node.name, source, node.name, blended(by_row), blended(by_column), blends=True))


def pad_handler(lowering: Lowering, node: fx.Node) -> None:
    """``pad`` by reflection, replication, wrapping around, or a number."""
    given = arguments(node, ("input", "pad", "mode", "value"), {"mode": "constant", "value": None})
    mode = given["mode"] if node.target is aten.pad.default else "constant"
    if node.target in _MODES:
        mode = _MODES[node.target]
    value = lowering.value(given["input"])
    if value in lowering.vectors:
        raise Unsupported("padding of a vector")
    n, c, h, w = lowering.shapes[value]
    amounts = [*given["pad"], 0, 0, 0, 0][:4]
    if any(given["pad"][4:]) or (mode != "constant" and min(amounts) < 0):
        raise Unsupported("padding of channels or images, or a negative one")
    left, right, top, bottom = amounts
    rows, columns = (_positions(h, top, bottom, mode), _positions(w, left, right, mode))
    lowering.record(node.name, (n, c, len(rows), len(columns)), "NCHW")
    fill = float(given["value"] or 0.0) if mode == "constant" else 0.0
    lowering.nodes.append(Resample(node.name, value, node.name, picked(rows), picked(columns), fill=fill))


def flip_handler(lowering: Lowering, node: fx.Node) -> None:
    """``flip`` of rows or columns."""
    value = lowering.value(node.args[0])
    dims: Any = node.args[1]
    n, c, h, w = lowering.shapes[value]
    flipped = {d % 4 for d in dims}
    if value in lowering.vectors or not flipped <= {2, 3}:
        raise Unsupported("a flip of channels or images")
    rows, columns = _ramp(h), _ramp(w)
    rows, columns = (rows.flip(0) if 2 in flipped else rows), (columns.flip(0) if 3 in flipped else columns)
    lowering.record(node.name, (n, c, h, w), "NCHW")
    lowering.nodes.append(Resample(node.name, value, node.name, picked(rows), picked(columns)))


def _ramp(size: int) -> Tensor:
    if size >= _RAMP:
        raise Unsupported(f"an image of {size} rows or columns")
    return torch.arange(size, dtype=torch.float32)


def _positions(size: int, before: int, after: int, mode: str) -> Tensor:
    ramp = _ramp(size).view(1, 1, 1, size)
    if mode == "constant":
        return torch.nn.functional.pad(ramp, (before, after), value=-1.0).flatten()
    return torch.nn.functional.pad(ramp, (before, after, 0, 0), mode=mode).flatten()


def picked(positions: Tensor) -> Taps:
    """One row for each output row; a negative position lies outside of the image."""
    index = positions.to(torch.int32)
    return Taps(torch.stack([index, index], 1).contiguous(), torch.tensor([[1.0, 0.0]]).repeat(len(index), 1))


def blended(matrix: Tensor) -> Taps:
    """Two neighbouring rows for each output row, from the matrix (out, in) of their weights.

    Example:
        >>> blended(torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.0, 1.0]])).indices.tolist()
        [[0, 1], [2, 2]]
    """
    if bool(((matrix != 0).sum(1) > 2).any()):
        raise Unsupported("interpolation of more than two rows")
    size = matrix.shape[1]
    first = (matrix != 0).float().argmax(1)
    second = (first + 1).clamp(max=size - 1)
    weights = torch.stack([matrix.gather(1, first[:, None])[:, 0], matrix.gather(1, second[:, None])[:, 0]], 1)
    # At the border both taps are the last row; halves of an infinity are infinite, while 0 times it is NaN.
    weights[first == second] = torch.tensor([0.5, 0.5])
    return Taps(torch.stack([first, second], 1).to(torch.int32).contiguous(), weights.contiguous())


def transposed_convolution_handler(lowering: Lowering, node: fx.Node) -> None:
    """``conv_transpose2d``: a convolution to s² as many channels, then a pixel shuffle (Shi et al., arXiv 1609.07009).

    Output row u - p is row u = q·s + r of the uncropped result, which is sum over t of x[q - t] · w[r + s·t]: for each
    of the s phases r a convolution of ceil(k / s) taps.
    """
    names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    given = arguments(
        node, names, {"bias": None, "stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
    )
    source, weight = lowering.value(given["input"]), lowering.constant(given["weight"])
    if pair(given["dilation"]) != (1, 1) or lowering.blocks.get(node.name, 1) > 1:
        raise Unsupported("a dilated transposed convolution")
    (sy, sx), (py, px), groups = pair(given["stride"]), pair(given["padding"]), int(given["groups"])
    n, c, _, _ = lowering.shapes[source]
    inside, (ky, kx) = weight.shape[1], weight.shape[2:]
    outputs = inside * groups
    ty, tx = -(-ky // sy), -(-kx // sx)
    out_h, out_w = (int(size) for size in node.meta["val"].shape[2:])
    rows, columns = -(-(py + out_h) // sy), -(-(px + out_w) // sx)
    full = torch.nn.functional.pad(weight, (0, tx * sx - kx, 0, ty * sy - ky))
    # (groups, C/groups, M/groups, tap, phase, tap, phase) -> (groups, phase, phase, M/groups, C/groups, tap, tap)
    phases = full.reshape(groups, c // groups, inside, ty, sy, tx, sx).permute(0, 4, 6, 2, 1, 3, 5).flip(5, 6)
    kernel = phases.reshape(groups * sy * sx * inside, c // groups, ty, tx).contiguous()
    bias = torch.zeros(outputs) if given["bias"] is None else lowering.constant(given["bias"])
    repeated = bias.view(groups, 1, inside).expand(groups, sy * sx, inside).reshape(-1).contiguous()
    window = Window((ty, tx), (1, 1), (ty - 1, tx - 1))
    low, shuffled = f"{node.name}.phases", f"{node.name}.shuffled"
    cropped = (py, px) != (0, 0) or (rows * sy, columns * sx) != (out_h, out_w)
    lowering.record(low, (n, groups * sy * sx * inside, rows, columns), "NCHW")
    lowering.nodes.append(Convolution(f"{node.name}.phases", source, low, kernel, repeated, window, groups=groups))
    result = shuffled if cropped else node.name
    sizes = (n, groups, sy, sx, inside, rows, columns)
    axes = range(len(sizes))
    before, after = ((0,), (1, 2, 3, 4), (5,), (6,)), ((0,), (1, 4), (5, 2), (6, 3))
    lowering.record(result, (n, outputs, rows * sy, columns * sx), "NCHW")
    lowering.nodes.append(Rearrange(result, low, result, tuple(sizes[a] for a in axes), before, after))
    if cropped:
        if rows * sy != out_h or py:
            middle = node.name if columns * sx == out_w and not px else f"{node.name}.rows"
            lowering.record(middle, (n, outputs, out_h, columns * sx), "NCHW")
            lowering.nodes.append(Slice(middle, result, middle, 2, py, 1))
            result = middle
        if columns * sx != out_w or px:
            lowering.record(node.name, (n, outputs, out_h, out_w), "NCHW")
            lowering.nodes.append(Slice(node.name, result, node.name, 3, px, 1))
    assert math.prod(node.meta["val"].shape) == math.prod(lowering.shapes[node.name])


_MODES: dict[Any, str] = {
    aten.reflection_pad2d.default: "reflect",
    aten.replication_pad2d.default: "replicate",
}
HANDLERS: dict[Any, Callable[[Lowering, fx.Node], None]] = {
    aten.upsample_nearest2d.vec: nearest_handler,
    aten.upsample_nearest2d.default: nearest_handler,
    aten._upsample_nearest_exact2d.vec: nearest_handler,
    aten._upsample_nearest_exact2d.default: nearest_handler,
    aten.upsample_bilinear2d.vec: bilinear_handler,
    aten.upsample_bilinear2d.default: bilinear_handler,
    aten.reflection_pad2d.default: pad_handler,
    aten.replication_pad2d.default: pad_handler,
    aten.flip.default: flip_handler,
    aten.conv_transpose2d.input: transposed_convolution_handler,
}
