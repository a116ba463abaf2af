"""What the figures of a run amount to, in ratios and in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_separable.report.facts import Facts, accuracy_sentence, facts_of, speed_sentence

FACTS = Facts(macs=5.0, parameters=4.0, bytes=3.0, points_lost=0.5, eager=2.0)
COUNTS = st.integers(1, 10**12)


def test_facts_compare_the_first_step_with_the_last(results: dict[str, Any]) -> None:
    facts = facts_of(results)
    assert facts.macs == 11_944_576 / 2_237_056
    assert facts.parameters == 75_002 / 14_266
    assert facts.bytes == 305_576 / 63_744
    assert facts.points_lost == pytest.approx(100 / 450)
    assert (facts.eager, facts.compiled) == (7.51 / 3.22, 2.4 / 0.5)
    assert facts.speed == facts.compiled
    assert facts.realized_speedup == pytest.approx(facts.speed / facts.macs)


@given(dense=st.tuples(COUNTS, COUNTS, COUNTS), last=st.tuples(COUNTS, COUNTS, COUNTS), right=st.integers(0, 450))
def test_comparing_the_other_way_round_gives_the_inverse(
    dense: tuple[int, int, int], last: tuple[int, int, int], right: int
) -> None:
    def step(counts: tuple[int, int, int], correct: int) -> dict[str, Any]:
        return {**dict(zip(("macs", "parameters", "bytes"), counts, strict=True)), "accuracy": correct / 450}

    one, other = step(dense, 400), step(last, right)
    facts, inverse = facts_of({"steps": [one, other]}), facts_of({"steps": [other, one]})
    for name in ("macs", "parameters", "bytes"):
        assert getattr(facts, name) * getattr(inverse, name) == pytest.approx(1)
    assert facts.points_lost == pytest.approx(-inverse.points_lost)
    assert facts.speed is None
    assert facts.realized_speedup is None


@pytest.mark.parametrize(
    ("speed", "sentence"),
    [
        (6.0, "With 5.0x fewer MACs the separable network is 6.0x as fast as the dense one in eager PyTorch."),
        (4.9, "is 4.9x as fast as the dense one in eager PyTorch, because"),
        (1.02, "takes about as long as the dense one"),
        (0.97, "takes about as long as the dense one"),
        (0.8, "takes 1.2x as long as the dense one"),
        (0.25, "takes 4.0x as long as the dense one"),
    ],
)
def test_sentence_compares_the_eager_speedup_with_the_mac_reduction(speed: float, sentence: str) -> None:
    assert sentence in speed_sentence(replace(FACTS, eager=speed))


def test_compiled_speedup_comes_first_and_the_eager_one_is_explained() -> None:
    sentence = speed_sentence(replace(FACTS, eager=0.8, compiled=3.8))
    assert sentence.startswith(
        "With 5.0x fewer MACs the separable network is 3.8x as fast as the dense one if both are "
    )
    assert "In eager PyTorch it takes 1.2x as long as the dense one, because depthwise" in sentence
    assert "eager" not in speed_sentence(replace(FACTS, eager=4.0, compiled=3.8))
    assert speed_sentence(replace(FACTS, eager=None)) == "No times were measured."


@given(macs=st.floats(2, 100), speed=st.floats(0.01, 100))
def test_sentence_never_gives_a_factor_of_one(macs: float, speed: float) -> None:
    sentence = speed_sentence(replace(FACTS, macs=macs, eager=speed))
    assert " 1.0x" not in sentence
    assert ("each limited by" in sentence) == (speed < macs)


@pytest.mark.parametrize(
    ("points", "sentence"),
    [
        (0.0, "no accuracy lost on 450 held-out images"),
        (0.2222, "0.22 points of accuracy lost on 450 held-out images"),
        (-0.2222, "0.22 points of accuracy gained on 450 held-out images"),
        (12.345, "12.35 points of accuracy lost on 450 held-out images"),
        (1e-9, "no accuracy lost on 450 held-out images"),
        (-1e-9, "no accuracy lost on 450 held-out images"),
    ],
)
def test_sentence_states_the_change_in_accuracy(points: float, sentence: str) -> None:
    assert accuracy_sentence(replace(FACTS, points_lost=points), 450) == sentence
