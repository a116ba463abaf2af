"""Which points nothing dominates, and how they are written."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_separable.pareto import Frontier, Point
from torch_separable.pareto.chart import draw
from torch_separable.pareto.page import html_page
from torch_separable.pareto.points import Quality, undominated


def point(milliseconds: float, quality: float, form: str = "dense", engine: str = "torch-separable") -> Point:
    return Point(form, engine, "f32", milliseconds, (milliseconds, milliseconds), quality, 1000)


POINTS = st.lists(st.builds(point, st.integers(1, 6).map(float), st.integers(0, 5).map(float)), min_size=1, max_size=9)


@given(POINTS)
def test_it_is_what_no_other_point_beats(points: list[Point]) -> None:
    def beats(a: Point, b: Point) -> bool:
        as_good = a.milliseconds <= b.milliseconds and a.quality >= b.quality
        return as_good and (a.milliseconds, a.quality) != (b.milliseconds, b.quality)

    expected = [p for p in points if not any(beats(other, p) for other in points)]
    best = undominated(points)
    assert sorted(map(repr, best)) == sorted(map(repr, expected))
    times = [p.milliseconds for p in best]
    assert times == sorted(times)


def frontier(points: tuple[Point, ...], quality: Quality = "accuracy") -> Frontier:
    return Frontier(points, quality, 500, (3, 32, 32), 1, 1, 20, "CPU & <co>", ("Noisy.",), ("X left out.",))


MEASURED = (point(1.0, 0.9), point(0.5, 0.91, "macs=0.5"), point(0.4, 0.8, "<script>", "Peer <1>"), point(2.0, 0.92))


def test_the_table_marks_them_and_states_the_conditions() -> None:
    text = str(frontier(MEASURED))
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["*", "*", "dense", "*"]
    assert "91.00 %" in lines[2]
    assert "CPU & <co>, 1 thread, batch 1 of 3x32x32, medians of 20 alternating rounds" in text
    assert "accuracy on 500 images" in text
    assert text.endswith("Noisy.\nX left out.")


@pytest.mark.parametrize("points", [MEASURED, MEASURED[:1], (point(1e-4, 0.0), point(1e4, 1e-9))])
def test_the_picture_is_well_formed_and_holds_every_point(points: tuple[Point, ...]) -> None:
    qualities: tuple[Quality, ...] = ("accuracy", "metric")
    for quality in qualities:
        root = ElementTree.fromstring(draw(frontier(points, quality)))
        titles = [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]
        assert len(titles) == 1 + len(points)
        numbers = [float(value) for each in root.iter() for key, value in each.items() if key in ("x", "y", "cx", "cy")]
        assert all(0 <= number <= 800 for number in numbers)


def test_files_hold_the_same_and_names_are_escaped(tmp_path: Path) -> None:
    measured = frontier(MEASURED)
    paths = measured.write(tmp_path / "new")
    assert [path.name for path in paths] == ["frontier.json", "frontier.svg", "frontier.html"]
    document = json.loads(paths[0].read_text(encoding="utf-8"))
    assert [entry["undominated"] for entry in document["points"]] == [False, True, True, True]
    assert document["quality"] == "accuracy"
    page = html_page(measured)
    assert "<script>" not in page
    assert "Content-Security-Policy" in page
    assert "CPU &amp; &lt;co&gt;" in page
