"""The knapsack over forms and precisions, with costs that were made up: closed forms and brute force."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_separable.conversion.planning.plan import Precision
from torch_separable.conversion.solvers.factorize import Order
from torch_separable.mixed_precision.problem import Candidate, Problem

CHOICES = st.one_of(st.none(), st.tuples(st.sampled_from(get_args(Order)), st.integers(1, 9)))
CANDIDATES = st.builds(
    Candidate, CHOICES, st.sampled_from(("f32", "int8")), st.floats(0, 1), st.floats(0.01, 1).map(lambda x: round(x, 4))
)
LAYERS = st.lists(
    st.tuples(st.lists(CANDIDATES, min_size=1, max_size=4), st.floats(0, 0.3), st.floats(0, 0.3)),
    min_size=1,
    max_size=5,
)


def problem_of(layers: list[tuple[list[Candidate], float, float]], available: float) -> Problem:
    return Problem(tuple(tuple(c) for c, _, _ in layers), tuple((q, d) for _, q, d in layers), available, 0.5)


@settings(max_examples=40, deadline=None)
@given(LAYERS, st.floats(0, 1))
def test_the_plan_is_the_best_of_all_within_the_budget(
    layers: list[tuple[list[Candidate], float, float]], share: float
) -> None:
    free = problem_of(layers, 0.0)
    every = [(sum(c.change for c in chosen), free.cost(chosen)) for chosen in product(*free.layers)]
    costs = [cost for _, cost in every]
    assert free.smallest() == pytest.approx(min(costs))
    limit = min(costs) + share * (max(costs) - min(costs))
    problem = problem_of(layers, limit - free.rest)
    chosen = problem.solve()
    assert problem.cost(chosen) <= limit * (1 + 1e-9)
    within = [change for change, cost in every if cost <= limit * (1 - 1e-9)]
    assert sum(c.change for c in chosen) <= min(within, default=float("inf")) + 1e-9


def test_borders_are_counted_where_neighbours_differ() -> None:
    precisions: list[Precision] = ["int8", "int8", "bf16", "int8"]
    chosen = [Candidate(None, precision, 0.0, 1.0) for precision in precisions]
    problem = Problem(tuple((c,) for c in chosen), tuple((0.1 * i, 0.01 * i) for i in range(1, 5)), 9.0, 2.0)
    assert problem.cost(chosen) == pytest.approx(2 + 4 + 0.1 + 0.03 + 0.4)
    assert problem.smallest() == pytest.approx(problem.cost(chosen))
    assert problem.solve() == chosen
