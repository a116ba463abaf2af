"""Choosing one option for each layer at the least total cost within a budget: an exact multiple-choice knapsack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from torch_separable.errors import SeparableError


def choose(costs: Sequence[Sequence[float]], sizes: Sequence[Sequence[float]], budget: float) -> list[int]:
    """Choose one option a layer so that the sizes stay within ``budget`` and the sum of the costs is least.

    The multiple-choice knapsack problem (Kellerer, Pferschy and Pisinger, "Knapsack Problems", 2004, chapter 11),
    solved to optimality as a mixed-integer program by HiGHS.

    Args:
        costs: for each layer the cost of each of its options (any unit; they are added).
        sizes: for each layer the size of each of its options, in the budget's unit.
        budget: the most that the chosen sizes may add up to.

    Returns:
        The index of the chosen option of each layer.

    Raises:
        SeparableError: even the smallest options exceed the budget.

    Example:
        >>> choose([[0.0, 1.0], [0.0, 5.0]], [[10, 4], [10, 4]], budget=14)
        [1, 0]
    """
    smallest = sum(min(s) for s in sizes)
    if smallest > budget:
        raise SeparableError(f"the budget of {budget:.6g} cannot be met: the smallest reachable is {smallest:.6g}")
    layer = np.repeat(np.arange(len(costs)), [len(c) for c in costs])
    column = np.arange(len(layer))
    cost = np.concatenate([np.asarray(c, dtype=float) for c in costs])
    size = np.concatenate([np.asarray(s, dtype=float) for s in sizes])
    one_each = csr_matrix((np.ones(len(layer)), (layer, column)))
    # Scaled to about 1, so that the solver's tolerances mean the same for MACs and for milliseconds.
    unit, price = max(budget, 1e-300), max(float(cost.max()), 1e-300)
    result = milp(
        cost / price,
        integrality=np.ones(len(layer)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(csr_matrix(size / unit), -np.inf, budget / unit),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise SeparableError(f"no choice within the budget was found: {result.message}")
    chosen = [int(column[layer == i][np.argmax(result.x[layer == i])]) for i in range(len(costs))]
    starts = np.concatenate([[0], np.cumsum([len(c) for c in costs])])
    return [c - int(starts[i]) for i, c in enumerate(chosen)]
