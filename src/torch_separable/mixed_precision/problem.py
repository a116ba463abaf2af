"""A budget as a knapsack over forms and precisions, and its exact solution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch_separable.conversion.planning.options import Choice
from torch_separable.conversion.planning.plan import Precision
from torch_separable.conversion.solvers.chain import ChainLayer, smallest_size, solve_chain
from torch_separable.errors import SeparableError
from torch_separable.mixed_precision.layers import PlannedLayer
from torch_separable.mixed_precision.rounding_noise import RoundingNoise, noise_of
from torch_separable.mixed_precision.timing import MeasuredTimes

_FLOAT, _INT8 = 0, 1


@dataclass(frozen=True)
class Candidate:
    """What one layer may become.

    Attributes:
        choice: order and rank; ``None`` stays dense.
        precision: of its arithmetic.
        change: mean squared change of the network's outputs, relative to their variance.
        size: what it costs, in the budget's unit.
    """

    choice: Choice | None
    precision: Precision
    change: float
    size: float


@dataclass(frozen=True)
class Problem:
    """Candidates of all layers in order of execution.

    Attributes:
        layers: candidates of each layer.
        borders: of each layer: what quantizing its input costs after a float layer, and what dequantizing its input
            costs after an int8 layer.
        available: what layers and borders may cost together.
        rest: cost of the network outside these layers.
    """

    layers: tuple[tuple[Candidate, ...], ...]
    borders: tuple[tuple[float, float], ...]
    available: float
    rest: float

    def solve(self) -> list[Candidate]:
        """Return the candidate of each layer with the least sum of changes within what is available.

        Raises:
            SeparableError: nothing fits; `smallest` is what would.
        """
        chosen = solve_chain(self._chain(), self.available)
        return [layer[i] for layer, i in zip(self.layers, chosen, strict=True)]

    def smallest(self) -> float:
        """Return the least cost of the whole network."""
        return self.rest + smallest_size(self._chain())

    def cost(self, chosen: Sequence[Candidate]) -> float:
        """Return the cost of the whole network with a candidate for each layer."""
        total, before = self.rest, _FLOAT
        for candidate, border in zip(chosen, self.borders, strict=True):
            kind = _kind(candidate)
            total += candidate.size + (0.0 if kind == before else border[0 if kind == _INT8 else 1])
            before = kind
        return total

    def _chain(self) -> list[ChainLayer]:
        return [
            ChainLayer(
                [candidate.change for candidate in layer],
                [candidate.size for candidate in layer],
                [_kind(candidate) for candidate in layer],
                [[0.0, there], [back, 0.0]],
            )
            for layer, (there, back) in zip(self.layers, self.borders, strict=True)
        ]


def _kind(candidate: Candidate) -> int:
    return _INT8 if candidate.precision == "int8" else _FLOAT


def candidates_of(
    layer: PlannedLayer,
    changes: dict[Choice, float],
    noise: RoundingNoise,
    precisions: Sequence[Precision],
    size: Callable[[PlannedLayer, Choice | None, Precision], float],
) -> tuple[Candidate, ...]:
    """List what a layer may become, dense first.

    Args:
        layer: the layer.
        changes: of the network's outputs, by the factorisation in float32.
        noise: of rounding it.
        precisions: that are allowed.
        size: cost of a form in a precision.
    """
    return tuple(
        Candidate(
            choice,
            precision,
            (0.0 if choice is None else changes[choice]) + noise_of(noise, choice, precision),
            size(layer, choice, precision),
        )
        for choice in (None, *layer.choices)
        for precision in precisions
    )


def latency_sizes(
    times: MeasuredTimes, layers: Sequence[PlannedLayer], precisions: Sequence[Precision]
) -> tuple[Callable[[PlannedLayer, Choice | None, Precision], float], float]:
    """Return the milliseconds of a form of a layer, and those of the network outside its layers.

    The dense network was timed as a whole in each precision. What its layers leave of that differs between precisions,
    because sums and pooling are in the precision of their neighbours: the difference is shared among the layers by the
    number of their outputs. Where the layers alone take longer than the whole, because each starts with cold caches,
    they are scaled. So the prediction is exact for the dense network in each precision.
    """
    sums = {precision: sum(times.of(layer, None, precision) for layer in layers) for precision in precisions}
    scales = {precision: min(1.0, times.whole[precision] / sums[precision]) for precision in precisions}
    rests = {precision: max(times.whole[precision] - sums[precision], 0.0) for precision in precisions}
    rest = min(rests.values())
    values = sum(layer.values for layer in layers)

    def size(layer: PlannedLayer, choice: Choice | None, precision: Precision) -> float:
        beside = (rests[precision] - rest) * layer.values / values
        return scales[precision] * times.of(layer, choice, precision) + beside

    return size, rest


def reason(candidate: Candidate, others: Sequence[Candidate], unit: str) -> str:
    """Return what the next better candidate of a layer would have cost.

    Example:
        >>> chosen = Candidate(("depthwise_first", 2), "int8", 0.02, 0.5)
        >>> reason(chosen, [chosen, Candidate(None, "int8", 0.001, 0.75)], "ms")
        'changes the outputs by 2 %; int8 dense: 0.1 % for 0.25 ms more'
    """
    own = f"changes the outputs by {100 * candidate.change:.2g} %"
    better = [each for each in others if each.change < candidate.change and each.size > candidate.size]
    if not better:
        return f"{own}; nothing that costs more changes them less"
    best = min(better, key=lambda each: each.size)
    more = best.size - candidate.size
    cost = f"{more:.2g} {unit}" if unit == "ms" else f"{round(more):,} {unit}"
    return f"{own}; {describe(best)}: {100 * best.change:.2g} % for {cost} more"


def describe(candidate: Candidate) -> str:
    """Name a candidate.

    Example:
        >>> describe(Candidate(("depthwise_first", 2), "int8", 0, 0))
        'int8 depthwise first of rank 2'
    """
    if candidate.choice is None:
        return f"{candidate.precision} dense"
    order, rank = candidate.choice
    return f"{candidate.precision} {order.replace('_', ' ')} of rank {rank}"


def unreachable(budget: object, kind: str, smallest: float, unit: float) -> SeparableError:
    """Return the error for a budget that no plan meets, with the smallest that one does."""
    value = smallest / unit
    digit = 10.0 ** (math.floor(math.log10(value)) - 2)
    reachable = f"{math.ceil(value / digit) * digit:.3g}{' ms' if kind == 'latency_ms' else ''}"
    return SeparableError(
        f"{budget} cannot be met: with the cheapest form and precision for every layer the network needs "
        f"{kind}={reachable}. Raise the budget, or allow precision='auto'"
    )
