"""Depth-first order for the early layers of a network: a tile is computed when the next layer needs it.

Early layers have few weights and large maps. Layer by layer, every map is written to memory and read back. If a few
rows at a time pass through all of these layers, each layer reads its input from L2. The same tasks run in another
order, so nothing is computed twice and the results are bit-identical.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch_separable._system.hardware import cache_bytes
from torch_separable.runtime.graph.ir import (
    Activate,
    Add,
    Convolution,
    Copy,
    DepthwiseConv,
    Node,
    Pool,
    Program,
    inputs_of,
)
from torch_separable.runtime.native.operations import Kind, MatrixSource, Operation, Part

# Largest map, in bytes, that stays in a core's share of the last-level cache (32 MB for 8 cores are 4 MB each). Kernels
# read smaller maps from there fast enough, so depth-first order would only shorten their tiles.
_NEAR = 3 * 2**20

_BY_ROWS = (Convolution, DepthwiseConv, Pool, Add, Activate, Copy)


def early_layers(program: Program, strides: Mapping[str, int], bytes_each: int = 4) -> int:
    """Count the nodes, from the first, that should run depth first.

    Each of them has a map above `_NEAR` bytes, and their weights together fit in half of L2.

    Args:
        program: a scheduled program.
        strides: elements from a pixel of each value to the next.
        bytes_each: bytes of an element.
    """
    weight_limit, weights = cache_bytes(2) // 2, 0

    def size(value: str) -> int:
        n, _, h, w = program.shapes[value]
        return bytes_each * h * w * strides[value] * n

    for count, node in enumerate(program.nodes):
        if not isinstance(node, _BY_ROWS) or node.output in program.quantized:
            return count
        weights += bytes_each * _weights(node)
        if weights > weight_limit or max(size(value) for value in (*inputs_of(node), node.output)) <= _NEAR:
            return count
    return len(program.nodes)


def _weights(node: Node) -> int:
    depthwise = getattr(node, "depthwise", None)
    dense = node.weight.numel() if isinstance(node, Convolution) else 0
    return dense + (0 if depthwise is None else depthwise.weight.numel())


def depth_first(
    operations: Sequence[Operation],
    values: Sequence[tuple[tuple[str, ...], str]],
    tasks: Callable[[Operation], int],
) -> list[Part]:
    """Order the tasks of operations so that each runs when a later operation needs what it writes.

    Args:
        operations: operations in an order in which they could run one after the other; none splits its channels.
        values: the values that each reads (the input of its window first) and the one that it writes.
        tasks: returns the number of tasks of an operation.

    Returns:
        Every task of every operation, once.
    """
    counts, done = [tasks(operation) for operation in operations], [0] * len(operations)
    writers: dict[str, list[int]] = {}
    for i, (_, written) in enumerate(values):
        writers.setdefault(written, []).append(i)
    parts: list[Part] = []

    def advance(i: int, rows: int) -> None:
        while done[i] < counts[i] and _rows_after(operations[i], done[i]) < rows:
            of_input, of_others = _rows_needed(operations[i], done[i])
            for place, value in enumerate(values[i][0]):
                needed = of_others if place else of_input
                for writer in writers.get(value, ()):
                    if writer < i:
                        advance(writer, needed)
            if parts and parts[-1].operation == i:
                parts[-1].end = done[i] + 1
            else:
                parts.append(Part(i, done[i], done[i] + 1))
            done[i] += 1

    for i in (len(operations) - 1, *range(len(operations))):
        advance(i, 1 + _rows_after(operations[i], counts[i]))
    return parts


def of_shard(operation: Operation, shard: int) -> Operation:
    """Return the operation for another shard of the batch; the given one is for shard 0."""
    o = Operation.from_buffer_copy(operation)
    images = shard * o.batch
    if o.kind == Kind.IMPORT:
        o.external.first_image += images
    else:
        o.input += images * o.in_height * o.in_width * o.in_stride
    written = images * o.out_height * o.out_width
    floats = o.kind == Kind.CONVOLUTION and o.convolution.float_output
    o.output += written * o.out_stride * (2 if floats else 1)  # offsets count bfloat16 elements
    if o.second_input >= 0:
        o.second_input += written * o.second_stride
    return o


def _rows_after(operation: Operation, done: int) -> int:
    """Rows of the output, counted through all images, that are complete after ``done`` tasks."""
    o = operation
    if o.kind != Kind.CONVOLUTION:
        return done
    if o.convolution.source == MatrixSource.POINTWISE:
        return int(min(done * o.convolution.tile_rows, o.batch * o.out_height * o.out_width) // o.out_width)
    image, tile = divmod(done, -(-o.out_height // o.convolution.tile_rows))
    return int(image * o.out_height + min(tile * o.convolution.tile_rows, o.out_height))


def _rows_needed(operation: Operation, task: int) -> tuple[int, int]:
    """Rows of the input and of the other operands, counted through all images, that a task reads up to."""
    o = operation
    if o.kind == Kind.CONVOLUTION and o.convolution.source == MatrixSource.POINTWISE:
        pixels = min((task + 1) * o.convolution.tile_rows, o.batch * o.out_height * o.out_width)
        return (-(-pixels // o.out_width),) * 2
    end = _rows_after(operation, task + 1)
    image, row = divmod(end - 1, o.out_height) if o.out_height else (0, 0)
    if o.has_window:
        window = o.window
        last = row * window.stride_height - window.pad_height + (window.kernel_height - 1) * window.dilation_height
        return image * o.in_height + max(0, min(last + 1, o.in_height)), end
    if o.kind == Kind.COPY:
        return image * o.in_height + row * o.copy.stride_height + 1, end
    return end, end
