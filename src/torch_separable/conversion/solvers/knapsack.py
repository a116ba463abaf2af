"""Choose one option for each layer at the least total cost within a budget: an exact multiple-choice knapsack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from torch_separable.errors import SeparableError

Numbers = NDArray[np.float64]

# Relative tolerance when sums are compared: their rounding error.
_ROUNDING = 1e-12


def solve_knapsack(costs: Sequence[Sequence[float]], sizes: Sequence[Sequence[float]], budget: float) -> list[int]:
    """Choose one option for each layer so that the sizes sum to at most ``budget`` and the sum of the costs is least.

    This is the multiple-choice knapsack problem (Kellerer, Pferschy and Pisinger, "Knapsack Problems", 2004, chapter
    11). It is solved to optimality by dynamic programming over undominated sums. A sum is dropped if it cannot beat a
    greedy choice even when the remaining layers may mix their options (the linear relaxation). A solver for
    mixed-integer programs is no alternative: costs span ten orders of magnitude here, more than its tolerances allow.

    Args:
        costs: for each layer the cost of each of its options, in any unit that adds up.
        sizes: for each layer the size of each of its options, in the budget's unit.
        budget: maximum sum of the chosen sizes.

    Returns:
        The index of the chosen option of each layer.

    Raises:
        SeparableError: even the smallest options exceed the budget.

    Example:
        >>> solve_knapsack([[0.0, 1.0], [0.0, 5.0]], [[10, 4], [10, 4]], budget=14)
        [1, 0]
    """
    smallest = sum(min(s) for s in sizes)
    if smallest > budget:
        raise SeparableError(f"the budget of {budget:.6g} cannot be met: the smallest reachable is {smallest:.6g}")
    layers = [_Layer.of(c, s) for c, s in zip(costs, sizes, strict=True)]
    # Layers with the largest savings first, while there are few sums.
    order = sorted(range(len(layers)), key=lambda i: layers[i].sizes[0] - layers[i].sizes[-1])
    relaxed = [_Relaxation.of([layers[i] for i in order[n:]]) for n in range(len(order) + 1)]
    lowest = float(relaxed[0].least_cost(np.array([float(budget)]), _ROUNDING * abs(budget))[0])
    greedy = _greedy_cost(layers, budget)
    # The optimum is usually far closer to the relaxed bound than to the greedy choice, and a tight bound leaves fewer
    # sums. If no choice is within the bound, it is loosened.
    for share in (1e-4, 1e-2, 1.0):
        chosen = _search([layers[i] for i in order], relaxed, budget, lowest + share * (greedy - lowest))
        if chosen is not None:
            break
    assert chosen is not None, "the greedy choice itself is within the last bound"
    return [option for _, option in sorted(zip(order, chosen, strict=True))]


def _search(layers: Sequence[_Layer], relaxed: Sequence[_Relaxation], budget: float, most: float) -> list[int] | None:
    """Return the cheapest options within ``budget``, or None where all cost more than ``most``."""
    total_cost, total_size = np.zeros(1), np.zeros(1)
    steps: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for layer, rest in zip(layers, relaxed[1:], strict=True):
        cost = (total_cost[:, None] + layer.costs).ravel()
        size = (total_size[:, None] + layer.sizes).ravel()
        least = cost + rest.least_cost(budget - size, _ROUNDING * abs(budget))
        kept = np.flatnonzero(least <= most + _ROUNDING * abs(most))
        kept = kept[np.lexsort((cost[kept], size[kept]))]
        kept = kept[_falling(cost[kept])]
        total_cost, total_size = cost[kept], size[kept]
        steps.append(np.divmod(kept, len(layer.costs)))
    if not len(total_cost):
        return None
    state = int(np.argmin(total_cost))
    chosen = []
    for layer, (parents, options) in zip(reversed(layers), reversed(steps), strict=True):
        chosen.append(int(layer.options[options[state]]))
        state = int(parents[state])
    return chosen[::-1]


def _falling(costs: Numbers) -> NDArray[np.bool_]:
    """Return which costs are lower than all costs before them."""
    return costs < np.minimum.accumulate(np.concatenate([[np.inf], costs]))[:-1]


@dataclass(frozen=True)
class _Layer:
    """The undominated options of one layer: sizes ascend, costs descend."""

    options: NDArray[np.intp]
    sizes: Numbers
    costs: Numbers

    @classmethod
    def of(cls, costs: Sequence[float], sizes: Sequence[float]) -> _Layer:
        cost, size = np.asarray(costs, dtype=float), np.asarray(sizes, dtype=float)
        order = np.lexsort((cost, size))
        order = order[_falling(cost[order])]
        return cls(order, size[order], cost[order])

    def segments(self) -> list[tuple[float, float]]:
        """Return the steps along the lower convex hull, (size added, cost saved), the most profitable first."""
        hull = [0]
        for i in range(1, len(self.sizes)):
            while len(hull) > 1 and self._slope(hull[-2], hull[-1]) <= self._slope(hull[-1], i):
                hull.pop()
            hull.append(i)
        return [(float(self.sizes[b] - self.sizes[a]), float(self.costs[a] - self.costs[b])) for a, b in pairwise(hull)]

    def _slope(self, a: int, b: int) -> float:
        return float((self.costs[a] - self.costs[b]) / (self.sizes[b] - self.sizes[a]))


@dataclass(frozen=True)
class _Relaxation:
    """Lower bound of the cost of some layers within any size: their least cost if each could mix its options."""

    limits: Numbers
    costs: Numbers

    @classmethod
    def of(cls, layers: Sequence[_Layer]) -> _Relaxation:
        steps = sorted((step for layer in layers for step in layer.segments()), key=lambda s: s[1] / s[0], reverse=True)
        gained, saved = (np.array([step[i] for step in steps]) for i in (0, 1))
        limits = sum(layer.sizes[0] for layer in layers) + np.concatenate([[0.0], np.cumsum(gained)])
        # Summed from the smallest, so that small costs are not lost in rounding.
        costs = np.concatenate([np.cumsum(saved[::-1])[::-1], [0.0]]) + sum(layer.costs[-1] for layer in layers)
        return cls(limits, costs)

    def least_cost(self, free: Numbers, slack: float) -> Numbers:
        return np.where(free < self.limits[0] - slack, np.inf, np.interp(free, self.limits, self.costs))


def _greedy_cost(layers: Sequence[_Layer], budget: float) -> float:
    """Return the cost of starting at the smallest options and taking the most profitable steps that fit."""
    chosen = [0] * len(layers)
    free = budget - sum(float(layer.sizes[0]) for layer in layers)
    steps = [
        ((layer.costs[0] - layer.costs[k]) / (layer.sizes[k] - layer.sizes[0]), i, k)
        for i, layer in enumerate(layers)
        for k in range(1, len(layer.sizes))
    ]
    for _, i, k in sorted(steps, reverse=True):
        extra = float(layers[i].sizes[k] - layers[i].sizes[chosen[i]])
        if k > chosen[i] and extra <= free:
            free -= extra
            chosen[i] = k
    return sum(float(layer.costs[k]) for layer, k in zip(layers, chosen, strict=True))
