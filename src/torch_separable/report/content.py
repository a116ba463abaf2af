"""The content of a report page as plain data: headline, steps, layers, epochs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch_separable.conversion import Plan
from torch_separable.errors import SeparableError
from torch_separable.report.facts import Facts, accuracy_sentence, costs_sentence, facts_of, speed_sentence
from torch_separable.report.fields import Pair, count, entries, number, optional_number, pair, text
from torch_separable.report.read import RunFiles


@dataclass(frozen=True)
class Step:
    """One network of the run; the first is the dense one."""

    name: str
    accuracy: float | None
    count: int | None
    macs: int
    parameters: int
    bytes: int | None


@dataclass(frozen=True)
class Times:
    """Milliseconds of both networks and the conditions of the measurement.

    Attributes:
        eager: (dense, separable) in eager PyTorch.
        compiled: (dense, separable) after `torch_separable.compile`; ``None`` if they were not measured.
        problem: why the networks were not compiled; empty if they were.
        images: images in one call.
        rounds: number of timed calls.
        threads: threads of PyTorch.
    """

    eager: Pair
    compiled: Pair | None
    problem: str
    images: int
    rounds: int
    threads: int

    @property
    def rows(self) -> tuple[TimeRow, ...]:
        """The networks in both engines, with their speedups over the dense network in eager PyTorch."""
        engines = [("eager", self.eager), *([] if self.compiled is None else [("compiled", self.compiled)])]
        return tuple(
            TimeRow(network, engine, pair[which], self.eager[0] / pair[which])
            for engine, pair in engines
            for which, network in enumerate(("dense", "separable"))
        )


@dataclass(frozen=True)
class TimeRow:
    """The time of one network in one engine, and its speedup over the dense network in eager PyTorch."""

    network: str
    engine: str
    milliseconds: float
    speedup: float


@dataclass(frozen=True)
class Card:
    """One figure of the headline: its title, value, and the values that it compares."""

    title: str
    value: str
    detail: str


@dataclass(frozen=True)
class Headline:
    """The headline of a run.

    Attributes:
        steps: the networks of the run.
        times: times of the first and the last network; ``None`` if they were not measured.
        facts: ratios of the first to the last network.
        cards: the figures to show.
        summary: one sentence on costs and accuracy.
        speed: sentences that compare the speedups with the MAC reduction.
        conditions: sentences on how the times were measured; empty without times.
        accuracy_images: one sentence on the images that the accuracies were measured on.
    """

    steps: tuple[Step, ...]
    times: Times | None
    facts: Facts
    cards: tuple[Card, ...]
    summary: str
    speed: str
    conditions: str
    accuracy_images: str


@dataclass(frozen=True)
class Row:
    """One layer before and after conversion.

    Attributes:
        name: module name, or the name of a group of layers.
        before: description of the dense layer.
        after: description of its replacement; empty if the layer is kept.
        reason: reason for the choice.
        parameters: (dense, separable); ``None`` if unknown, as for the following figures.
        macs: multiply-accumulates for one image.
        milliseconds: share of the network's time for the timed images.
        error: share of the output variance that the layer's own fit loses.
    """

    name: str
    before: str = ""
    after: str = ""
    reason: str = ""
    parameters: Pair | None = None
    macs: Pair | None = None
    milliseconds: Pair | None = None
    error: float | None = None

    @property
    def saving(self) -> float | None:
        """Return the MAC reduction, dense ÷ separable."""
        return self.macs[0] / self.macs[1] if self.macs and all(self.macs) else None


@dataclass(frozen=True)
class Layers:
    """The network layer by layer.

    Attributes:
        rows: the convolutions, in order.
        rest: the sum of all other operations.
        total: the whole network.
        how: one sentence on how the plan was made.
    """

    rows: tuple[Row, ...]
    rest: Row | None
    total: Row
    how: str


@dataclass(frozen=True)
class Point:
    """One point of the accuracy curve: a method at one budget."""

    method: str
    macs: float
    accuracy: float


@dataclass(frozen=True)
class Epoch:
    """One epoch of a training phase; with a fractional ``epoch``, the mean of several steps."""

    phase: str
    epoch: float
    loss: float | None
    agreement: float | None
    validation: float | None
    rate: float | None = None


def headline(results: dict[str, Any], plan: Plan | None = None) -> Headline:
    """Read the steps and times of a run, and compare the first network with the last.

    Args:
        results: the results of the run.
        plan: its plan, which may have been made for the compiled engine.

    Raises:
        SeparableError: a value is missing or has the wrong type; the message names it. The other readers of this module
            raise the same.
    """
    steps = tuple(_step(step, f"steps[{i}]") for i, step in enumerate(entries(results, "steps", "results")))
    if len(steps) < 2:
        raise SeparableError("results.steps has fewer than two steps")
    for i in (0, -1):
        if not steps[i].macs or not steps[i].parameters or steps[i].bytes == 0:
            raise SeparableError(f"{steps[i].name} has no MACs, parameters or bytes, so no ratio can be computed")
    times = times_of(results["milliseconds"]) if results.get("milliseconds") is not None else None
    facts = facts_of(results)
    latency = None if plan is None else plan.latency
    if times is not None and times.compiled is None and latency is not None and latency.engine == "compiled":
        # A run of an earlier release, which timed only eager PyTorch: the plan has the times of the compiled networks.
        planned = (latency.milliseconds.dense, latency.milliseconds.converted)
        times = replace(times, compiled=planned, problem="")
        facts = replace(facts, compiled=planned[0] / planned[1])
    images = "images" if results.get("kind") == "convert" else "held-out images"
    summary = f"{costs_sentence(facts)}, {accuracy_sentence(facts, steps[0].count, images)}."
    cards = tuple(_cards(steps, times, facts, results.get("conversion")))
    measured_on = _accuracy_images(results.get("data"), steps[0])
    conditions = "" if times is None else conditions_sentence(times)
    return Headline(steps, times, facts, cards, summary, speed_sentence(facts), conditions, measured_on)


def conditions_sentence(times: Times) -> str:
    """Return sentences on how the times were measured, and why the networks were not compiled if they were not."""
    images = f"{times.images} image{'' if times.images == 1 else 's'} per call"
    threads = f"{times.threads} thread{'' if times.threads == 1 else 's'}"
    sentence = f"Medians of {times.rounds} alternating calls, {images}, {threads}."
    return sentence + (f" The networks were not compiled: {times.problem}." if times.problem else "")


def _accuracy_images(data: Any, dense: Step) -> str:
    """Return a sentence on the images that the accuracies were measured on."""
    if dense.accuracy is None:
        return "Accuracy was not measured."
    known = data if isinstance(data, dict) else {}
    if known.get("seen_by_teacher") is True:
        return (
            f"Accuracies were measured on {dense.count:,} images that the teacher may have seen. They do not show how "
            "much accuracy was lost."
        )
    if known.get("train") is not None:
        trained, tried = count(known, "train", "data"), count(known, "test", "data")
        return f"{trained:,} training images; accuracies were measured on {tried:,} held-out images."
    if isinstance(known.get("split"), str):
        return f"Accuracies were measured on the {dense.count:,} images of the split {known['split']}."
    return f"Accuracies were measured on {dense.count:,} images."


def _step(step: Any, where: str) -> Step:
    accuracy = optional_number(step, "accuracy", where)
    return Step(
        text(step, "name", where),
        accuracy,
        None if accuracy is None else count(step, "count", where),
        count(step, "macs", where),
        count(step, "parameters", where),
        None if optional_number(step, "bytes", where) is None else count(step, "bytes", where),
    )


def times_of(times: Any) -> Times:
    """Read the times of a run."""
    where = "milliseconds"

    def both(holder: Any, where: str) -> Pair:
        found = number(holder, "dense", where), number(holder, "separable", where)
        if min(found) <= 0:
            raise SeparableError(f"{where} are not above 0")
        return found

    eager = both(times, where)
    compiled = times.get("compiled")
    return Times(
        eager,
        None if compiled is None else both(compiled, f"{where}.compiled"),
        text({"problem": "", **times}, "problem", where),
        *(count(times, key, where) for key in ("images", "rounds", "threads")),
    )


def _cards(steps: Sequence[Step], times: Times | None, facts: Facts, conversion: Any) -> list[Card]:
    dense, last = steps[0], steps[-1]
    cards = []
    if dense.accuracy is not None and last.accuracy is not None:
        seen = " that the teacher may have seen" if facts.seen_by_teacher else ""
        detail = f"{percent(dense.accuracy)} → {percent(last.accuracy)} of {last.count:,} images{seen}"
        cards.append(Card("accuracy", percent(last.accuracy), detail))
    elif conversion is not None:
        agreement = number(conversion, "agreement", "conversion")
        cards.append(
            Card("same class", percent(agreement), "on held-out calibration images; accuracy was not measured")
        )
    cards += [
        Card("fewer parameters", f"{facts.parameters:.2f}x", f"{dense.parameters:,} → {last.parameters:,}"),
        Card("fewer MACs", f"{facts.macs:.2f}x", f"{dense.macs:,} → {last.macs:,}"),
    ]
    if facts.bytes is not None:
        cards.append(Card("smaller weights", f"{facts.bytes:.2f}x", f"{dense.bytes:,} → {last.bytes:,} bytes"))
    if times is not None and facts.speed is not None and facts.realized_speedup is not None:
        engine, pair = ("eager", times.eager) if times.compiled is None else ("compiled", times.compiled)
        detail = f"{pair[0]:.3g} → {pair[1]:.3g} ms, {engine}"
        slower = facts.speed < 1
        cards.append(
            Card("as long" if slower else "as fast", f"{1 / facts.speed if slower else facts.speed:.2f}x", detail)
        )
        detail = f"{facts.macs:.2f}x fewer MACs, {facts.speed:.2f}x the speed"
        cards.append(Card("of the MAC reduction realized", f"{100 * facts.realized_speedup:.0f} %", detail))
    return cards


def percent(share: float) -> str:
    """Format a share as a percentage with two decimals."""
    return f"{100 * share:.2f} %"


def layers(run: RunFiles) -> Layers | None:
    """Join the plan of each convolution with its measurements; ``None`` if the run has neither."""
    measured = [_measured(row, f"layers[{i}]") for i, row in enumerate(_list_or_none(run.results, "layers"))]
    if run.plan is None:
        if not measured:
            return None
        named, unnamed = ([row for row in measured if bool(row.name) is has_name] for has_name in (True, False))
        return Layers(tuple(named), _rest(unnamed), _total(run, measured), "")
    by_name = {row.name: row for row in measured}
    rows = []
    for layer in run.plan.layers:
        seen = by_name.pop(layer.name, None)
        known = any(layer.macs) or any(layer.parameters)
        rows.append(
            Row(
                layer.name,
                layer.before,
                layer.after,
                layer.reason,
                seen.parameters if seen else layer.parameters if known else None,
                seen.macs if seen else layer.macs if known else None,
                seen.milliseconds if seen else None,
                layer.error if layer.order else None,
            )
        )
    total = _total(run, measured or rows)
    rest = _rest(list(by_name.values())) if measured else None
    return Layers(tuple(rows), rest, total, _how(run))


def _list_or_none(results: dict[str, Any], key: str) -> list[Any]:
    return [] if results.get(key) is None else entries(results, key, "results")


def _measured(row: Any, where: str) -> Row:
    return Row(
        text(row, "name", where),
        text(row, "type", where),
        parameters=pair(row, "parameters", where),
        macs=pair(row, "macs", where),
        milliseconds=pair(row, "milliseconds", where),
    )


def _total(run: RunFiles, rows: Sequence[Row]) -> Row:
    def whole(known: Pair | None, each: list[Pair | None]) -> Pair | None:
        return known if known and any(known) else _sum(each) if any(each) else None

    times = run.results.get("milliseconds")
    known = None if times is None else times_of(times)
    return Row(
        "whole network",
        parameters=whole(run.plan.parameters if run.plan else None, [row.parameters for row in rows]),
        macs=whole(run.plan.macs if run.plan else None, [row.macs for row in rows]),
        milliseconds=None if known is None else known.eager,
    )


def _rest(others: Sequence[Row]) -> Row:
    """Sum the operations that are not convolutions: normalisation, activations, additions, linear layers."""
    types = Counter(row.before for row in others if row.name)
    return Row(
        "everything else",
        ", ".join(f"{n} {kind}" for kind, n in types.items()),
        parameters=_sum([row.parameters for row in others]),
        macs=_sum([row.macs for row in others]),
        milliseconds=_sum([row.milliseconds for row in others]),
    )


def _sum(pairs: Sequence[Pair | None]) -> Pair:
    known = [p for p in pairs if p is not None]
    return sum(before for before, _ in known), sum(after for _, after in known)


def _how(run: RunFiles) -> str:
    assert run.plan is not None
    settings = run.config.get("settings")
    budget = settings.get("budget") if isinstance(settings, dict) else None
    if not run.plan.converted:
        return "No layer was converted."
    choice = (
        f"Within the budget {budget}, the ranks with the smallest sum of output errors, measured layer by layer."
        if isinstance(budget, str)
        else "The ranks were given."
    )
    fit = (
        "Kernels are fitted by least squares to the dense network's outputs."
        if run.plan.method == "least_squares"
        else "Kernels are the SVD of the weights."
    )
    return f"{choice} {fit}"


METHODS = {"least_squares": "least squares", "svd": "SVD of the weights (baseline)"}


def curve(results: dict[str, Any]) -> tuple[Point, ...]:
    """Read the networks at several budgets; empty if the run has none."""
    points = []
    for i, entry in enumerate(_list_or_none(results, "curve")):
        where = f"curve[{i}]"
        method = text(entry, "method", where)
        points.append(
            Point(METHODS.get(method, method), number(entry, "macs", where), number(entry, "accuracy", where))
        )
    return tuple(points)


_BINS = 200


def epochs(run: RunFiles) -> tuple[Epoch, ...]:
    """Read the epochs of the dense network's training, if the run has them, and of the distillation."""
    found = [_epoch(entry, "dense network", f"training[{i}]") for i, entry in enumerate(_training(run.results))]
    distillation = _list_or_none(run.results, "history") or [r for r in run.records if r.get("kind") == "epoch"]
    distillation = distillation or _list_or_none(run.results, "epochs")
    return (*found, *(_epoch(entry, "distillation", f"history[{i}]") for i, entry in enumerate(distillation)))


