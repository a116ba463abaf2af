"""Making a plan: one rank for all layers, or the choice that changes the outputs least within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal, get_args

import torch
from torch import nn

from torch_separable._console.progress import progress_bar
from torch_separable._network.checks import as_network
from torch_separable.conversion.calibration.calibrate import (
    LayerStatistics,
    Statistics,
    check_statistics,
    moments_of,
    never_ran,
)
from torch_separable.conversion.calibration.replay_cache import ReplayCache
from torch_separable.conversion.layers import find_convertible, in_words
from torch_separable.conversion.planning.latency import LayerTimes, time_layers
from torch_separable.conversion.planning.plan import (
    Engine,
    Latency,
    LayerPlan,
    Method,
    Plan,
    separable_macs,
    separable_specs,
)
from torch_separable.conversion.planning.sensitivity import Choice, Option, fit_options, measure
from torch_separable.conversion.solvers.factorize import Order
from torch_separable.conversion.solvers.knapsack import solve_knapsack
from torch_separable.errors import SeparableError, SeparableValueError


@dataclass(frozen=True)
class Budget:
    """What the converted network may cost; exactly one is given.

    Attributes:
        macs: share of the dense network's multiply-accumulates, the whole network counted.
        params: share of the dense network's parameters.
        latency_ms: milliseconds for one image on this machine, with PyTorch's current number of threads.
        engine: what ``latency_ms`` is measured with: ``"compiled"``, which is `torch_separable.compile` and what
            ``None`` stands for, or ``"pytorch"``.

    Raises:
        SeparableValueError: none or several are given, or one is out of range.

    Example:
        >>> Budget(macs=0.5)
        Budget(macs=0.5)
        >>> Budget(latency_ms=2.5, engine="pytorch")
        Budget(latency_ms=2.5, engine='pytorch')
    """

    macs: float | None = None
    params: float | None = None
    latency_ms: float | None = None
    engine: Engine | None = None

    def __repr__(self) -> str:
        given = (f"{name}={value!r}" for name, value in vars(self).items() if value is not None)
        return f"Budget({', '.join(given)})"

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None and name != "engine"}
        if len(given) != 1:
            raise SeparableValueError(f"Budget({given or ''}): give exactly one of macs, params, latency_ms")
        (name, value), *_ = given.items()
        number = isinstance(value, int | float) and not isinstance(value, bool)
        most = math.inf if name == "latency_ms" else 1.0
        if not number or not 0 < value <= most or math.isinf(value):
            rule = (
                "milliseconds above 0"
                if name == "latency_ms"
                else "a share of the dense network's, above 0 and at most 1"
            )
            raise SeparableValueError(f"Budget({name}={value!r}): must be {rule}")
        if self.engine is not None and (name != "latency_ms" or self.engine not in get_args(Engine)):
            rule = f"one of {', '.join(get_args(Engine))}, or None for compiled" if name == "latency_ms" else "left out"
            raise SeparableValueError(f"{self}: engine, which is of latency_ms, must be {rule}")

    @property
    def kind(self) -> Literal["macs", "params", "latency_ms"]:
        """Which one is given."""
        return "macs" if self.macs is not None else "params" if self.params is not None else "latency_ms"


def plan(
    model: nn.Module,
    statistics: Statistics,
    *,
    budget: Budget | None = None,
    rank: int | None = None,
    order: Order | None = None,
    method: Method = "least_squares",
    progress: bool = False,
) -> Plan:
    """Choose for each convolution whether to keep it, or its order and rank.

    With ``rank``, every convertible layer gets this rank (at most its kernel's entries) and, without ``order``, the
    order that loses less of those with fewer MACs than the dense layer (of both, where neither has). With ``budget``,
    the sum over layers of the mean squared change of the network's *outputs* is minimised within it, exactly (a
    multiple-choice knapsack): the optimum, as far as changes add up.

    Args:
        model: the dense network.
        statistics: from `calibrate`.
        budget: what the whole network may cost.
        rank: one rank for all layers, instead of a budget.
        order: allow only this order.
        method: ``"least_squares"``, or ``"svd"`` for the baseline that looks at weights alone.
        progress: whether a bar may appear on a terminal.

    Raises:
        SeparableError: the budget cannot be met; the message says the smallest that can.
        SeparableValueError: an argument is of no use.

    Example:
        >>> from torch_separable.conversion import calibrate
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        >>> chosen = plan(net, calibrate(net, torch.randn(16, 3, 12, 12)), budget=Budget(macs=0.5))
        >>> chosen.macs[1] <= 0.5 * chosen.macs[0]
        True
    """
    check_choice(budget, rank, order, method)
    as_network(model)
    check_statistics(model, statistics, find_convertible(model).convertible)
    if budget is not None:
        return plans(model, statistics, [budget], order=order, method=method, progress=progress)[0]
    assert rank is not None
    choices = _choices(statistics, rank, order)
    options, _ = _options(model, statistics, choices, method, progress, every=True)
    chosen = [
        min(of, key=lambda o: (_macs(layer, (o.order, o.rank)) >= layer.macs, o.error))
        for layer, of in zip(statistics.layers, options, strict=True)
    ]
    return _plan(model, statistics, method, chosen, options, rank)


def plans(
    model: nn.Module,
    statistics: Statistics,
    budgets: Sequence[Budget],
    *,
    order: Order | None = None,
    method: Method = "least_squares",
    progress: bool = False,
) -> list[Plan]:
    """Make a plan for each budget; the layers are measured once. Arguments and errors are those of `plan`."""
    choices = _choices(statistics, None, order)
    timed = cache(partial(time_layers, model, statistics, choices))
    rooms = [_room(statistics, budget, choices, method, timed) for budget in budgets]  # before minutes of measuring
    options, changes = _options(model, statistics, choices, method, progress)
    result = []
    for room in rooms:
        picked = solve_knapsack([[0.0, *change] for change in changes], room.sizes, room.left)
        chosen = [None if i == 0 else of[i - 1] for i, of in zip(picked, options, strict=True)]
        result.append(_plan(model, statistics, method, chosen, options, None, room.latency(picked)))
    return result


def _choices(statistics: Statistics, rank: int | None, order: Order | None) -> list[list[Choice]]:
    """Return for each layer the orders, and within them the rising ranks, that it may take."""
    orders = get_args(Order) if order is None else (order,)
    choices: list[list[Choice]] = []
    for layer in statistics.layers:
        most = math.prod(layer.spec.kernel_size)
        if rank is not None:
            choices.append([(o, min(rank, most)) for o in orders])
        else:
            possible = [(o, r) for o in orders for r in range(1, most + 1)]
            choices.append([c for c in possible if _macs(layer, c) < layer.macs])
    return choices


def _options(
    model: nn.Module,
    statistics: Statistics,
    choices: list[list[Choice]],
    method: Method,
    progress: bool,
    *,
    every: bool = False,
) -> tuple[list[list[Option]], list[list[float]]]:
    """Fit the choices (all of them with ``every``), or else measure how much they change the network's outputs."""
    found = find_convertible(model).convertible
    options: list[list[Option]] = []
    changes: list[list[float]] = []
    replay = ReplayCache(statistics.memory // 4)
    with progress_bar("measuring layers", len(statistics.layers), shown=progress) as advance:
        for layer, allowed in zip(statistics.layers, choices, strict=True):
            conv = found[layer.name]
            if not allowed:
                options.append([])
                changes.append([])
                continue
            moments = moments_of(model, statistics, layer.name)
            fitted = fit_options(layer, conv, moments, allowed, method, every=every)
            options.append(fitted)
            if not every:
                changes.append(measure(model, statistics, layer, conv, moments, fitted, method, replay))
            advance(layer.name)
    return options, changes


def as_planned(model: nn.Module, statistics: Statistics, plan: Plan) -> Plan:
    """Return a plan that somebody else made or edited, with what its layers cost in this network.

    Raises:
        SeparableError: it converts a layer that never ran on the calibration images.
    """
    asked = {layer.name: layer for layer in plan.layers}
    running = {layer.name for layer in statistics.layers}
    for layer in plan.converted:
        if layer.name not in running:
            raise never_ran(layer.name)
    options = [
        Option(entry.order, entry.rank, entry.error) if (entry := asked.get(layer.name)) and entry.order else None
        for layer in statistics.layers
    ]
    counted = _plan(model, statistics, plan.method, options, [[] for _ in options], None)

    def explained(layer: LayerPlan) -> LayerPlan:
        given = asked.get(layer.name)
        if layer.name not in running or (given is not None and given.macs in (layer.macs, (0, 0))):
            return layer if given is None else replace(layer, reason=given.reason)
        return replace(layer, reason="as was asked for", error=0.0)  # those given are of what it was before

    return replace(counted, layers=tuple(map(explained, counted.layers)))


def check_choice(
    budget: Budget | None,
    rank: int | None,
    order: object,
    method: object,
    plan: Plan | None = None,
    keep: Sequence[str] = (),
) -> None:
    """Refuse arguments of `plan` and `convert` that break their rule."""
    if budget is not None and not isinstance(budget, Budget):
        raise SeparableValueError(f"budget={budget!r}: give a Budget, as Budget(macs=0.5)")
    if plan is not None:
        if not isinstance(plan, Plan):
            raise SeparableValueError(f"plan is a {type(plan).__name__}: give a Plan, as Plan.load(path)")
        if budget is not None or rank is not None or order is not None or keep:
            raise SeparableValueError("plan is given beside budget, rank, order or keep: it says all that they choose")
        if method not in ("least_squares", plan.method):
            raise SeparableValueError(f"method={method!r} is given beside a plan of method {plan.method!r}")
        return
    if (budget is None) == (rank is None):
        raise SeparableValueError(
            "give either budget=Budget(...) or rank=..., not " + ("neither" if rank is None else "both")
        )
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise SeparableValueError(f"rank={rank!r}: must be a whole number, at least 1")
    if order is not None and order not in get_args(Order):
        raise SeparableValueError(f"order={order!r}: must be one of {', '.join(get_args(Order))}, or None for either")
    if method not in get_args(Method):
        raise SeparableValueError(f"method={method!r}: must be one of {', '.join(get_args(Method))}")


@dataclass(frozen=True)
class BudgetProblem:
    """What each layer costs dense and at each of its choices, in the budget's unit, and the room for them all.

    Attributes:
        sizes: of each layer, the dense one first.
        rest: what the network costs besides.
        left: for the layers.
        engine: that was timed, where the unit is milliseconds.
    """

    sizes: list[list[float]]
    rest: float
    left: float
    engine: Engine | None

    def latency(self, picked: Sequence[int]) -> Latency | None:
        """The milliseconds of a choice for each layer."""
        if self.engine is None:
            return None
        dense, planned = (
            round(self.rest + sum(sizes[i] for i, sizes in zip(at, self.sizes, strict=True)), 6)
            for at in ([0] * len(picked), picked)
        )
        return Latency((dense, planned), self.engine, torch.get_num_threads())


def _room(
    statistics: Statistics,
    budget: Budget,
    choices: list[list[Choice]],
    method: Method,
    timed: Callable[[Engine], LayerTimes],
) -> BudgetProblem:
    """Measure what the layers cost, and the room for them.

    Raises:
        SeparableError: the cheapest choices exceed it.
    """
    engine = None if budget.kind != "latency_ms" else budget.engine or "compiled"
    cost_of = _cost_of(budget, method) if engine is None else timed(engine)
    sizes = [
        [cost_of(layer, None), *(cost_of(layer, c) for c in of)]
        for layer, of in zip(statistics.layers, choices, strict=True)
    ]
    limit = getattr(budget, budget.kind)
    if isinstance(cost_of, LayerTimes):
        # What the convertible layers do not account for stays: the network's time less theirs.
        dense, rest, left = 1.0, cost_of.rest, limit - cost_of.rest
    else:
        dense = {"macs": statistics.macs, "params": statistics.parameters}[budget.kind]
        rest = dense - sum(size[0] for size in sizes)
        left = limit * dense * (1 + 1e-12) - rest
    smallest = rest + sum(min(size) for size in sizes)
    if smallest > rest + left:
        least = f"{_rounded_up(smallest / dense)}{' ms' if engine else ''}"
        raise SeparableError(
            f"{budget} cannot be met: with every convertible layer at its smallest, "
            f"{budget.kind}={least} is reached. Raise the budget"
        )
    return BudgetProblem(sizes, rest, left, engine)


def _rounded_up(value: float) -> str:
    """Three digits, and no less than the value."""
    digit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(value / digit) * digit:.3g}"


