"""Timing a network in several engines in alternating rounds, after checking their outputs against PyTorch's."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from torch_separable._console.progress import progress_bar
from torch_separable._network.outputs import logits_of
from torch_separable.bench.engines import ENGINES, OURS, Engine, Job, Precision
from torch_separable.bench.noise import NoiseMeter
from torch_separable.bench.worker import Worker
from torch_separable.cost import analyze
from torch_separable.errors import MissingExtraError, SeparableError, SeparableValueError
from torch_separable.exporting.capture import LOGITS, capture, prepared_for_logits
from torch_separable.exporting.to_onnx import OPSET, to_onnx
from torch_separable.runtime.native.instruction_sets import chosen_set
from torch_separable.runtime.native.library import available
from torch_separable.runtime.profiling.roofline import Peak, measured_peak

# Largest accepted difference from PyTorch's float32 outputs, relative to the largest output. Random weights amplify
# rounding: PyTorch's own bfloat16 autocast differs by 0.14 on a MobileNetV1 with random weights. int8 is compared with
# the quantized network's own outputs: other runtimes round ties differently, and saturate on processors without VNNI,
# which random weights amplify to the outputs' own size. The table shows each engine's error.
TOLERANCE: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.3, "int8": 1.5}
_ROUND_MS = 100.0
_MOST_CALLS = 200


@dataclass(frozen=True)
class Timing:
    """The time of one engine.

    Attributes:
        engine: a key of `ENGINES`.
        precision: data type of its arithmetic.
        milliseconds: median over all calls, for the whole batch.
        quartiles: first and third quartile of the calls in milliseconds.
        calls: number of timed calls.
        error: largest difference from PyTorch's float32 outputs, relative to the largest output; of an engine in int8,
            from the exact outputs of the quantized network.
    """

    engine: str
    precision: Precision
    milliseconds: float
    quartiles: tuple[float, float]
    calls: int
    error: float

    @property
    def title(self) -> str:
        """The engine's name in tables."""
        return ENGINES[self.engine].title

    @property
    def is_ours(self) -> bool:
        """Whether the engine is this package's runtime."""
        return self.engine.startswith(OURS)


@dataclass(frozen=True)
class Case:
    """All engines at one number of threads and one batch size.

    Attributes:
        threads: number of threads of each engine.
        batch: images in a call.
        macs: multiply-accumulates of a call.
        timings: the engines that ran.
        peak: measured peak of the machine with these threads; ``None`` without the kernel library, which measures it.
        noise: sentences on other processes, stolen time and spread during the measurement; empty on a quiet machine.
    """

    threads: int
    batch: int
    macs: int
    timings: tuple[Timing, ...]
    peak: Peak | None
    noise: tuple[str, ...] = ()

    @property
    def int8_speedup(self) -> float | None:
        """Return how much faster int8 is than float32 in this package's runtime; ``None`` if either is missing."""
        ours, quantized = self.ours(), self.ours("int8")
        return None if ours is None or quantized is None else ours.milliseconds / quantized.milliseconds

    def ours(self, precision: Precision = "float32") -> Timing | None:
        """Return the timing of this package's runtime."""
        return next((t for t in self.timings if t.is_ours and t.precision == precision), None)

    def fastest_peer(self, precision: Precision = "float32") -> Timing | None:
        """Return the timing of the fastest other engine."""
        peers = (t for t in self.timings if not t.is_ours and t.precision == precision)
        return min(peers, key=lambda t: t.milliseconds, default=None)

    def ratio(self, precision: Precision = "float32") -> float | None:
        """Return the speedup over the fastest peer; ``None`` if either timing is missing."""
        ours, peer = self.ours(precision), self.fastest_peer(precision)
        return None if ours is None or peer is None else peer.milliseconds / ours.milliseconds

    def share_of_peak(self, timing: Timing) -> float | None:
        """Return the throughput relative to the float32 peak; ``None`` if unknown.

        A peak below the throughput of an engine was not the peak, so no shares are returned then.
        """
        if timing.precision != "float32" or self.peak is None or self.exceeds_peak:
            return None
        return self.gflops(timing) / self.peak.gflops

    @property
    def exceeds_peak(self) -> bool:
        """Whether an engine was faster than the measured peak, which is then too low."""
        fastest = max((self.gflops(t) for t in self.timings if t.precision == "float32"), default=0.0)
        return self.peak is not None and fastest > self.peak.gflops

    def gflops(self, timing: Timing) -> float:
        """Return 10⁹ floating-point operations per second, counting two per multiply-accumulate."""
        return 2 * self.macs / timing.milliseconds / 1e6


