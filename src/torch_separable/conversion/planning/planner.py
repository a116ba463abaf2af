"""Make a plan: one rank for all layers, or the choices that change the outputs least within a budget."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import get_args

import torch
from torch import nn

from torch_separable._console.progress import progress_bar
from torch_separable._network.checks import as_network
from torch_separable.conversion.calibration.moments import layer_moments
from torch_separable.conversion.calibration.replay_cache import ReplayCache
from torch_separable.conversion.calibration.statistics import (
    LayerStatistics,
    Statistics,
    check_statistics,
    unreached_layer,
)
from torch_separable.conversion.convolutions import describe_convolution
from torch_separable.conversion.layers import ConvertibleLayers, find_convertible
from torch_separable.conversion.planning.budget import Budget
from torch_separable.conversion.planning.budget_problem import budget_problem
from torch_separable.conversion.planning.latency import time_layers
from torch_separable.conversion.planning.options import (
    Choice,
    Option,
    fit_options,
    macs_of,
    parameters_of,
    possible_choices,
)
from torch_separable.conversion.planning.plan import Latency, LayerPlan, Method, Plan
from torch_separable.conversion.planning.sensitivity import measure_changes
from torch_separable.conversion.reduction import Reduction
from torch_separable.conversion.solvers.factorize import Order
from torch_separable.conversion.solvers.knapsack import solve_knapsack
from torch_separable.errors import SeparableValueError

_EDITED = "edited"
_MET = "the dense network meets the budget"


def plan(
    model: nn.Module,
    statistics: Statistics,
    *,
    budget: Budget | None = None,
    rank: int | None = None,
    order: Order | None = None,
    method: Method = "least_squares",
    progress: bool = True,
) -> Plan:
    """Choose for each convolution whether it stays dense, or its order and rank.

    With ``rank``, every convertible layer takes this rank (at most the taps of its kernel). Without ``order``, it takes
    the order that loses less among those with fewer MACs than the dense layer (among both, where neither has fewer).
    With ``budget``, the sum over layers of the mean squared change of the network's *outputs* is minimised exactly
    within the budget (a multiple-choice knapsack). That is the optimum as far as the changes of several layers add up.

    Args:
        model: the dense network.
        statistics: from `calibrate`.
        budget: what the whole network may cost.
        rank: one rank for all layers, instead of a budget.
        order: allow only this order.
        method: ``"least_squares"``, or ``"svd"`` for the baseline that uses the weights alone.
        progress: whether to show a progress bar on a terminal.

    Raises:
        SeparableError: the budget cannot be met; the message contains the smallest that can.
        SeparableValueError: an argument has a value that its rule forbids.

    Example:
        >>> from torch_separable.conversion import calibrate
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        >>> chosen = plan(net, calibrate(net, torch.randn(16, 3, 12, 12)), budget=Budget(macs=0.5))
        >>> chosen.macs.converted <= 0.5 * chosen.macs.dense
        True
    """
    check_choice(budget, rank, order, method)
    layers = find_convertible(as_network(model))
    check_statistics(model, statistics, layers.convertible)
    return make_plan(model, layers, statistics, budget=budget, rank=rank, order=order, method=method, progress=progress)


def plans(
    model: nn.Module,
    statistics: Statistics,
    budgets: Sequence[Budget],
    *,
    order: Order | None = None,
    method: Method = "least_squares",
    progress: bool = True,
) -> list[Plan]:
    """Make a plan for each budget; the layers are measured once. Arguments and errors are those of `plan`."""
    layers = find_convertible(as_network(model))
    check_statistics(model, statistics, layers.convertible)
    return make_plans(model, layers, statistics, budgets, order=order, method=method, progress=progress)


def make_plan(
    model: nn.Module,
    layers: ConvertibleLayers,
    statistics: Statistics,
    *,
    budget: Budget | None,
    rank: int | None,
    order: Order | None,
    method: Method,
    progress: bool = True,
) -> Plan:
    """Make a plan for checked arguments. See `plan`."""
    if budget is not None:
        return make_plans(model, layers, statistics, [budget], order=order, method=method, progress=progress)[0]
    assert rank is not None
    choices = possible_choices(statistics, rank, order)
    options, _ = measure_options(model, layers, statistics, choices, method, progress, every=True)
    chosen = [
        min(of, key=lambda option: (macs_of(layer, option.choice) >= layer.macs, option.error))
        for layer, of in zip(statistics.layers, options, strict=True)
    ]
    reasons = [_other_order(option, of) for option, of in zip(chosen, options, strict=True)]
    return assemble(model, statistics, method, chosen, reasons)


def make_plans(
    model: nn.Module,
    layers: ConvertibleLayers,
    statistics: Statistics,
    budgets: Sequence[Budget],
    *,
    order: Order | None,
    method: Method,
    progress: bool = True,
) -> list[Plan]:
    """Make a plan for each budget. See `plan`."""
    choices = possible_choices(statistics, None, order)
    timed = cache(partial(time_layers, model, layers, statistics, choices))
    # Before minutes of measuring, as a budget may be out of reach.
    problems = [budget_problem(statistics, budget, choices, method, timed) for budget in budgets]
    for budget, problem in zip(budgets, problems, strict=True):
        if problem.met:
            warnings.warn(f"the dense network already meets {budget}: no layer is converted", stacklevel=4)
    measured = not all(problem.met for problem in problems)
    options, changes = measure_options(model, layers, statistics, choices, method, progress) if measured else ([], [])
    result = []
    for problem in problems:
        if problem.met:
            dense = len(statistics.layers)
            picked = [0] * dense
            result.append(assemble(model, statistics, method, [None] * dense, [_MET] * dense, problem.latency(picked)))
            continue
        picked = solve_knapsack([[0.0, *change] for change in changes], problem.sizes, problem.available)
        chosen = [None if i == 0 else of[i - 1] for i, of in zip(picked, options, strict=True)]
        reasons = [
            _next_better(layer, option, of)
            for layer, option, of in zip(statistics.layers, chosen, options, strict=True)
        ]
        result.append(assemble(model, statistics, method, chosen, reasons, problem.latency(picked)))
    return result


def recount(model: nn.Module, statistics: Statistics, plan: Plan) -> Plan:
    """Return a plan that was loaded or edited, with what its layers cost in this network.

    Raises:
        SeparableError: it converts a layer that never ran on the calibration images.
    """
    given = {layer.name: layer for layer in plan.layers}
    running = {layer.name for layer in statistics.layers}
    for layer in plan.converted:
        if layer.name not in running:
            raise unreached_layer(layer.name)
    options = [
        Option(entry.order, entry.rank, entry.error) if (entry := given.get(layer.name)) and entry.order else None
        for layer in statistics.layers
    ]
    counted = assemble(model, statistics, plan.method, options, [_EDITED] * len(options))

    def with_reason(layer: LayerPlan) -> LayerPlan:
        before = given.get(layer.name)
        if before is not None:
            layer = replace(layer, precision=before.precision)
        if layer.name not in running or (before is not None and before.macs in (layer.macs, (0, 0))):
            return layer if before is None else replace(layer, reason=before.reason)
        # The given reason and error belong to the choice before the edit.
        return replace(layer, reason=_EDITED, error=0.0)

    # Layers that are no convolutions stand in a plan for their precision alone.
    names = {layer.name for layer in counted.layers}
    others = tuple(layer for layer in plan.layers if layer.name not in names and layer.precision != "f32")
    return replace(counted, layers=(*map(with_reason, counted.layers), *others))


def check_choice(
    budget: Budget | None,
    rank: int | None,
    order: object,
    method: object,
    plan: Plan | None = None,
    exclude: Sequence[str] = (),
) -> None:
    """Raise an error for arguments of `plan` and `convert` that break their rule."""
    if budget is not None and not isinstance(budget, Budget):
        raise SeparableValueError(f"budget={budget!r}: give a Budget, such as Budget(macs=0.5)")
    if plan is not None:
        if not isinstance(plan, Plan):
            raise SeparableValueError(f"plan is a {type(plan).__name__}: give a Plan, such as Plan.load(path)")
        given = {"budget": budget, "rank": rank, "order": order, "exclude": exclude or None}
        beside = [name for name, value in given.items() if value is not None]
        if beside:
            raise SeparableValueError(f"plan and {beside[0]} are both given: the plan already decides it")
        if method not in ("least_squares", plan.method):
            raise SeparableValueError(f"method={method!r} contradicts the plan, whose method is {plan.method!r}")
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


def measure_options(
    model: nn.Module,
    layers: ConvertibleLayers,
    statistics: Statistics,
    choices: list[list[Choice]],
    method: Method,
    progress: bool,
    *,
    every: bool = False,
) -> tuple[list[list[Option]], list[list[float]]]:
    """Fit the choices of each layer, and measure how much they change the network's outputs.

    With ``every``, all choices are fitted, and no change is measured.
    """
    options: list[list[Option]] = []
    changes: list[list[float]] = []
    replay = ReplayCache(statistics.memory // 4)
    with progress_bar("measuring layers", len(statistics.layers), shown=progress) as advance:
        for layer, allowed in zip(statistics.layers, choices, strict=True):
            options.append([])
            changes.append([])
            if allowed:
                conv = layers.convertible[layer.name]
                moments = layer_moments(model, conv, statistics, layer.name)
                options[-1] = fit_options(layer, conv, moments, allowed, method, every=every)
                if not every:
                    changes[-1] = measure_changes(model, statistics, conv, moments, options[-1], method, replay)
            advance(layer.name)
    return options, changes


def assemble(
    model: nn.Module,
    statistics: Statistics,
    method: Method,
    chosen: Sequence[Option | None],
    reasons: Sequence[str],
    latency: Latency | None = None,
) -> Plan:
    """Put a plan together from a choice and a reason for each layer, with the costs counted."""
    entries = []
    for layer, option, reason in zip(statistics.layers, chosen, reasons, strict=True):
        choice = None if option is None else option.choice
        entries.append(
            LayerPlan(
                layer.name,
                _weight_shape(model, layer.name),
                None if option is None else option.order,
                0 if option is None else option.rank,
                reason,
                Reduction(layer.macs, macs_of(layer, choice)),
                Reduction(layer.parameters, parameters_of(layer, choice, method)),
                0.0 if option is None else option.error,
                describe_convolution(model.get_submodule(layer.name)),
            )
        )
    macs = statistics.macs + sum(entry.macs.converted - entry.macs.dense for entry in entries)
    parameters = statistics.parameters + sum(e.parameters.converted - e.parameters.dense for e in entries)
    entries += [
        LayerPlan(
            name, _weight_shape(model, name), None, reason=reason, dense=describe_convolution(model.get_submodule(name))
        )
        for name, reason in statistics.skipped.items()
    ]
    return Plan(
        method,
        tuple(entries),
        Reduction(statistics.macs, macs),
        Reduction(statistics.parameters, parameters),
        latency,
    )


def _next_better(layer: LayerStatistics, option: Option | None, options: list[Option]) -> str:
    """Return as the reason for a choice what the next better option would have cost."""
    if option is None:
        return "dense is best within the budget" if options else "no factorisation has fewer MACs"
    macs = macs_of(layer, option.choice)
    better = [(macs_of(layer, o.choice) - macs, o) for o in options if o.error < option.error]
    better = [(more, o) for more, o in better if more > 0]
    if not better:
        return "no factorisation with fewer MACs loses less"
    more, alternative = min(better, key=lambda pair: pair[0])
    return f"{_choice_text(alternative)} would lose {100 * alternative.error:.2g} % for {more:,} more MACs"


def _other_order(option: Option, options: list[Option]) -> str:
    """Return as the reason for an order what the other order would lose."""
    others = [o for o in options if o.order != option.order]
    return f"{_choice_text(others[0])} would lose {100 * others[0].error:.2g} %" if others else "order was given"


def _choice_text(option: Option) -> str:
    return f"{option.order.replace('_', ' ')} of rank {option.rank}"


def _weight_shape(model: nn.Module, name: str) -> tuple[int, ...]:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, torch.Tensor)
    return tuple(weight.shape)
