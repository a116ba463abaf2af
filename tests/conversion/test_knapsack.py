from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_separable.conversion.solvers.knapsack import solve_knapsack
from torch_separable.errors import SeparableError

Options = Sequence[Sequence[float]]


def total(values: Options, chosen: Sequence[int]) -> float:
    return sum(of[i] for of, i in zip(values, chosen, strict=True))


def brute_force(costs: Options, sizes: Options, budget: float) -> float:
    every = itertools.product(*(range(len(of)) for of in costs))
    return min(total(costs, chosen) for chosen in every if total(sizes, chosen) <= budget)


@st.composite
def problems(draw: st.DrawFn, size: st.SearchStrategy[float]) -> tuple[Options, Options, float]:
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    # Costs span as many orders of magnitude as the changes of a network's outputs do.
    cost = st.one_of(st.just(0.0), st.floats(-20, 5).map(np.exp).map(float))
    costs = [draw(st.lists(cost, min_size=n, max_size=n)) for n in counts]
    sizes = [draw(st.lists(size, min_size=n, max_size=n)) for n in counts]
    smallest, largest = sum(map(min, sizes)), sum(map(max, sizes))
    some = draw(st.tuples(*(st.integers(0, n - 1) for n in counts)))
    budget = draw(st.one_of(st.floats(smallest, largest), st.sampled_from([smallest, largest, total(sizes, some)])))
    return costs, sizes, max(budget, smallest)


@given(problem=problems(st.integers(1, 10**10).map(float)))
def test_choice_equals_brute_force(problem: tuple[Options, Options, float]) -> None:
    costs, sizes, budget = problem
    chosen = solve_knapsack(costs, sizes, budget)
    assert total(sizes, chosen) <= budget
    assert total(costs, chosen) == pytest.approx(brute_force(costs, sizes, budget), rel=1e-9, abs=0)


@given(problem=problems(st.floats(0.001, 50)))
def test_choice_equals_brute_force_for_milliseconds(problem: tuple[Options, Options, float]) -> None:
    costs, sizes, budget = problem
    chosen = solve_knapsack(costs, sizes, budget)
    assert total(sizes, chosen) <= budget * (1 + 1e-9)
    assert total(costs, chosen) <= brute_force(costs, sizes, budget) * (1 + 1e-9)


@given(problem=problems(st.integers(1, 30).map(float)))
def test_choice_is_excluded_by_one_unit_too_little(problem: tuple[Options, Options, float]) -> None:
    costs, sizes, budget = problem
    if sum(map(min, sizes)) <= budget - 1:
        chosen = solve_knapsack(costs, sizes, budget - 1)
        assert total(sizes, chosen) <= budget - 1
        assert total(costs, chosen) == pytest.approx(brute_force(costs, sizes, budget - 1), rel=1e-9, abs=0)


@given(problem=problems(st.integers(1, 1000).map(float)))
def test_more_budget_costs_less(problem: tuple[Options, Options, float]) -> None:
    costs, sizes, budget = problem
    found = [total(costs, solve_knapsack(costs, sizes, budget * more)) for more in (1, 1.3, 2, 10)]
    assert found == sorted(found, reverse=True)
    assert found[-1] >= sum(map(min, costs)) * (1 - 1e-12)


def test_unreachable_budget_raises_with_the_smallest_reachable() -> None:
    costs, sizes = [[0.0, 1.0], [0.0, 5.0]], [[10, 4], [10, 3]]
    with pytest.raises(SeparableError, match="the budget of 6 cannot be met: the smallest reachable is 7"):
        solve_knapsack(costs, sizes, 6)
    assert solve_knapsack(costs, sizes, 7) == [1, 1]


def test_dominated_options_are_not_chosen() -> None:
    assert solve_knapsack([[3.0, 1.0, 1.0]], [[5, 5, 4]], 5) == [2]
    assert solve_knapsack([[0.0]], [[5]], 5) == [0]
    assert solve_knapsack([], [], 5) == []


def test_deep_networks_are_solved_quickly() -> None:
    random = np.random.default_rng(0)
    rank = np.arange(1, 10)
    costs, sizes = [], []
    for _ in range(110):
        scale, dense = np.exp(random.normal(0, 2)), 1e6 * 2 ** random.integers(0, 4)
        change = scale * np.exp(-rank * random.uniform(0.3, 0.8))
        costs.append([0.0, *change, *(1.1 * change)])
        sizes.append([dense, *(dense * 0.13 * rank), *(dense * 0.135 * rank)])
    start = time.perf_counter()
    for share in (0.2, 0.5, 0.9):
        solve_knapsack(costs, sizes, share * sum(of[0] for of in sizes))
    assert time.perf_counter() - start < 30  # it takes a second; by brute force longer than the universe is old
