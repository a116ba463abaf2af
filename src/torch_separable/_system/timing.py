"""Time functions against each other in one process."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TypeVar

from torch import nn

WARM_UP = 2


def interleaved(calls: Mapping[str, Callable[[], object]], *, rounds: int = 30) -> dict[str, float]:
    """Return the median milliseconds of each function; every round runs all of them once.

    A disturbance of the machine then affects all functions alike, so the ratios of the medians are more reliable than
    the times.

    Args:
        calls: the functions by name; each runs `WARM_UP` times untimed.
        rounds: number of timed runs of each.

    Example:
        >>> times = interleaved({"short": lambda: sum(range(10)), "long": lambda: sum(range(100_000))}, rounds=5)
        >>> times["short"] < times["long"]
        True
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(measured) for name, measured in times.items()}


Name = TypeVar("Name")


def quietest(timers: Mapping[Name, Callable[[], float]], *, rounds: int) -> dict[Name, float]:
    """Return the minimum of each timer; every round runs all of them once.

    Use it for many times that are added or compared: a disturbance then spoils one round of several timers instead of
    all rounds of one.

    Args:
        timers: each measures something once and returns the time.
        rounds: number of runs of each.

    Example:
        >>> readings = {"a": iter([1.0, 9.0, 1.1]), "b": iter([40.0, 2.0, 2.2])}
        >>> quietest({name: of.__next__ for name, of in readings.items()}, rounds=3)
        {'a': 1.0, 'b': 2.0}
    """
    least = dict.fromkeys(timers, math.inf)
    for _ in range(rounds):
        for name, timer in timers.items():
            least[name] = min(least[name], timer())
    return least


def rounds_within(seconds: float, *calls: Callable[[], object], fewest: int, most: int) -> int:
    """Return how many rounds of all ``calls`` take about ``seconds``, from one timed round after a warm-up.

    Example:
        >>> rounds_within(1, lambda: sum(range(10)), fewest=5, most=60)
        60
    """
    start = 0.0
    for _ in range(2):
        start = time.perf_counter()
        for call in calls:
            call()
    return max(fewest, min(most, int(seconds / max(time.perf_counter() - start, 1e-9))))


class LayerClock:
    """A function wrapped so that each call records the milliseconds spent in each layer.

    Args:
        call: the function to run.
        layers: the modules to time, by name; none may contain another. The runs of a layer within one call are added;
            a layer that does not run counts 0.

    Example:
        >>> import torch
        >>> layer = nn.Linear(64, 64)
        >>> clock = LayerClock(lambda: layer(torch.zeros(8, 64)), {"fc": layer})
        >>> for _ in range(3):
        ...     clock()
        >>> sorted(clock.medians()), clock.medians()["fc"] > 0
        (['', 'fc'], True)
    """

    def __init__(self, call: Callable[[], object], layers: Mapping[str, nn.Module]) -> None:
        self.call, self.layers = call, layers
        self.rounds: list[dict[str, float]] = []

    def __call__(self) -> None:
        """Call the function and record one round."""
        spent = dict.fromkeys(self.layers, 0.0)
        started: dict[str, float] = {}

        def enters(name: str) -> Callable[..., None]:
            def hook(*_: object) -> None:
                started[name] = time.perf_counter()

            return hook

        def leaves(name: str) -> Callable[..., None]:
            def hook(*_: object) -> None:
                spent[name] += 1e3 * (time.perf_counter() - started[name])

            return hook

        with ExitStack() as stack:
            for name, module in self.layers.items():
                stack.callback(module.register_forward_pre_hook(enters(name)).remove)
                stack.callback(module.register_forward_hook(leaves(name)).remove)
            start = time.perf_counter()
            self.call()
            whole = 1e3 * (time.perf_counter() - start)
        self.rounds.append({"": whole - sum(spent.values()), **spent})

    def medians(self, skip: int = 0) -> dict[str, float]:
        """Return each layer's median over all calls but the first ``skip``; ``""`` is the time outside the layers."""
        rounds = self.rounds[skip:]
        return {name: statistics.median(spent[name] for spent in rounds) for name in rounds[0]}
