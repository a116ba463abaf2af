"""Ratios of a run's figures, and the sentences that state them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_SAME_SPEED = 0.95  # differences below 5 % are within the noise of medians on a busy machine
_WHY_EAGER = (
    "because depthwise and pointwise convolutions run one after the other, each limited by memory bandwidth and by the "
    "overhead of a call"
)


@dataclass(frozen=True)
class Facts:
    """Ratios dense ÷ separable.

    Attributes:
        macs: ratio of multiply-accumulates.
        parameters: ratio of parameters.
        bytes: ratio of the sizes of the weights; ``None`` if they were not measured.
        points_lost: percentage points of accuracy lost; ``None`` if it was not measured on unseen images.
        eager: speedup in eager PyTorch; ``None`` if it was not measured.
        compiled: speedup after `torch_separable.compile`; ``None`` if it was not measured.
        seen_by_teacher: whether accuracy was measured only on images that the dense network may have been trained on.
    """

    macs: float
    parameters: float
    bytes: float | None
    points_lost: float | None
    eager: float | None
    compiled: float | None = None
    seen_by_teacher: bool = False

    @property
    def speed(self) -> float | None:
        """The speedup of the faster engine: compiled if it was measured, else eager."""
        return self.eager if self.compiled is None else self.compiled

    @property
    def realized_speedup(self) -> float | None:
        """The speedup divided by the MAC reduction."""
        return None if self.speed is None else self.speed / self.macs


def facts_of(results: dict[str, Any]) -> Facts:
    """Compare the first step of a run, the dense network, with the last step."""
    dense, last = results["steps"][0], results["steps"][-1]
    times = results.get("milliseconds")
    macs = dense["macs"] / last["macs"]
    compiled = times.get("compiled") if times else None
    measured = None not in (dense["accuracy"], last["accuracy"])
    data = results.get("data")
    seen = measured and isinstance(data, dict) and data.get("seen_by_teacher") is True
    return Facts(
        macs=macs,
        parameters=dense["parameters"] / last["parameters"],
        bytes=None if None in (dense["bytes"], last["bytes"]) else dense["bytes"] / last["bytes"],
        points_lost=100 * (dense["accuracy"] - last["accuracy"]) if measured and not seen else None,
        eager=times["dense"] / times["separable"] if times else None,
        compiled=compiled["dense"] / compiled["separable"] if compiled else None,
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
    """Return sentences that compare the measured speedups with the MAC reduction."""
    if facts.speed is None:
        return "No times were measured."
    start = f"With {facts.macs:.1f}x fewer MACs the separable network"
    reason = "" if (facts.eager or 0) >= facts.macs else f", {_WHY_EAGER}"
    if facts.compiled is None:
        return f"{start} {_compared(facts.speed)} in eager PyTorch{reason}."
    sentence = f"{start} {_compared(facts.compiled)} if both are compiled by ts.compile."
    if facts.eager is None or facts.eager >= facts.compiled:
        return sentence
    return f"{sentence} In eager PyTorch it {_compared(facts.eager)}{reason}."


def _compared(speed: float) -> str:
    """Return a phrase that compares the separable network with the dense one."""
    if speed < _SAME_SPEED:
        return f"takes {1 / speed:.1f}x as long as the dense one"
    if speed <= 1 / _SAME_SPEED:
        return "takes about as long as the dense one"
    return f"is {speed:.1f}x as fast as the dense one"
