"""Timing callables against each other in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(calls: Mapping[str, Callable[[], object]], *, rounds: int = 30) -> dict[str, float]:
    """Return the median milliseconds of each call, all of them run in turn in each round.

    What slows the machine for a while slows every call alike, so the ratios of the medians hold where the times do not.

    Args:
        calls: what to time, by name; each runs twice before it counts.
        rounds: how often each is timed.

    Example:
        >>> times = interleaved({"short": lambda: sum(range(10)), "long": lambda: sum(range(100_000))}, rounds=5)
        >>> times["short"] < times["long"]
        True
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(measured) for name, measured in times.items()}
