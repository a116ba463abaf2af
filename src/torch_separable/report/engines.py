"""The content of a benchmark page: the time of each engine, and the roofline of the operations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch_separable.errors import SeparableError
from torch_separable.report.fields import count, entries, number, optional_number, text


@dataclass(frozen=True)
class EngineTime:
    """The time of one engine in a case.

    Attributes:
        title: name of the engine.
        precision: data type of its arithmetic.
        milliseconds: median for the batch.
        gflops: 10⁹ floating-point operations per second.
        slower: its time divided by ours in the same precision; ``None`` for ours.
        share: share of the machine's measured float32 peak; ``None`` if unknown.
    """

    title: str
    precision: str
    milliseconds: float
    gflops: float
    slower: float | None
    share: float | None


@dataclass(frozen=True)
class EngineCase:
    """All engines at one number of threads and one batch size, sorted by time."""

    network: str
    threads: int
    batch: int
    times: tuple[EngineTime, ...]
    realized_speedup: float | None


@dataclass(frozen=True)
class RoofNode:
    """One operation of the roofline.

    Attributes:
        name: name of its layer.
        kind: kernel.
        milliseconds: time of one run.
        intensity: floating-point operations per byte.
        gflops: 10⁹ floating-point operations per second.
    """

    name: str
    kind: str
    milliseconds: float
    intensity: float
    gflops: float


@dataclass(frozen=True)
class Roof:
    """The operations of a compiled network and the measured limits of the machine.

    Attributes:
        nodes: the operations whose floating-point operations are known.
        gflops: peak of multiply-adds in registers, 10⁹ floating-point operations per second.
        cache: bandwidth of the second-level cache, GB/s.
        memory: bandwidth of memory, GB/s.
        threads: number of threads of the measurement.
        instruction_set: instruction set of the measurement.
    """

    nodes: tuple[RoofNode, ...]
    gflops: float
    cache: float
    memory: float
    threads: int
    instruction_set: str


def engine_cases(results: dict[str, Any]) -> tuple[EngineCase, ...]:
    """Read the cases of a benchmark, followed by those of the dense network; empty if the run has none.

    Raises:
        SeparableError: a value is missing or has the wrong type; the message names it. `roof` raises the same.
    """
    bench = results.get("bench")
    if bench is None:
        return ()
    found = list(_cases(bench, "bench"))
    if isinstance(bench, dict) and bench.get("dense") is not None:
        found += _cases(bench["dense"], "bench.dense")
    return tuple(found)


def engine_problems(results: dict[str, Any]) -> tuple[str, ...]:
    """Read why engines were left out, and which noise was found during the measurement."""
    bench = results.get("bench")
    if not isinstance(bench, dict):
        return ()
    listed = [bench.get("problems")]
    cases = bench.get("cases")
    listed += [case.get("noise") for case in cases if isinstance(case, dict)] if isinstance(cases, list) else []
    lines = [line for lines in listed if isinstance(lines, list | tuple) for line in lines if isinstance(line, str)]
    return tuple(dict.fromkeys(lines))


def _cases(bench: Any, where: str) -> list[EngineCase]:
    network = text(bench, "network", where)
    cases = []
    for i, case in enumerate(entries(bench, "cases", where)):
        at = f"{where}.cases[{i}]"
        peak = case.get("peak") if isinstance(case, dict) else None
        top = None if peak is None else _positive(peak, "gflops", f"{at}.peak")
        timings = entries(case, "timings", at)
        ours = {
            text(timing, "precision", at): _positive(timing, "milliseconds", at)
            for timing in timings
            if text(timing, "engine", at).startswith("separable")
        }
        times = []
        for timing in timings:
            precision, milliseconds = text(timing, "precision", at), _positive(timing, "milliseconds", at)
            gflops = number(timing, "gflops", at)
            mine = text(timing, "engine", at).startswith("separable")
            times.append(
                EngineTime(
                    text(timing, "title", at),
                    precision,
                    milliseconds,
                    gflops,
                    None if mine or precision not in ours else milliseconds / ours[precision],
                    None if top is None or precision != "float32" else gflops / top,
                )
            )
        if any(each.share is not None and each.share > 1 for each in times):  # the measured peak was not the peak
            times = [replace(each, share=None) for each in times]
        times.sort(key=lambda each: each.milliseconds)
        realized = optional_number(case, "realized_speedup", at)
        cases.append(EngineCase(network, count(case, "threads", at), count(case, "batch", at), tuple(times), realized))
    return cases


def roof(results: dict[str, Any]) -> Roof | None:
    """Read the operations of a compiled network; ``None`` if the run has none."""
    document = results.get("operations")
    if document is None:
        return None
    where = "operations"
    nodes = []
    for i, node in enumerate(entries(document, "nodes", where)):
        at = f"{where}.nodes[{i}]"
        if count(node, "flops", at) and count(node, "bytes", at):
            nodes.append(
                RoofNode(
                    text(node, "layer", at) or text(node, "name", at),
                    text(node, "kind", at),
                    _positive(node, "milliseconds", at),
                    _positive(node, "intensity", at),
                    _positive(node, "gflops", at),
                )
            )
    peak = document.get("peak")
    at = f"{where}.peak"
    gflops, cache, memory = (_positive(peak, name, at) for name in ("gflops", "cache", "memory"))
    return Roof(tuple(nodes), gflops, cache, memory, count(peak, "threads", at), text(peak, "instruction_set", at))


def _positive(holder: Any, key: str, where: str) -> float:
    value = number(holder, key, where)
    if value <= 0:
        raise SeparableError(f"{where}.{key} is {value!r}, not above 0")
    return value
