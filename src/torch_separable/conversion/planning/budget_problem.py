"""A budget as a knapsack problem: what each layer costs dense and with each of its choices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from torch_separable.conversion.calibration.statistics import LayerStatistics, Statistics
from torch_separable.conversion.planning.budget import Budget
from torch_separable.conversion.planning.latency import LayerTimes
from torch_separable.conversion.planning.options import Choice, macs_of, parameters_of
from torch_separable.conversion.planning.plan import Engine, Latency, Method
from torch_separable.conversion.reduction import Reduction
from torch_separable.errors import SeparableError


@dataclass(frozen=True)
class BudgetProblem:
    """Costs in the budget's unit.

    Attributes:
        sizes: for each layer, the cost of the dense layer, then of each choice.
        rest: cost of the network outside these layers.
        available: what the layers may cost together.
        engine: the engine that was timed, where the unit is milliseconds.
    """

    sizes: list[list[float]]
    rest: float
    available: float
    engine: Engine | None

    @property
    def met(self) -> bool:
        """Whether the dense network meets the budget."""
        return sum(size[0] for size in self.sizes) <= self.available

    def latency(self, picked: Sequence[int]) -> Latency | None:
        """Return the predicted milliseconds with option ``picked[i]`` for layer ``i`` (0: dense)."""
        if self.engine is None:
            return None
        dense, converted = (
            round(self.rest + sum(sizes[i] for i, sizes in zip(indices, self.sizes, strict=True)), 6)
            for indices in ([0] * len(picked), picked)
        )
        return Latency(Reduction(dense, converted), self.engine, torch.get_num_threads())


def budget_problem(
    statistics: Statistics,
    budget: Budget,
    choices: list[list[Choice]],
    method: Method,
    timed: Callable[[Engine], LayerTimes],
) -> BudgetProblem:
    """Return the costs of the layers' choices, and what is available for them.

    Args:
        statistics: from `calibrate`.
        budget: what the whole network may cost.
        choices: of each layer.
        method: how factors are found; a least-squares fit adds a bias.
        timed: measures the layers with an engine; called for a latency only.

    Raises:
        SeparableError: the cheapest choices exceed the budget; the message contains the smallest that does not.
    """
    engine = None if budget.kind != "latency_ms" else budget.engine or "compiled"
    cost_of = _cost_function(budget, method) if engine is None else timed(engine)
    sizes = [
        [cost_of(layer, None), *(cost_of(layer, choice) for choice in allowed)]
        for layer, allowed in zip(statistics.layers, choices, strict=True)
    ]
    limit = getattr(budget, budget.kind)
    if isinstance(cost_of, LayerTimes):
        unit, rest, available = 1.0, cost_of.rest, limit - cost_of.rest
    else:
        unit = {"macs": statistics.macs, "parameters": statistics.parameters}[budget.kind]
        rest = unit - sum(size[0] for size in sizes)
        available = limit * unit * (1 + 1e-12) - rest  # a budget of exactly the dense cost must fit despite rounding
    smallest = rest + sum(min(size) for size in sizes)
    if smallest > rest + available:
        reachable = f"{_round_up(smallest / unit)}{' ms' if engine else ''}"
        raise SeparableError(
            f"{budget} cannot be met: with the cheapest choice for every convertible layer the network needs "
            f"{budget.kind}={reachable}. Raise the budget"
        )
    return BudgetProblem(sizes, rest, available, engine)


def _cost_function(budget: Budget, method: Method) -> Callable[[LayerStatistics, Choice | None], float]:
    if budget.kind == "macs":
        return macs_of
    return lambda layer, choice: parameters_of(layer, choice, method)


def _round_up(value: float) -> str:
    """Return three significant digits that are not below the value."""
    digit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(value / digit) * digit:.3g}"