def _plan(
    model: nn.Module,
    statistics: Statistics,
    method: Method,
    chosen: Sequence[Option | None],
    options: list[list[Option]],
    rank: int | None,
    latency: Latency | None = None,
) -> Plan:
    entries, macs, parameters = [], statistics.macs, statistics.parameters
    for layer, option, possible in zip(statistics.layers, chosen, options, strict=True):
        shape, words = _shape(model, layer.name), in_words(model.get_submodule(layer.name))
        dense = (layer.macs, layer.parameters)
        if option is None:
            reason = "worth more dense, within the budget" if possible else "no factorisation of it has fewer MACs"
            same: Any = {"macs": (dense[0], dense[0]), "parameters": (dense[1], dense[1])}
            entries.append(LayerPlan(layer.name, shape, None, 0, reason, **same, dense=words))
            continue
        planned = (_macs(layer, (option.order, option.rank)), _parameters(layer, (option.order, option.rank), method))
        macs += planned[0] - dense[0]
        parameters += planned[1] - dense[1]
        reason = _alternative(layer, option, possible, rank)
        entries.append(
            LayerPlan(
                layer.name, shape, option.order, option.rank, reason,
                (dense[0], planned[0]), (dense[1], planned[1]), option.error, words,
            )
        )  # fmt: skip
    for name, reason in statistics.kept.items():
        words = in_words(model.get_submodule(name))
        entries.append(LayerPlan(name, _shape(model, name), None, 0, reason, dense=words))
    return Plan(method, tuple(entries), (statistics.macs, macs), (statistics.parameters, parameters), latency)


