"""Calls are timed in turn, and one slow moment does not move the median."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from torch_separable.timing import interleaved


def test_calls_run_twice_beforehand_and_then_in_turn() -> None:
    order: list[str] = []

    def noting(name: str) -> Callable[[], object]:
        return lambda: order.append(name)

    times = interleaved({name: noting(name) for name in "abc"}, rounds=4)
    assert "".join(order) == "aabbcc" + 4 * "abc"
    assert list(times) == ["a", "b", "c"]


def test_times_are_medians_in_milliseconds() -> None:
    calls = iter(range(100))

    def slow_now_and_then() -> None:
        time.sleep(0.2 if next(calls) in (2, 4) else 0.004)

    times = interleaved({"a": slow_now_and_then, "b": lambda: time.sleep(0.02)}, rounds=7)
    # The mean of the first is above 60.
    assert 4 <= times["a"] < times["b"]
    assert times["b"] >= 20


def test_exceptions_of_a_call_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        interleaved({"a": lambda: 1 // 0})
