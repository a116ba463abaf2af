"""Ratios of a run's figures, and the sentences that state them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_SAME_SPEED = 0.95  # differences below 5 % are within the noise of medians on a busy machine


@dataclass(frozen=True)
class Facts:
    """Ratios dense ÷ separable.

    Attributes:
        macs: ratio of multiply-accumulates.
        parameters: ratio of parameters.
        bytes: ratio of the sizes of the weights; ``None`` if they were not measured.
        points_lost: percentage points of accuracy lost; ``None`` if it was not measured on unseen images.
        speed: speedup; ``None`` if no times were measured.
        realized_speedup: ``speed`` divided by ``macs``.
        seen_by_teacher: whether accuracy was measured only on images that the dense network may have been trained on.
    """

    macs: float
    parameters: float
    bytes: float | None
    points_lost: float | None
    speed: float | None
    realized_speedup: float | None
    seen_by_teacher: bool = False


def facts_of(results: dict[str, Any]) -> Facts:
    """Compare the first step of a run, the dense network, with the last step."""
    dense, last = results["steps"][0], results["steps"][-1]
    times = results.get("milliseconds")
    macs = dense["macs"] / last["macs"]
    speed = times["dense"] / times["separable"] if times else None
    measured = None not in (dense["accuracy"], last["accuracy"])
    data = results.get("data")
    seen = measured and isinstance(data, dict) and data.get("seen_by_teacher") is True
    return Facts(
        macs=macs,
        parameters=dense["parameters"] / last["parameters"],
        bytes=None if None in (dense["bytes"], last["bytes"]) else dense["bytes"] / last["bytes"],
        points_lost=100 * (dense["accuracy"] - last["accuracy"]) if measured and not seen else None,
        speed=speed,
        realized_speedup=None if speed is None else speed / macs,
        seen_by_teacher=seen,
    )


def costs_sentence(facts: Facts) -> str:
    """Return the reductions of the costs, without a full stop."""
    parts = [f"{facts.macs:.2f}x fewer MACs", f"{facts.parameters:.2f}x fewer parameters"]
    return ", ".join([*parts, *([] if facts.bytes is None else [f"a file {facts.bytes:.2f}x smaller"])])


def accuracy_sentence(facts: Facts, count: int | None, images: str = "held-out images") -> str:
    """Return the change in accuracy on the ``count`` images that it was measured on, without a full stop."""
    if facts.seen_by_teacher:
        return f"accuracy was measured only on {count:,} images that the teacher may have seen"
    if facts.points_lost is None:
        return "accuracy was not measured"
    change = f"{abs(facts.points_lost):.2f} points of accuracy"
    if change.startswith("0.00"):
        return f"no accuracy lost on {count:,} {images}"
    return f"{change} {'lost' if facts.points_lost > 0 else 'gained'} on {count:,} {images}"


def speed_sentence(facts: Facts) -> str:
    """Return sentences that compare the measured speedup with the MAC reduction."""
    if facts.speed is None:
        return "No times were measured."
    if facts.speed >= facts.macs:
        return f"With {facts.macs:.1f}x fewer MACs the separable network runs {facts.speed:.1f}x as fast."
    if facts.speed < _SAME_SPEED:
        what = f"the separable network takes {1 / facts.speed:.1f}x as long"
    elif facts.speed <= 1 / _SAME_SPEED:
        what = "the separable network takes about as long"
    else:
        what = f"the separable network runs only {facts.speed:.1f}x as fast"
    return (
        f"With {facts.macs:.1f}x fewer MACs {what} in eager PyTorch, which runs a depthwise and a pointwise "
        "convolution one after the other, each limited by memory bandwidth and by the overhead of a call."
    )
