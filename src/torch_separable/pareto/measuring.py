"""Measure a frontier: the quality of every candidate, and their milliseconds in alternating rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from torch_separable._console.progress import progress_bar
from torch_separable._network.ambient import default_settings
from torch_separable._network.checks import as_network, require_float32
from torch_separable._network.outputs import predictions
from torch_separable._system.hardware import processor
from torch_separable.bench.engines import Job
from torch_separable.bench.noise import NoiseMeter
from torch_separable.bench.worker import Worker
from torch_separable.conversion import Budget
from torch_separable.conversion.calibration.images import hold_out, split_batches
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.pareto.candidates import PEERS, Candidate, eager, ours, outputs_of, peers
from torch_separable.pareto.points import Frontier, Point, Quality

Metric = Callable[[Tensor], float]

BUDGETS = (Budget(macs=0.7), Budget(macs=0.5), Budget(macs=0.35))
_ROUND_MS, _MOST_CALLS = 100.0, 200


@default_settings()
def frontier(
    model: nn.Module,
    images: Tensor,
    *,
    test_images: Tensor | None = None,
    labels: Tensor | None = None,
    metric: Metric | None = None,
    budgets: Sequence[Budget] = BUDGETS,
    engines: Sequence[str] | None = None,
    threads: int = 1,
    rounds: int = 20,
    progress: bool = True,
) -> Frontier:
    """Measure accuracy against milliseconds for a network in every form, precision and engine.

    The dense network and the networks converted within ``budgets`` run in float32, bfloat16 (where the processor has
    instructions for it) and int8 in this package's runtime, the dense one in the other engines too. Each runs in its
    own process; the processes take turns in rounds of about 0.1 s. ``model`` is not changed.

    Args:
        model: the trained network, one input (N, C, H, W); its classes must be importable.
        images: 256 to 1,024 unlabelled images, prepared as in training, (N, C, H, W), which everything is fitted to.
        test_images: images that quality is measured on; by default a quarter of ``images``, which is held out.
        labels: classes of ``test_images``, (N,): the quality is the accuracy. Without them it is the share of the
            images with the same predicted class as the dense network in float32.
        metric: function of the network's outputs for all test images, (N, ...), to a number of which more is better;
            instead of accuracy.
        budgets: for the converted networks. One of milliseconds plans ranks and precisions together.
        engines: keys of `PEERS`, to compare with; by default those that are installed.
        threads: number of threads of each engine.
        rounds: number of rounds of each.
        progress: whether to show progress bars on a terminal.

    Raises:
        SeparableError: the network fails on these images, or the images cannot be used.
        SeparableValueError: an argument breaks its rule; labels are out of range.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 6), nn.Flatten()).eval()
        >>> found = frontier(net, torch.randn(32, 3, 8, 8), budgets=[], engines=[], rounds=2, progress=False)
        >>> [point.precision for point in found.points if point.precision != "bf16"], len(found.best) >= 1
        (['f32', 'int8'], True)
    """
    require_float32(as_network(model), "model", "frontier")
    fitted, tested = images_of(images, test_images)
    _check(tested, labels, metric, budgets, threads, rounds)
    wanted = list(PEERS) if engines is None else list(engines)
    for key in wanted:
        if key not in PEERS:
            raise SeparableValueError(f"engine {key!r} is unknown: use {', '.join(PEERS)}")
    problems: list[str] = []
    reference = outputs_of(eager(model), tested)
    _check_labels(labels, reference)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # a plan in milliseconds is one for this number of threads
    try:
        candidates = [*ours(model, fitted, budgets, problems, progress=progress)]
        candidates += peers(model, fitted, wanted, problems)
    finally:
        torch.set_num_threads(before)
    judge = judge_of(reference, labels, metric)
    with progress_bar("measuring quality", len(candidates), shown=progress) as advance:
        values = []
        for candidate in candidates:
            values.append(judge(outputs_of(candidate.predict, tested)))
            advance(candidate.form)
    image = tested[:1].contiguous()
    noise: list[str] = []
    with progress_bar("rounds", rounds, shown=progress) as advance:
        times = _take_turns(candidates, image, threads, rounds, noise, problems, advance)
    points = []
    for candidate, value, measured in zip(candidates, values, times, strict=True):
        if measured:
            low, middle, high = statistics.quantiles(measured, n=4) if len(measured) > 1 else measured * 3
            points.append(
                Point(candidate.form, candidate.title, candidate.precision, middle, (low, high), value, candidate.macs)
            )
    if not points:
        raise SeparableError(f"nothing runs {type(model).__name__}: {' '.join(problems)}")
    kind: Quality = "metric" if metric is not None else "accuracy" if labels is not None else "agreement"
    shape = tuple(tested.shape[1:])
    return Frontier(
        tuple(points), kind, len(tested), shape, 1, threads, rounds, processor(), tuple(noise), tuple(problems)
    )


def images_of(images: object, test_images: object) -> tuple[Tensor, Tensor]:
    """Return the images that everything is fitted to, and those that quality is measured on."""
    for name, given in (("images", images), ("test_images", test_images)):
        if given is not None and not (isinstance(given, Tensor) and given.dim() == 4 and given.is_floating_point()):
            what = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise SeparableValueError(f"{name} ({what}): must be a floating-point tensor (N, C, H, W)")
    assert isinstance(images, Tensor)
    batches = split_batches(images)
    if isinstance(test_images, Tensor):
        if test_images.shape[1:] != images.shape[1:]:
            raise SeparableValueError(
                f"test_images of shape {tuple(test_images.shape[1:])}: images have {tuple(images.shape[1:])}"
            )
        return images.cpu().float(), test_images.cpu().float()
    fitted, held_out = ([b for b in part if isinstance(b, Tensor)] for part in hold_out(batches))
    return torch.cat(fitted).cpu().float(), torch.cat(held_out).cpu().float()


def _check(
    tested: Tensor,
    labels: Tensor | None,
    metric: Metric | None,
    budgets: Sequence[Budget],
    threads: int,
    rounds: int,
) -> None:
    if not len(tested):
        raise SeparableValueError("test_images: at least one image is needed")
    if labels is not None and metric is not None:
        raise SeparableValueError("labels and metric are both given: give one of them")
    if labels is not None and (labels.dim() != 1 or len(labels) != len(tested) or labels.is_floating_point()):
        raise SeparableValueError(
            f"labels have shape {tuple(labels.shape)} and type {labels.dtype}: one class index is needed for each of "
            f"the {len(tested)} test images. Give test_images, which they belong to"
        )
    if not all(isinstance(budget, Budget) for budget in budgets):
        raise SeparableValueError("budgets: give a list of Budget, such as [Budget(macs=0.5)]")
    for name, number in (("threads", threads), ("rounds", rounds)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise SeparableValueError(f"{name}={number!r}: must be a whole number of at least 1")


def _check_labels(labels: Tensor | None, outputs: Tensor) -> None:
    if labels is None:
        return
    classes = 2 if outputs.dim() < 2 or outputs.shape[1] == 1 else outputs.shape[1]
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise SeparableValueError(
            f"labels lie in {int(labels.min())}..{int(labels.max())}, but the network has {classes} classes, "
            f"0..{classes - 1}"
        )


def judge_of(reference: Tensor, labels: Tensor | None, metric: Metric | None) -> Callable[[Tensor], float]:
    """Return what gives outputs (N, ...) a quality, of which more is better."""
    if metric is not None:
        return lambda outputs: float(metric(outputs))
    expected = predictions(reference) if labels is None else labels.cpu()
    return lambda outputs: float((predictions(outputs) == expected).float().mean())


def _take_turns(
    candidates: Sequence[Candidate],
    image: Tensor,
    threads: int,
    rounds: int,
    noise: list[str],
    problems: list[str],
    advance: Callable[[], None],
) -> list[list[float]]:
    """Return the milliseconds of all calls of each candidate; none for one that failed, which is named."""
    times: list[list[float]] = [[] for _ in candidates]
    with ExitStack() as stack:
        jobs = [Job(c.engine, c.model, image, threads, c.onnx) for c in candidates]
        workers = [stack.enter_context(Worker(job)) for job in jobs]
        running = []
        for place, (candidate, worker) in enumerate(zip(candidates, workers, strict=True)):
            try:
                worker.outputs()
            except SeparableError as error:
                problems.append(f"{candidate.form} {candidate.precision}: {error}.")
                continue
            running.append(place)
        calls = {i: max(1, min(_MOST_CALLS, int(_ROUND_MS / max(min(workers[i].round(2)), 1e-3)))) for i in running}
        meter = NoiseMeter(threads)
        for _ in range(rounds):
            for i in running:
                times[i] += workers[i].round(calls[i])
            advance()
        spreads = {
            f"{candidates[i].form} {candidates[i].title} {candidates[i].precision}": (
                statistics.median(times[i]),
                _quartiles(times[i]),
            )
            for i in running
        }
        noise += meter.sentences(spreads)
    return times


def _quartiles(times: Sequence[float]) -> tuple[float, float]:
    if len(times) < 2:
        return times[0], times[0]
    low, _, high = statistics.quantiles(times, n=4)
    return low, high
