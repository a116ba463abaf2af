"""What is alive together has places of its own; what follows it lies around the same middles."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from torch_separable.runtime.graph.ir import Add, Copy, Node, Program, inputs_of
from torch_separable.runtime.planning.memory_plan import CACHE_LINE, place


def program_of(nodes: list[Node], rows: list[int], outputs: tuple[str, ...]) -> Program:
    shapes = {f"v{at}": (1, 16, height, 4) for at, height in enumerate(rows)}
    return Program("v0", tuple(nodes), shapes, {}, frozenset(), outputs, None)


@given(st.data(), st.lists(st.integers(1, 60), min_size=2, max_size=12), st.integers(0, 12))
def test_values_that_live_together_do_not_overlap(data: st.DataObject, rows: list[int], early: int) -> None:
    def earlier(at: int) -> str:
        return f"v{data.draw(st.integers(0, at - 1))}"

    nodes: list[Node] = [
        Add(f"v{at}", earlier(at), earlier(at), f"v{at}")
        if data.draw(st.booleans())
        else Copy(f"v{at}", earlier(at), f"v{at}")
        for at in range(1, len(rows))
    ]
    outputs = tuple(f"v{at}" for at in range(len(rows)) if at == len(rows) - 1 or data.draw(st.booleans()))
    bytes_each = {f"v{at}": data.draw(st.sampled_from([12, 64, 96])) for at in range(len(rows))}
    offsets, size = place(program_of(nodes, rows, outputs), bytes_each, early, {})
    lives: dict[str, tuple[int, int]] = {}
    places: dict[str, tuple[int, int]] = {}
    for at, height in enumerate(rows):
        name = f"v{at}"
        seen = [at - 1, *(when for when, node in enumerate(nodes) if name in inputs_of(node))]
        in_turns = any(0 <= when < early for when in seen)
        lives[name] = at - 1, max([*seen, *([early - 1] if in_turns else []), *([99] if name in outputs else [])])
        places[name] = offsets[name], offsets[name] + 4 * height * bytes_each[name]
        assert offsets[name] % CACHE_LINE == 0
        assert 0 <= places[name][0] < places[name][1] <= size
    for one, other in combinations(offsets, 2):
        if apart(places[one], places[other]):
            continue
        (_, dies), (later, _) = sorted((lives[one], lives[other]))
        assert dies < later, f"{one} and {other} share memory"


def apart(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[1] <= other[0] or other[1] <= one[0]


def test_values_of_a_chain_lie_around_two_middles() -> None:
    rows = [64, 32, 32, 16, 16, 8, 8, 4, 4, 32]
    nodes: list[Node] = [Copy(f"v{at}", f"v{at - 1}", f"v{at}") for at in range(1, len(rows))]
    offsets, size = place(program_of(nodes, rows, ("v9",)), dict.fromkeys((f"v{at}" for at in range(10)), 64), 0, {})
    assert len({offsets[f"v{at}"] + 4 * 64 * height // 2 for at, height in enumerate(rows)}) == 2
    assert size == 4 * 64 * (64 + 32), "no more than the two largest neighbours"