@dataclass(frozen=True)
class Benchmark:
    """A network in several engines, and optionally its dense counterpart.

    Attributes:
        network: name of the network.
        input_shape: shape of one image, (C, H, W).
        macs: multiply-accumulates for one image.
        rounds: number of rounds in which the engines alternated.
        cases: one entry per number of threads and batch size.
        problems: one sentence per engine that was left out, and per doubt about the figures.
        dense: the benchmark of the dense network.
    """

    network: str
    input_shape: tuple[int, ...]
    macs: int
    rounds: int
    cases: tuple[Case, ...]
    problems: tuple[str, ...] = ()
    dense: Benchmark | None = None

    def realized_speedup(self, case: Case) -> float | None:
        """Return the speedup divided by the MAC reduction, (dense ms ÷ ms) ÷ (dense MACs ÷ MACs).

        The dense time is that of the fastest peer, the other one that of this package's runtime.
        """
        twin = self.dense and next(
            (c for c in self.dense.cases if (c.threads, c.batch) == (case.threads, case.batch)), None
        )
        ours, theirs = case.ours(), twin.fastest_peer() if twin else None
        if not twin or ours is None or theirs is None:
            return None
        return (theirs.milliseconds / ours.milliseconds) / (twin.macs / case.macs)

    def to_dict(self) -> dict[str, Any]:
        """Return figures and ratios as JSON types."""
        cases = []
        for case in self.cases:
            entry = asdict(case)
            for timing, plain in zip(case.timings, entry["timings"], strict=True):
                plain["title"] = timing.title
                plain["gflops"] = case.gflops(timing)
                plain["share_of_peak"] = case.share_of_peak(timing)
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
    quantized: nn.Module | None = None,
    engines: Sequence[str] | None = None,
    threads: Sequence[int] | None = None,
    batches: Sequence[int] = (1, 8),
    rounds: int = 20,
    progress: bool = True,
) -> Benchmark:
    """Time a network in several engines on this machine's CPU.

    Each engine runs in its own process, because engines in one process slow each other down. The processes alternate
    in rounds of about 0.1 s, so that a change in the load of the machine affects all engines. Before timing, the
    outputs are compared with PyTorch's; an engine with other outputs is left out and named.

    Args:
        model: the network, with one input (N, C, H, W); its classes must be importable.
        images: the input, (N, C, H, W), repeated for larger batches.
        name: name of the network; by default that of its class.
        dense: the dense counterpart of ``model``, to compare the speedup with the MAC reduction.
        quantized: the network quantized by `quantize`, for the engines in int8. It may be ``model`` itself, which then
            only these engines run.
        engines: keys of `ENGINES`; by default all but those that take minutes to prepare.
        threads: numbers of threads; by default 1 and PyTorch's number.
        batches: numbers of images in a call.
        rounds: number of rounds of each engine.
        progress: whether to show a progress bar.

    Raises:
        SeparableError: an engine is unknown, a number is below 1, the network fails on these images, or no engine can
            run it.

    Example:
        >>> from torch_separable.models import mobilenet_v1
        >>> done = benchmark(
        ...     mobilenet_v1(0.25).eval(), torch.randn(1, 3, 64, 64), engines=["separable", "eager"], threads=[1],
        ...     batches=[1], rounds=2, progress=False,
        ... )
        >>> [timing.title for timing in done.cases[0].timings], done.cases[0].ratio() > 0
        (['torch-separable', 'PyTorch eager'], True)
    """
    wanted = default_engines(model, quantized) if engines is None else list(engines)
    for key in wanted:
        if key not in ENGINES:
            raise SeparableValueError(f"engine {key!r} is unknown: use {', '.join(ENGINES)}")
    counts = sorted({1, torch.get_num_threads()}) if threads is None else list(threads)
    for what, numbers in (("threads", counts), ("batches", batches), ("rounds", [rounds])):
        if not numbers or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers):
            raise SeparableValueError(f"{what}={numbers!r}: must be integers of at least 1")
    networks = {name or type(model).__name__: (model, quantized)}
    if dense is not None:
        networks[f"{name or type(model).__name__}, dense"] = (dense, None)
    steps = len(networks) * len(counts) * len(batches) * rounds
    with progress_bar("rounds", steps, shown=progress) as advance:
        first, *rest = (
            _benchmark(title, network, integer, images, wanted, counts, batches, rounds, advance)
            for title, (network, integer) in networks.items()
        )
    return replace(first, dense=rest[0] if rest else None)


