"""The plan that weighs rank and precision together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from torch_separable._console.progress import progress_bar
from torch_separable.conversion import Budget, Latency, LayerPlan, Plan, Reduction, Statistics
from torch_separable.conversion.layers import ConvertibleLayers
from torch_separable.conversion.planning.options import Choice, Option, macs_of, parameters_of, possible_choices
from torch_separable.conversion.planning.plan import Method, Precision
from torch_separable.conversion.planning.planner import assemble, measure_options
from torch_separable.conversion.solvers.factorize import Order
from torch_separable.errors import SeparableValueError
from torch_separable.mixed_precision.layers import PlannedLayer, planned_layers
from torch_separable.mixed_precision.problem import (
    Candidate,
    Problem,
    candidates_of,
    latency_sizes,
    reason,
    unreachable,
)
from torch_separable.mixed_precision.rounding_noise import RoundingNoise, measure_noise
from torch_separable.mixed_precision.timing import MeasuredTimes, measure_times
from torch_separable.quantization.equalize import equalize
from torch_separable.quantization.quantization import captured
from torch_separable.quantization.roles import Roles, assign_roles

_NOT_QUANTIZED = "no layer of the captured network, so it stays dense in float"


@dataclass(frozen=True)
class Request:
    """What a plan is made for.

    Attributes:
        budget: what the whole network may cost.
        precisions: that are allowed, int8 among them or not. Layers in ``"f32"`` and in ``"bf16"`` do not occur in one
            network, because the runtime computes all float layers in one type: each is tried, where both are given.
        order: allow only this order.
        method: how factors are found.
    """

    budget: Budget
    precisions: tuple[Precision, ...]
    order: Order | None
    method: Method


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def make_mixed_plan(
    model: nn.Module,
    layers: ConvertibleLayers,
    statistics: Statistics,
    held_out: Sequence[Tensor],
    request: Request,
    *,
    progress: bool,
) -> Plan:
    """Choose a form and a precision for every layer, exactly, within a budget.

    Args:
        model: the dense network.
        layers: its convolutions.
        statistics: of the images that are fitted to.
        held_out: images that the noise of rounding is measured on.
        request: budget, precisions and restrictions.
        progress: whether to show progress bars on a terminal.

    Raises:
        SeparableError: the budget cannot be met; the message contains the smallest that can.
    """
    batches = [batch.cpu().float() for batch in statistics.batches if isinstance(batch, Tensor)]
    graph = captured(model, batches[0].shape[1:])
    roles = assign_roles(graph.graph)
    choices = possible_choices(statistics, None, request.order)
    names = [layer.name for layer in statistics.layers]
    planned = planned_layers(graph, roles, dict(zip(names, choices, strict=True)))
    if not planned:
        raise SeparableValueError(
            f"{type(model).__name__} has no convolution or linear layer that a precision can be planned for"
        )
    combinations = _combinations(request.precisions)
    times = None
    if request.budget.kind == "latency_ms":
        every: tuple[Precision, ...] = ("f32", *(each for each in request.precisions if each != "f32"))
        times = measure_times(model, batches[0][:1], planned, every, progress=progress)
    # Before minutes of measuring, as a budget may be out of reach.
    sizes = {each: _sizes(request, statistics, planned, times, each) for each in combinations}
    reachable = [_empty(planned, times, *sizes[each], each) for each in combinations]
    unit = _unit(request.budget, statistics)
    least = min(problem.smallest() for problem in reachable)
    if all(problem.smallest() > problem.rest + problem.available for problem in reachable):
        raise unreachable(request.budget, request.budget.kind, least, unit)
    options, changes = measure_options(model, layers, statistics, choices, request.method, progress)
    noise = _noise(graph, roles, planned, batches, held_out, progress)
    by_choice = {
        name: dict(zip([option.choice for option in of], change, strict=True))
        for name, of, change in zip(names, options, changes, strict=True)
    }
    best: tuple[float, list[Candidate], Problem] | None = None
    for empty, precisions in zip(reachable, combinations, strict=True):
        if empty.smallest() > empty.rest + empty.available:
            continue
        size, _, _ = sizes[precisions]
        filled = replace(
            empty,
            layers=tuple(
                candidates_of(layer, by_choice.get(layer.name, {}), noise[layer.name], precisions, size)
                for layer in planned
            ),
        )
        chosen = filled.solve()
        total = sum(candidate.change for candidate in chosen)
        if best is None or total < best[0]:
            best = total, chosen, filled
    assert best is not None
    _, chosen, problem = best
    latency = None
    if times is not None:
        predicted = round(problem.cost(chosen), 6)
        latency = Latency(Reduction(round(times.whole["f32"], 6), predicted), "compiled", torch.get_num_threads())
    units = {"macs": "MACs", "parameters": "parameters", "latency_ms": "ms"}
    picked = dict(zip([layer.name for layer in planned], zip(chosen, problem.layers, strict=True), strict=True))
    found = {name: {option.choice: option for option in of} for name, of in zip(names, options, strict=True)}
    taken: list[Option | None] = []
    reasons = []
    for name in names:
        candidate = picked[name][0] if name in picked else None
        taken.append(None if candidate is None or candidate.choice is None else found[name][candidate.choice])
        reasons.append(reason(*picked[name], units[request.budget.kind]) if name in picked else _NOT_QUANTIZED)
    plan = assemble(model, statistics, request.method, taken, reasons, latency)
    return with_precisions(model, plan, {name: candidate.precision for name, (candidate, _) in picked.items()})


def with_precisions(model: nn.Module, plan: Plan, precisions: dict[str, Precision]) -> Plan:
    """Give the layers of a plan precisions, and add those that are no convolutions."""
    known = {layer.name for layer in plan.layers}
    layers = [replace(layer, precision=precisions.get(layer.name, layer.precision)) for layer in plan.layers]
    for name, precision in precisions.items():
        if name in known:
            continue
        try:
            module: Any = model.get_submodule(name)
            shape = tuple(module.weight.shape)
        except AttributeError:
            continue  # a function's weight, which no module holds
        layers.append(
            LayerPlan(
                name,
                shape,
                None,
                reason="no convolution: not factorised",
                dense=f"{type(module).__name__}({shape[1]}, {shape[0]})",
                precision=precision,
            )
        )
    return replace(plan, layers=tuple(layers))


def _combinations(precisions: tuple[Precision, ...]) -> list[tuple[Precision, ...]]:
    """Sets of precisions that one network can have: int8 and one float type."""
    floats = [each for each in precisions if each != "int8"]
    with_int8: tuple[Precision, ...] = ("int8",) if "int8" in precisions else ()
    return [(each, *with_int8) for each in floats] or [with_int8]


def _unit(budget: Budget, statistics: Statistics) -> float:
    return {"macs": statistics.macs, "parameters": statistics.parameters, "latency_ms": 1.0}[budget.kind]


Size = Callable[[PlannedLayer, Choice | None, Precision], float]


def _sizes(
    request: Request,
    statistics: Statistics,
    layers: Sequence[PlannedLayer],
    times: MeasuredTimes | None,
    precisions: tuple[Precision, ...],
) -> tuple[Size, float, float]:
    """Return the cost of a form, the cost outside the layers, and what is available for them."""
    limit, unit = getattr(request.budget, request.budget.kind), _unit(request.budget, statistics)
    if times is not None:
        size, rest = latency_sizes(times, layers, precisions)
        return size, rest, limit - rest
    known = {layer.name: layer for layer in statistics.layers}

    def count(layer: PlannedLayer, choice: Choice | None, precision: Precision) -> float:
        if layer.name not in known:
            return 0.0  # no factorisation changes it: it is a part of the rest
        if request.budget.kind == "macs":
            return macs_of(known[layer.name], choice)
        return parameters_of(known[layer.name], choice, request.method)

    rest = unit - sum(count(layer, None, "f32") for layer in layers)
    return count, rest, limit * unit * (1 + 1e-12) - rest


def _empty(
    layers: Sequence[PlannedLayer],
    times: MeasuredTimes | None,
    size: Size,
    rest: float,
    available: float,
    precisions: tuple[Precision, ...],
) -> Problem:
    """A problem whose candidates have sizes but change nothing."""
    borders = [(0.0, 0.0)] * len(layers)
    if times is not None and "int8" in precisions:
        borders = [times.border(layer) for layer in layers]
    candidates = tuple(
        tuple(
            Candidate(choice, precision, 0.0, size(layer, choice, precision))
            for choice in (None, *layer.choices)
            for precision in precisions
        )
        for layer in layers
    )
    return Problem(candidates, tuple(borders), available, rest)


def _noise(
    graph: fx.GraphModule,
    roles: Roles,
    layers: Sequence[PlannedLayer],
    batches: Sequence[Tensor],
    held_out: Sequence[Tensor],
    progress: bool,
) -> dict[str, RoundingNoise]:
    equalize(graph, roles, batches)
    with progress_bar("measuring rounding", len(layers), shown=progress) as advance:
        return measure_noise(graph, roles, layers, batches, held_out, advance)
