"""The memory plan: the offset of every value in one workspace, so that a call allocates nothing."""

from __future__ import annotations

from collections.abc import Mapping

from torch_separable.runtime.graph.ir import Program, inputs_of
from torch_separable.runtime.planning.aliasing import Place

CACHE_LINE = 64  # bytes


def place(
    program: Program, pixel_bytes: dict[str, int], early: int, places: Mapping[str, Place]
) -> tuple[dict[str, int], int]:
    """Assign an offset in bytes to every value; values that are not alive at the same time share memory.

    The values of the first ``early`` nodes, which run depth first, are all alive together. If it takes no more memory,
    a value is centred on an earlier one: each of two threads computes one half of every value, so it then writes cache
    lines that its own core holds.
    """
    last: dict[str, int] = {}

    def root(name: str) -> str:
        return places[name].root if name in places else name

    for at, node in enumerate(program.nodes):
        for name in (*inputs_of(node), *((node.output,) if at < early else ())):
            last[root(name)] = max(at, early - 1)
    for name in program.outputs:
        last[root(name)] = len(program.nodes)
    offsets: dict[str, int] = {}
    living: list[tuple[int, int, str]] = []  # (begin, end, value)
    middles: list[int] = []
    size = 0

    def assign(name: str) -> None:
        nonlocal size
        n, _, h, w = program.shapes[name]
        # Vectors written past the channels of the last pixel stay within its stride, so values need no slack.
        length = -(-n * h * w * pixel_bytes[name] // CACHE_LINE) * CACHE_LINE
        begin = 0
        for start, end, _ in sorted(living):
            if begin + length <= start:
                break
            begin = max(begin, end)
        size = max(size, begin + length)
        for middle in reversed(middles):
            wanted = (middle - length // 2) // CACHE_LINE * CACHE_LINE
            inside = 0 <= wanted <= size - length
            if inside and all(wanted + length <= start or end <= wanted for start, end, _ in living):
                begin = wanted
                break
        middles.append(begin + length // 2)
        offsets[name] = begin
        living.append((begin, begin + length, name))

    assign(program.input)
    for at, node in enumerate(program.nodes):
        if node.output in program.shapes and root(node.output) not in offsets:
            assign(root(node.output))
        living[:] = [entry for entry in living if last.get(entry[2], at) > at]
    return offsets, size