def _benchmark(
    name: str, model: nn.Module, quantized: nn.Module | None, images: Tensor, engines: Sequence[str],
    threads: Sequence[int], batches: Sequence[int], rounds: int, advance: Callable[[], None],
) -> Benchmark:  # fmt: skip
    ready = prepared_for_logits(model, images.shape[1:], None)
    macs = analyze(ready, images[:1]).macs
    usable, problems = _usable(engines, quantized is not None)
    integer = {key: engine for key, engine in usable.items() if engine.precision == "int8"}
    floating = {key: engine for key, engine in usable.items() if key not in integer}
    networks = {"float32": ready} if floating else {}
    if quantized is not None and integer:
        networks["int8"] = ready if quantized is model else prepared_for_logits(quantized, images.shape[1:], None)
    if _is_constant(ready, images):
        problems.append("The outputs hardly depend on the images, so comparing them verifies little.")
    cases = []
    for batch in batches:
        called = images.repeat(-(-batch // len(images)), 1, 1, 1)[:batch].contiguous()
        files, expected = {}, {}
        for kind, network in networks.items():
            with torch.inference_mode():
                expected[kind] = logits_of(network(called))
            files[kind], complaint = _file(network, called, integer if kind == "int8" else floating)
            if complaint:
                problems.append(complaint)
        for count in threads:
            jobs = [
                Job(key, networks[kind], called, count, files[kind] if engine.onnx else None)
                for key, engine in usable.items()
                if files[kind := "int8" if key in integer else "float32"] or not engine.onnx
            ]
            noise: list[str] = []
            timings = _take_turns(jobs, expected, rounds, problems, noise, advance)
            peak = measured_peak(chosen_set(), count) if available() else None
            cases.append(Case(count, batch, macs * batch, timings, peak, tuple(noise)))
    if not any(case.timings for case in cases):
        raise SeparableError(f"no engine runs {name}: {' '.join(problems)}")
    return Benchmark(name, tuple(images.shape[1:]), macs, rounds, tuple(cases), tuple(dict.fromkeys(problems)))


def _is_constant(model: nn.Module, images: Tensor) -> bool:
    with torch.inference_mode():
        outputs, others = logits_of(model(images)), logits_of(model(torch.zeros_like(images)))
    return _difference(others, outputs) < 1e-3


def default_engines(model: nn.Module, quantized: nn.Module | None) -> list[str]:
    """Return the default engines; this package's bfloat16 engine only if the processor has bfloat16 instructions."""
    left_out = set() if _has_bfloat16() else {f"{OURS}_bf16"}
    left_out |= {key for key, engine in ENGINES.items() if engine.slow}
    if quantized is None or quantized is model:
        wrong = quantized is None
        left_out |= {key for key, engine in ENGINES.items() if (engine.precision == "int8") == wrong}
    return [key for key in ENGINES if key not in left_out]


def _usable(engines: Sequence[str], quantized: bool) -> tuple[dict[str, Engine], list[str]]:
    """Return the engines that can run here, and one sentence about each other engine."""
    usable, problems = {}, []
    for key in dict.fromkeys(engines):
        engine = ENGINES[key]
        if importlib.util.find_spec(engine.module) is None:
            problems.append(f"{engine.title} is not installed: pip install {engine.pip}.")
        elif engine.precision == "int8" and not quantized:
            problems.append(f"{engine.title} is left out: it needs the quantized network.")
        elif engine.precision == "bfloat16" and not key.startswith(OURS) and not _has_bfloat16():
            problems.append(f"{engine.title} is left out: this processor has no bfloat16 instructions.")
        else:
            usable[key] = engine
    return usable, problems


def _has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def _file(model: nn.Module, images: Tensor, engines: dict[str, Engine]) -> tuple[bytes | None, str]:
    """Return the network as ONNX for the engines that read it, or a sentence why it cannot be exported."""
    readers = [engine.title for engine in engines.values() if engine.onnx]
    if not readers:
        return None, ""
    try:
        return to_onnx(capture(model, images.shape[1:], len(images)), OPSET, {}, (LOGITS,)), ""
    except MissingExtraError as error:
        return None, f"{' and '.join(readers)} left out: {error}."
    except SeparableError as error:
        return None, f"{' and '.join(readers)} left out: {error}."


def _take_turns(
    jobs: Sequence[Job],
    expected: Mapping[str, Tensor],
    rounds: int,
    problems: list[str],
    noise: list[str],
    advance: Callable[[], None],
) -> tuple[Timing, ...]:
    with ExitStack() as stack:
        running: dict[str, tuple[Worker, float]] = {}
        started = [stack.enter_context(Worker(job)) for job in jobs]
        for job, worker in zip(jobs, started, strict=True):
            try:
                exact = expected["int8" if worker.engine.precision == "int8" else "float32"]
                error = _difference(worker.outputs(), exact)
                limit = TOLERANCE[worker.engine.precision]
                if not error <= limit:
                    problems.append(
                        f"{worker.engine.title} left out: its outputs differ from PyTorch's by {error:.1g} of their "
                        f"scale, above the limit {limit:g}."
                    )
                    continue
            except SeparableError as reason:
                problems.append(f"{reason}.")
                continue
            running[job.engine] = worker, error
        # The number of calls in a round, measured after every engine is prepared.
        calls = {e: max(1, min(_MOST_CALLS, int(_ROUND_MS / min(w.round(2))))) for e, (w, _) in running.items()}
        times: dict[str, list[float]] = {engine: [] for engine in running}
        meter = NoiseMeter(jobs[0].threads if jobs else 1)  # after the preparation, which uses all cores
        for _ in range(rounds):
            for engine, (worker, _) in running.items():
                times[engine] += worker.round(calls[engine])
            advance()
        timings = tuple(_timing(engine, times[engine], error) for engine, (_, error) in running.items())
        noise += meter.sentences({t.title: (t.milliseconds, t.quartiles) for t in timings})
    return timings


def _difference(got: Tensor, expected: Tensor) -> float:
    if got.shape != expected.shape:
        return float("inf")
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _timing(engine: str, times: list[float], error: float) -> Timing:
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return Timing(engine, ENGINES[engine].precision, middle, (low, high), len(times), error)
