"""The knapsack with borders: the best of all choices, by force."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_separable.conversion.solvers.chain import ChainLayer, solve_chain
from torch_separable.conversion.solvers.knapsack import solve_knapsack
from torch_separable.errors import SeparableError

NUMBERS = st.floats(0, 10).map(lambda x: round(x, 3))


@st.composite
def chains(draw: st.DrawFn) -> list[ChainLayer]:
    layers = []
    for _ in range(draw(st.integers(1, 5))):
        options = draw(st.integers(1, 4))
        lists = [draw(st.lists(NUMBERS, min_size=options, max_size=options)) for _ in range(2)]
        kinds = draw(st.lists(st.integers(0, 1), min_size=options, max_size=options))
        there, back = draw(NUMBERS), draw(NUMBERS)
        layers.append(ChainLayer(lists[0], lists[1], kinds, [[0, there], [back, 0]]))
    return layers


def total(layers: list[ChainLayer], chosen: tuple[int, ...] | list[int], start: int = 0) -> tuple[float, float]:
    cost = size = 0.0
    kind = start
    for layer, option in zip(layers, chosen, strict=True):
        cost += layer.costs[option]
        size += layer.sizes[option] + layer.borders[kind][layer.kinds[option]]
        kind = layer.kinds[option]
    return cost, size


@settings(max_examples=100, deadline=None)
@given(chains(), st.floats(0, 1), st.integers(0, 1))
def test_the_choice_is_the_best_of_all(layers: list[ChainLayer], share: float, start: int) -> None:
    every = [total(layers, choice, start) for choice in product(*(range(len(layer.costs)) for layer in layers))]
    sizes = [size for _, size in every]
    budget = min(sizes) + share * (max(sizes) - min(sizes))
    cost, size = total(layers, solve_chain(layers, budget, start=start), start)
    assert size <= budget * (1 + 1e-9) + 1e-9
    assert cost == pytest.approx(min(cost for cost, size in every if size <= budget * (1 + 1e-12)), abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(chains())
def test_a_larger_budget_never_costs_more(layers: list[ChainLayer]) -> None:
    every = [total(layers, choice)[1] for choice in product(*(range(len(layer.costs)) for layer in layers))]
    costs = [total(layers, solve_chain(layers, budget))[0] for budget in sorted(every)[:: len(every) // 8 + 1]]
    assert all(more >= less - 1e-9 for more, less in pairwise(costs))


@pytest.mark.parametrize("seed", range(3))
def test_without_borders_it_is_the_plain_knapsack(seed: int) -> None:
    """Costs span ten orders of magnitude, as those of a network of 50 layers do."""
    generator = np.random.default_rng(seed)
    costs = [[0.0, *np.sort(10 ** generator.uniform(-10, 0, 20))] for _ in range(50)]
    sizes = [[1.0, *np.sort(generator.uniform(0.1, 0.9, 20))[::-1]] for _ in range(50)]
    free = [[0.0, 0.0], [0.0, 0.0]]
    kinds = [list(generator.integers(0, 2, 21)) for _ in range(50)]
    layers = [ChainLayer(*each, free) for each in zip(costs, sizes, kinds, strict=True)]
    plain = solve_knapsack(costs, sizes, 20.0)
    chosen = solve_chain(layers, 20.0)
    expected = sum(c[i] for c, i in zip(costs, plain, strict=True))
    assert total(layers, chosen)[0] == pytest.approx(expected, rel=1e-9)
    assert total(layers, chosen)[1] <= 20 * (1 + 1e-9)


def test_expensive_borders_keep_layers_together() -> None:
    layer = ChainLayer([0.0, 1.0], [2.0, 1.0], [0, 1], [[0, 5], [5, 0]])
    assert solve_chain([layer] * 4, 8.0) == [0, 0, 0, 0]
    assert solve_chain([layer] * 4, 7.0, start=1) == [1, 1, 1, 1]
    with pytest.raises(SeparableError, match="smallest reachable is 8"):
        solve_chain([layer] * 4, 7.0)