def _training(results: dict[str, Any]) -> list[Any]:
    return _list_or_none(results, "training")


def _epoch(entry: Any, phase: str, where: str) -> Epoch:
    validation = entry.get("validation") if isinstance(entry, dict) else None
    return Epoch(
        phase,
        count(entry, "epoch", where),
        optional_number(entry, "loss", where),
        optional_number(entry, "agreement", where),
        None if validation is None else number(validation, "accuracy", f"{where}.validation"),
        optional_number(entry, "learning_rate", where),
    )


def steps_of_training(run: RunFiles, done: Sequence[Epoch]) -> tuple[Epoch, ...]:
    """Return up to 200 mean losses of consecutive steps, positioned by epoch; empty if the run logged no steps."""
    steps = [record for record in run.records if record.get("kind") == "step"]
    ends = [record for record in run.records if record.get("kind") == "epoch" and record.get("epoch")]
    if not steps or not ends or not done:
        return ()
    per_epoch = count(ends[0], "step", "log") / count(ends[0], "epoch", "log")
    if not per_epoch:
        return ()
    size = -(-len(steps) // _BINS)
    means = []
    for start in range(0, len(steps), size):
        group = steps[start : start + size]
        losses = [number(record, "loss", "log") for record in group]
        middle = sum(number(record, "step", "log") for record in group) / len(group)
        means.append(Epoch("distillation", middle / per_epoch, sum(losses) / len(losses), None, None))
    return tuple(means)
