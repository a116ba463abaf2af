"""Calls are timed in turn, and one slow moment does not move the median."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from torch_separable._system.timing import LayerClock, interleaved, quietest, rounds_within


def test_calls_warm_up_twice_and_then_interleave() -> None:
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


def test_exceptions_propagate() -> None:
    with pytest.raises(ZeroDivisionError):
        interleaved({"a": lambda: 1 // 0})


@pytest.mark.parametrize(("milliseconds", "rounds"), [(0, 60), (20, 50), (400, 5)])
def test_rounds_are_as_many_as_the_time_allows(milliseconds: int, rounds: int) -> None:
    found = rounds_within(
        1.0, lambda: time.sleep(milliseconds / 2000), lambda: time.sleep(milliseconds / 2000), fewest=5, most=60
    )
    assert max(5, rounds / 2) <= found <= rounds, "fewer where the machine is busy"


def test_first_call_does_not_decide_how_many_rounds_there_are() -> None:
    calls = iter(range(10))
    assert rounds_within(1.0, lambda: time.sleep(0.5 if next(calls) == 0 else 0), fewest=5, most=60) == 60


def test_clock_gives_each_layer_the_time_of_all_its_calls() -> None:
    class Sleeping(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.005)
            return x

    once, twice, never = Sleeping(), Sleeping(), Sleeping()

    def call() -> None:
        time.sleep(0.008)
        twice(once(twice(torch.zeros(1))))

    clock = LayerClock(call, {"once": once, "twice": twice, "never": never})
    for _ in range(5):
        clock()
    spent = clock.medians()
    assert spent["never"] == 0
    assert spent["once"] >= 5
    assert spent["twice"] == pytest.approx(2 * spent["once"], rel=0.5)
    assert 8 <= spent[""] < 16
    assert not once._forward_hooks
    assert not once._forward_pre_hooks


def test_hooks_are_removed_when_the_call_fails() -> None:
    layer = nn.Linear(2, 2)
    clock = LayerClock(lambda: layer(torch.zeros(3)), {"layer": layer})
    with pytest.raises(RuntimeError):
        clock()
    assert not layer._forward_hooks
    assert not clock.rounds


def test_medians_skip_the_first_calls() -> None:
    clock = LayerClock(lambda: None, {})
    clock.rounds = [{"": 100.0}, {"": 90.0}, {"": 3.0}, {"": 1.0}, {"": 2.0}]
    assert clock.medians(skip=2) == {"": 2.0}


def test_a_disturbed_round_does_not_count() -> None:
    turn: list[int] = []

    def reading(of: float) -> Callable[[], float]:
        def read() -> float:
            turn.append(1)
            return of * (50 if (len(turn) - 1) // 3 in (0, 2) else 1)  # of three timers: the first and the third round

        return read

    assert quietest({name: reading(name) for name in (1.0, 2.0, 3.0)}, rounds=4) == {1: 1, 2: 2, 3: 3}
