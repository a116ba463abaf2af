"""Timing a network in several engines, round by round, after their outputs have been checked against PyTorch's."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from torch_separable._console.progress import progress_bar
from torch_separable._network.outputs import logits_of
from torch_separable.bench.engines import ENGINES, OURS, Engine, Job, Precision
from torch_separable.bench.worker import Worker
from torch_separable.cost import analyze
from torch_separable.errors import MissingExtraError, SeparableError, SeparableValueError
from torch_separable.exporting.capture import capture, prepared
from torch_separable.exporting.to_onnx import OPSET, to_onnx
from torch_separable.runtime.native.bindings import available, chosen_set
from torch_separable.runtime.profiling.roofline import Peak, measured_peak

# Largest difference to PyTorch's float32 outputs, of their largest, at which an engine computes the same network.
# Random weights amplify what is rounded: PyTorch's own autocast to bfloat16 is 0.14 off on such a MobileNetV1.
TOLERANCE: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.3}
_ROUND_MS = 100.0
_MOST_CALLS = 200


@dataclass(frozen=True)
class Timing:
    """One engine's time.

    Attributes:
        engine: a name of `ENGINES`.
        precision: that it computed in.
        milliseconds: median over all calls, for the whole batch.
        quartiles: the middle half of the calls lies between these.
        calls: that were timed.
        error: largest difference to PyTorch's float32 outputs, of the largest of these.
    """

    engine: str
    precision: Precision
    milliseconds: float
    quartiles: tuple[float, float]
    calls: int
    error: float

    @property
    def title(self) -> str:
        """The engine's name as tables say it."""
        return ENGINES[self.engine].title

    @property
    def is_ours(self) -> bool:
        """Whether it is this package's runtime."""
        return self.engine.startswith(OURS)


@dataclass(frozen=True)
class Case:
    """All engines at one number of threads and one batch.

    Attributes:
        threads: of each engine.
        batch: images in a call.
        macs: multiply-accumulates of a call.
        timings: of the engines that ran.
        peak: what the machine can do with these threads; ``None`` without the kernel library, which measures it.
    """

    threads: int
    batch: int
    macs: int
    timings: tuple[Timing, ...]
    peak: Peak | None

    def ours(self, precision: Precision = "float32") -> Timing | None:
        """Return this package's timing."""
        return next((t for t in self.timings if t.is_ours and t.precision == precision), None)

    def fastest_peer(self, precision: Precision = "float32") -> Timing | None:
        """Return the fastest of the others."""
        peers = (t for t in self.timings if not t.is_ours and t.precision == precision)
        return min(peers, key=lambda t: t.milliseconds, default=None)

    def ratio(self, precision: Precision = "float32") -> float | None:
        """How many times faster than the fastest peer this package is; ``None`` where there are not both."""
        ours, peer = self.ours(precision), self.fastest_peer(precision)
        return None if ours is None or peer is None else peer.milliseconds / ours.milliseconds

    def gflops(self, timing: Timing) -> float:
        """Billions of floating-point operations a second, two for each multiply-accumulate."""
        return 2 * self.macs / timing.milliseconds / 1e6


