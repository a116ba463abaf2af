"""What the figures of a run amount to: ratios, and the sentences that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_SAME_SPEED = 0.95  # within five hundredths, medians on a busy machine do not tell two networks apart


@dataclass(frozen=True)
class Facts:
    """Before and after, as factors.

    Attributes:
        macs: how many times fewer multiply-accumulates.
        parameters: how many times fewer.
        bytes: how many times smaller the weights are; ``None`` where they were not measured.
        points_lost: percentage points of accuracy lost; ``None`` where it was not measured.
        speed: how many times faster; ``None`` where no times were taken.
        realized_speedup: ``speed`` over ``macs``.
    """

    macs: float
    parameters: float
    bytes: float | None
    points_lost: float | None
    speed: float | None
    realized_speedup: float | None


def facts_of(results: dict[str, Any]) -> Facts:
    """Compare the first step of a run, the dense network, with its last."""
    dense, last = results["steps"][0], results["steps"][-1]
    times = results.get("milliseconds")
    macs = dense["macs"] / last["macs"]
    speed = times["dense"] / times["separable"] if times else None
    return Facts(
        macs=macs,
        parameters=dense["parameters"] / last["parameters"],
        bytes=None if None in (dense["bytes"], last["bytes"]) else dense["bytes"] / last["bytes"],
        points_lost=None
        if None in (dense["accuracy"], last["accuracy"])
        else 100 * (dense["accuracy"] - last["accuracy"]),
        speed=speed,
        realized_speedup=None if speed is None else speed / macs,
    )


def costs_sentence(facts: Facts) -> str:
    """Say how much smaller the network is."""
    parts = [f"{facts.macs:.2f}x fewer MACs", f"{facts.parameters:.2f}x fewer parameters"]
    return ", ".join([*parts, *([] if facts.bytes is None else [f"a file {facts.bytes:.2f}x smaller"])])


def accuracy_sentence(facts: Facts, count: int | None, images: str = "held-out images") -> str:
    """Say what became of the accuracy on the ``count`` images that it was measured on."""
    if facts.points_lost is None:
        return "accuracy was not measured"
    change = f"{abs(facts.points_lost):.2f} points of accuracy"
    if change.startswith("0.00"):
        return f"no accuracy lost on {count:,} {images}"
    return f"{change} {'lost' if facts.points_lost > 0 else 'won'} on {count:,} {images}"


def promise_sentence(facts: Facts) -> str:
    """Say whether the clock follows the arithmetic."""
    if facts.speed is None:
        return "No times were taken."
    if facts.speed >= facts.macs:
        return f"The clock follows the arithmetic: {facts.macs:.1f}x fewer MACs run {facts.speed:.1f}x as fast."
    if facts.speed < _SAME_SPEED:
        what = f"but the separable network takes {1 / facts.speed:.1f}x as long"
    elif facts.speed <= 1 / _SAME_SPEED:
        what = "but the separable network takes about as long"
    else:
        what = f"but the separable network runs only {facts.speed:.1f}x as fast"
    return (
        f"The clock does not follow the arithmetic: {facts.macs:.1f}x fewer MACs, {what}. PyTorch runs a depthwise and "
        "a pointwise convolution one after the other, each limited by memory and by the overhead of a call."
    )
