"""What the page of a benchmark shows: each engine's time, and every operation under the machine's roof."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch_separable.errors import SeparableError
from torch_separable.report.fields import count, entries, number, optional_number, text


@dataclass(frozen=True)
class EngineTime:
    """One engine's time in a case.

    Attributes:
        title: of the engine.
        precision: that it computes in.
        milliseconds: median for the batch.
        gflops: billions of floating-point operations a second.
        slower: its time as a multiple of ours in the same precision, or ``None`` for ours.
        share: of the machine's measured float32 peak, where there is one.
    """

    title: str
    precision: str
    milliseconds: float
    gflops: float
    slower: float | None
    share: float | None


@dataclass(frozen=True)
class EngineCase:
    """All engines at one number of threads and one batch, the fastest first."""

    network: str
    threads: int
    batch: int
    times: tuple[EngineTime, ...]
    realized_speedup: float | None


@dataclass(frozen=True)
class RoofNode:
    """One operation under the roof.

    Attributes:
        name: its layer.
        kind: which kernel.
        milliseconds: of one run.
        intensity: floating-point operations a byte.
        gflops: billions of them a second.
    """

    name: str
    kind: str
    milliseconds: float
    intensity: float
    gflops: float


@dataclass(frozen=True)
class Roof:
    """A compiled network's operations, and what the machine allows at best.

    Attributes:
        nodes: those whose operations are counted.
        gflops: billions of multiply-adds' operations a second, in registers.
        cache: gigabytes a second from the second-level cache.
        memory: gigabytes a second from memory.
        threads: that were measured.
        instruction_set: that was measured.
    """

    nodes: tuple[RoofNode, ...]
    gflops: float
    cache: float
    memory: float
    threads: int
    instruction_set: str


def engine_cases(results: dict[str, Any]) -> tuple[EngineCase, ...]:
    """Read the cases of a benchmark, the network's and then its dense twin's; empty where the run has none.

    Raises:
        SeparableError: something is missing or of another kind; the message names it. So below.
    """
    bench = results.get("bench")
    if bench is None:
        return ()
    found = list(_cases(bench, "bench"))
    if isinstance(bench, dict) and bench.get("dense") is not None:
        found += _cases(bench["dense"], "bench.dense")
    return tuple(found)


def engine_problems(results: dict[str, Any]) -> tuple[str, ...]:
    """Read why engines took no part."""
    bench = results.get("bench")
    said = bench.get("problems") if isinstance(bench, dict) else None
    return tuple(line for line in said if isinstance(line, str)) if isinstance(said, list) else ()


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
        times.sort(key=lambda each: each.milliseconds)
        kept = optional_number(case, "realized_speedup", at)
        cases.append(EngineCase(network, count(case, "threads", at), count(case, "batch", at), tuple(times), kept))
    return cases


def roof(results: dict[str, Any]) -> Roof | None:
    """Read the operations of a compiled network; ``None`` where the run has none."""
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
