"""The knapsack of layers in a row, where neighbours of different kinds cost something more: an exact solution.

As in `solve_knapsack` one option is chosen for each layer, but every option has a kind (a precision), and where the
kinds of two layers in a row differ, a border is added to the size: the conversion of the values between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torch_separable.errors import SeparableError

Numbers = NDArray[np.float64]
Indices = NDArray[np.intp]

_ROUNDING = 1e-12  # relative tolerance when sums are compared
_BISECTIONS = 80
_SPREAD = np.logspace(-2, 2, 41)  # of the multipliers around the best one: bounds for states far from it


@dataclass(frozen=True)
class ChainLayer:
    """The options of one layer.

    Attributes:
        costs: of each option, in any unit that adds up.
        sizes: of each option, in the budget's unit.
        kinds: of each option, 0 or above.
        borders: ``borders[p][k]``: size that is added if the layer before is of kind ``p`` and this one of kind ``k``;
            not negative.
    """

    costs: Sequence[float]
    sizes: Sequence[float]
    kinds: Sequence[int]
    borders: Sequence[Sequence[float]]


def solve_chain(layers: Sequence[ChainLayer], budget: float, *, start: int = 0) -> list[int]:
    """Choose one option for each layer so that sizes and borders sum to at most ``budget``, at the least total cost.

    Solved to optimality by dynamic programming over undominated sums, kind by kind. A sum is dropped if it cannot beat
    a known choice: the Lagrangian relaxation of the remaining layers, with their borders, bounds what it can reach
    (Kellerer, Pferschy and Pisinger, "Knapsack Problems", 2004, sections 11.2 and 11.5).

    Args:
        layers: in order of execution.
        budget: maximum sum of sizes and borders.
        start: kind of what is before the first layer.

    Returns:
        The index of the chosen option of each layer.

    Raises:
        SeparableError: no choice is within the budget.

    Example:
        >>> borders = [[0, 1], [1, 0]]
        >>> layer = ChainLayer([0.0, 1.0], [10, 4], [0, 1], borders)
        >>> solve_chain([layer, layer], budget=15), solve_chain([layer, layer], budget=20)
        ([0, 1], [0, 0])
    """
    arrays = [_Layer.of(layer) for layer in layers]
    slack = _ROUNDING * abs(budget)
    smallest = _fewest(arrays)
    if smallest[0][start] > budget + slack:
        raise SeparableError(
            f"the budget of {budget:.6g} cannot be met: the smallest reachable is {smallest[0][start]:.6g}"
        )
    multipliers, upper = _multipliers(arrays, budget + slack, start)
    if multipliers is None:
        return upper[1]
    bounds = _relaxed(arrays, multipliers)
    lower = float((bounds[0][start] - multipliers * budget).max())
    for share in (1e-3, 1e-1, 1.0):
        most = lower + share * (upper[0] - lower)
        chosen = _search(arrays, bounds, smallest, multipliers, budget + slack, most, start)
        if chosen is not None:
            return chosen
    return upper[1]


def smallest_size(layers: Sequence[ChainLayer], *, start: int = 0) -> float:
    """Return the least sum of sizes and borders that any choice has.

    Example:
        >>> smallest_size([ChainLayer([0.0, 1.0], [10, 4], [0, 1], [[0, 1], [1, 0]])])
        5.0
    """
    return float(_fewest([_Layer.of(layer) for layer in layers])[0][start])


@dataclass(frozen=True)
class _Layer:
    costs: Numbers
    sizes: Numbers
    kinds: Indices
    borders: Numbers  # (kinds before, options)

    @classmethod
    def of(cls, layer: ChainLayer) -> _Layer:
        kinds = np.asarray(layer.kinds, dtype=np.intp)
        borders = np.asarray(layer.borders, dtype=float)[:, kinds]
        return cls(np.asarray(layer.costs, dtype=float), np.asarray(layer.sizes, dtype=float), kinds, borders)


def _fewest(layers: Sequence[_Layer]) -> list[Numbers]:
    """For each layer and kind before it, the least size of it and all layers after it."""
    after = np.zeros(len(layers[0].borders))
    result = [after]
    for layer in reversed(layers):
        after = (layer.sizes + layer.borders + after[layer.kinds]).min(1)
        result.append(after)
    return result[::-1]


def _relaxed(layers: Sequence[_Layer], multipliers: Numbers) -> list[Numbers]:
    """For each layer and kind before it, the least cost + multiplier x size from there on, (kinds, multipliers)."""
    after = np.zeros((len(layers[0].borders), len(multipliers)))
    result = [after]
    for layer in reversed(layers):
        own = layer.costs[:, None] + layer.sizes[:, None] * multipliers + after[layer.kinds]  # (options, multipliers)
        after = (own[None] + layer.borders[:, :, None] * multipliers).min(1)
        result.append(after)
    return result[::-1]


def _path(layers: Sequence[_Layer], multiplier: float, start: int) -> tuple[float, float, list[int]]:
    """Cost, size and options of the choice with the least cost + multiplier x size; an infinite one: the least size."""
    cost_weight, size_weight = (0.0, 1.0) if np.isinf(multiplier) else (1.0, multiplier)
    after = np.zeros(len(layers[0].borders))
    steps: list[Indices] = []
    for layer in reversed(layers):
        each = cost_weight * layer.costs + size_weight * (layer.sizes + layer.borders) + after[layer.kinds]
        steps.append(each.argmin(1))
        after = each.min(1)
    cost = size = 0.0
    chosen, kind = [], start
    for layer, step in zip(layers, reversed(steps), strict=True):
        option = int(step[kind])
        cost, size = cost + layer.costs[option], size + layer.sizes[option] + layer.borders[kind, option]
        chosen.append(option)
        kind = int(layer.kinds[option])
    return float(cost), float(size), chosen


def _multipliers(layers: Sequence[_Layer], budget: float, start: int) -> tuple[Numbers | None, tuple[float, list[int]]]:
    """Multipliers around the one whose bound is highest, and a choice within the budget.

    ``None`` for the multipliers where the cheapest choice of all is within the budget.
    """
    cost, size, chosen = _path(layers, 0.0, start)
    if size <= budget:
        return None, (cost, chosen)
    cost, size, chosen = _path(layers, np.inf, start)
    best = (cost, chosen)
    scale = max(float(layer.costs.max()) for layer in layers) / max(float(layer.sizes.max()) for layer in layers)
    low, high = np.log(max(scale, 1e-300) * 1e-15), np.log(max(scale, 1e-300) * 1e15)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        cost, size, chosen = _path(layers, float(np.exp(middle)), start)
        if size <= budget:
            high = middle
            best = min(best, (cost, chosen))
        else:
            low = middle
    return np.concatenate([[0.0], np.exp(high) * _SPREAD, np.exp([low, high])]), best


def _search(
    layers: Sequence[_Layer],
    bounds: Sequence[Numbers],
    smallest: Sequence[Numbers],
    multipliers: Numbers,
    budget: float,
    most: float,
    start: int,
) -> list[int] | None:
    """Return the cheapest options within ``budget``, or None where all cost more than ``most``."""
    allowed = most + _ROUNDING * abs(most)
    cost, size, kind = np.zeros(1), np.zeros(1), np.full(1, start, dtype=np.intp)
    steps: list[tuple[Indices, Indices]] = []
    for place, layer in enumerate(layers):
        options = len(layer.costs)
        new_cost = (cost[:, None] + layer.costs).ravel()
        new_size = (size[:, None] + layer.sizes + layer.borders[kind]).ravel()
        new_kind = np.broadcast_to(layer.kinds, (len(cost), options)).ravel()
        kept = np.flatnonzero(new_size + smallest[place + 1][new_kind] <= budget)
        least = np.full(len(kept), -np.inf)
        for n, multiplier in enumerate(multipliers):
            np.maximum(least, bounds[place + 1][new_kind[kept], n] - multiplier * (budget - new_size[kept]), out=least)
        kept = kept[new_cost[kept] + least <= allowed]
        kept = np.concatenate([_undominated(kept[new_kind[kept] == k], new_cost, new_size) for k in set(layer.kinds)])
        cost, size, kind = new_cost[kept], new_size[kept], new_kind[kept]
        steps.append(np.divmod(kept, options))
    if not len(cost):
        return None
    state = int(np.argmin(cost))
    chosen = []
    for parents, taken in reversed(steps):
        chosen.append(int(taken[state]))
        state = int(parents[state])
    return chosen[::-1]


def _undominated(states: Indices, costs: Numbers, sizes: Numbers) -> Indices:
    """Those states than which no other is both cheaper and smaller."""
    order = states[np.lexsort((costs[states], sizes[states]))]
    return order[costs[order] < np.minimum.accumulate(np.concatenate([[np.inf], costs[order]]))[:-1]]