@dataclass(frozen=True)
class Benchmark:
    """A network in several engines, and its dense twin, where there is one.

    Attributes:
        network: its name.
        input_shape: of one image, (C, H, W).
        macs: multiply-accumulates for one image.
        rounds: in which the engines took turns.
        cases: each number of threads and batch.
        problems: a sentence for every engine that did not take part.
        dense: the same of the network that it stands for.
    """

    network: str
    input_shape: tuple[int, ...]
    macs: int
    rounds: int
    cases: tuple[Case, ...]
    problems: tuple[str, ...] = ()
    dense: Benchmark | None = None

    def realized_speedup(self, case: Case) -> float | None:
        """How much of the promise of fewer MACs the clock keeps, 1 for all: (dense ms ÷ ms) ÷ (dense MACs ÷ MACs).

        The dense network's time is that of its fastest peer; ours is that of this package.
        """
        twin = self.dense and next(
            (c for c in self.dense.cases if (c.threads, c.batch) == (case.threads, case.batch)), None
        )
        ours, theirs = case.ours(), twin.fastest_peer() if twin else None
        if not twin or ours is None or theirs is None:
            return None
        return (theirs.milliseconds / ours.milliseconds) / (twin.macs / case.macs)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, the ratios with it."""
        cases = []
        for case in self.cases:
            entry = asdict(case)
            for timing, plain in zip(case.timings, entry["timings"], strict=True):
                plain["title"] = timing.title
                plain["gflops"] = case.gflops(timing)
            ratios = {precision: case.ratio(precision) for precision in TOLERANCE}
            cases.append({**entry, "ratio": ratios, "realized_speedup": self.realized_speedup(case)})
        return {
            "network": self.network,
            "input_shape": list(self.input_shape),
            "macs": self.macs,
            "rounds": self.rounds,
            "cases": cases,
            "problems": list(self.problems),
            "dense": self.dense and self.dense.to_dict(),
        }

    def __str__(self) -> str:
        from torch_separable.bench.render import benchmark_table

        return benchmark_table(self)

    def _repr_html_(self) -> str:
        from torch_separable.bench.render import benchmark_html

        return benchmark_html(self)


def benchmark(
    model: nn.Module,
    images: Tensor,
    *,
    name: str | None = None,
    dense: nn.Module | None = None,
    engines: Sequence[str] | None = None,
    threads: Sequence[int] | None = None,
    batches: Sequence[int] = (1, 8),
    rounds: int = 20,
    progress: bool = True,
) -> Benchmark:
    """Time a network in several engines on this machine's CPU.

    Each engine runs in a process of its own, for inside one they slow each other down; the processes take turns, a
    round of about a tenth of a second each, so that what slows the machine for a while slows all alike. Before that,
    their outputs are compared with PyTorch's: an engine that computes something else is no peer, and is named.

    Args:
        model: the network, of one tensor (N, C, H, W); its classes must be importable.
        images: to run, (N, C, H, W); they are repeated for larger batches.
        name: of the network; by default its class's.
        dense: the network that ``model`` stands for, to see whether fewer MACs are fewer milliseconds.
        engines: names of `ENGINES`; by default all but those that take minutes to prepare.
        threads: numbers of threads; by default one, and as many as PyTorch uses.
        batches: numbers of images in a call.
        rounds: of each engine.
        progress: whether a bar is shown.

    Raises:
        SeparableError: an engine's name is not known, a number is below 1, the network does not take these images, or
            no engine can run it.

    Example:
        >>> from torch_separable.models import mobilenet_v1
        >>> done = benchmark(
        ...     mobilenet_v1(0.25).eval(), torch.randn(1, 3, 64, 64), engines=["separable", "eager"], threads=[1],
        ...     batches=[1], rounds=2, progress=False,
        ... )
        >>> [timing.title for timing in done.cases[0].timings], done.cases[0].ratio() > 0
        (['torch-separable', 'PyTorch eager'], True)
    """
    wanted = _default() if engines is None else list(engines)
    for key in wanted:
        if key not in ENGINES:
            raise SeparableValueError(f"no engine is called {key}: known are {', '.join(ENGINES)}")
    counts = sorted({1, torch.get_num_threads()}) if threads is None else list(threads)
    for what, numbers in (("threads", counts), ("batches", batches), ("rounds", [rounds])):
        if not numbers or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers):
            raise SeparableValueError(f"{what}={numbers!r}: must be whole numbers, at least 1")
    networks = {name or type(model).__name__: model}
    if dense is not None:
        networks[f"{name or type(model).__name__}, dense"] = dense
    steps = len(networks) * len(counts) * len(batches) * rounds
    with progress_bar("rounds", steps, shown=progress) as advance:
        first, *rest = (
            _benchmark(title, network, images, wanted, counts, batches, rounds, advance)
            for title, network in networks.items()
        )
    return replace(first, dense=rest[0] if rest else None)


def _benchmark(
    name: str, model: nn.Module, images: Tensor, engines: Sequence[str], threads: Sequence[int],
    batches: Sequence[int], rounds: int, advance: Callable[[], None],
) -> Benchmark:  # fmt: skip
    ready = prepared(model, images.shape[1:])
    macs = analyze(ready, images[:1]).macs
    usable, problems = _usable(engines)
    if _is_constant(ready, images):
        problems.append("The outputs hardly depend on the images (an untrained network?): comparing them says little.")
    cases = []
    for batch in batches:
        called = images.repeat(-(-batch // len(images)), 1, 1, 1)[:batch].contiguous()
        with torch.inference_mode():
            expected = logits_of(ready(called))
        file, complaint = _file(ready, called, usable)
        if complaint:
            problems.append(complaint)
        for count in threads:
            jobs = [
                Job(key, ready, called, count, file if engine.onnx else None)
                for key, engine in usable.items()
                if file or not engine.onnx
            ]
            timings = _take_turns(jobs, expected, rounds, problems, advance)
            peak = measured_peak(chosen_set(), count) if available() else None
            cases.append(Case(count, batch, macs * batch, timings, peak))
    if not any(case.timings for case in cases):
        raise SeparableError(f"no engine runs {name}: {' '.join(problems)}")
    return Benchmark(name, tuple(images.shape[1:]), macs, rounds, tuple(cases), tuple(dict.fromkeys(problems)))


def _is_constant(model: nn.Module, images: Tensor) -> bool:
    with torch.inference_mode():
        outputs, others = logits_of(model(images)), logits_of(model(torch.zeros_like(images)))
    return _difference(others, outputs) < 1e-3


def _default() -> list[str]:
    """Engines that take part unasked; in bfloat16 this package's only where there are instructions for it."""
    ours = f"{OURS}_bf16"
    return [key for key, engine in ENGINES.items() if not engine.slow and (key != ours or _has_bfloat16())]