def _alternative(layer: LayerStatistics, option: Option, possible: list[Option], rank: int | None) -> str:
    """Say what spoke for a choice: what the next better one would have cost, or the other order have lost."""
    if rank is not None:
        others = [o for o in possible if o.order != option.order]
        return f"{_in_words(others[0])} would lose {100 * others[0].error:.2g} %" if others else "as it was asked for"
    macs = _macs(layer, (option.order, option.rank))
    dearer = [(_macs(layer, (o.order, o.rank)) - macs, o) for o in possible if o.error < option.error]
    dearer = [(more, o) for more, o in dearer if more > 0]
    if not dearer:
        return "no factorisation of it with fewer MACs loses less"
    more, better = min(dearer, key=lambda pair: pair[0])
    return f"{_in_words(better)} would lose {100 * better.error:.2g} % for {more:,} more MACs"


def _in_words(option: Option) -> str:
    return f"{option.order.replace('_', ' ')} of rank {option.rank}"


def _shape(model: nn.Module, name: str) -> tuple[int, ...]:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, torch.Tensor)
    return tuple(weight.shape)


def _macs(layer: LayerStatistics, choice: Choice) -> int:
    return separable_macs(layer.spec, *choice, layer.input_pixels, layer.macs // layer.spec.weights)


def _parameters(layer: LayerStatistics, choice: Choice, method: Method) -> int:
    first, second = separable_specs(layer.spec, *choice)
    biased = method == "least_squares" or layer.spec.bias
    return first.weights + second.weights + (layer.spec.out_channels if biased else 0)


def _cost_of(budget: Budget, method: Method) -> Callable[[LayerStatistics, Choice | None], float]:
    """Return a function that counts what a layer costs dense (choice ``None``) or factorised, in the budget's unit."""
    if budget.kind == "macs":
        return lambda layer, choice: layer.macs if choice is None else _macs(layer, choice)
    return lambda layer, choice: layer.parameters if choice is None else _parameters(layer, choice, method)