def _usable(engines: Sequence[str]) -> tuple[dict[str, Engine], list[str]]:
    """Split engines into those that can run here, and sentences about the others."""
    usable, problems = {}, []
    for key in dict.fromkeys(engines):
        engine = ENGINES[key]
        if importlib.util.find_spec(engine.module) is None:
            problems.append(f"{engine.title} is not installed: pip install {engine.pip}.")
        elif engine.precision == "bfloat16" and not key.startswith(OURS) and not _has_bfloat16():
            problems.append(f"{engine.title} is left out: this processor has no bfloat16 instructions.")
        else:
            usable[key] = engine
    return usable, problems


def _has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def _file(model: nn.Module, images: Tensor, engines: dict[str, Engine]) -> tuple[bytes | None, str]:
    """Write the network once for the engines that read a file; or a sentence why that cannot be."""
    readers = [engine.title for engine in engines.values() if engine.onnx]
    if not readers:
        return None, ""
    try:
        return to_onnx(capture(model, images.shape[1:], len(images)), OPSET, any_batch=False), ""
    except MissingExtraError as error:
        return None, f"{' and '.join(readers)} cannot take part: {error}."
    except SeparableError as error:
        return None, f"{' and '.join(readers)} cannot take part: {error}."


def _take_turns(
    jobs: Sequence[Job], expected: Tensor, rounds: int, problems: list[str], advance: Callable[[], None]
) -> tuple[Timing, ...]:
    with ExitStack() as stack:
        running: dict[str, tuple[Worker, float]] = {}
        started = [stack.enter_context(Worker(job)) for job in jobs]
        for job, worker in zip(jobs, started, strict=True):
            try:
                error = _difference(worker.outputs(), expected)
                limit = TOLERANCE[worker.engine.precision]
                if not error <= limit:
                    problems.append(
                        f"{worker.engine.title} computes something else: {error:.1g} of the outputs' scale, at most "
                        f"{limit:g} is allowed."
                    )
                    continue
            except SeparableError as reason:
                problems.append(f"{reason}.")
                continue
            running[job.engine] = worker, error
        # Now that all are prepared, how many calls a round is of.
        calls = {e: max(1, min(_MOST_CALLS, int(_ROUND_MS / min(w.round(2))))) for e, (w, _) in running.items()}
        times: dict[str, list[float]] = {engine: [] for engine in running}
        for _ in range(rounds):
            for engine, (worker, _) in running.items():
                times[engine] += worker.round(calls[engine])
            advance()
    return tuple(_timing(engine, times[engine], error) for engine, (_, error) in running.items())


def _difference(got: Tensor, expected: Tensor) -> float:
    if got.shape != expected.shape:
        return float("inf")
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _timing(engine: str, times: list[float], error: float) -> Timing:
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return Timing(engine, ENGINES[engine].precision, middle, (low, high), len(times), error)
