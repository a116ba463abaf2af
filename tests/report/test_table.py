"""The table for the terminal: it fits, and no number is cut."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torch_separable.report import results_table


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_table_of_a_run(results: dict[str, Any]) -> None:
    assert results_table(results).splitlines() == [
        "Digits",
        "",
        " step                         accuracy         MACs   parameters     bytes",
        " ─────────────────────────────────────────────────────────────────────────",
        " dense                         99.56 %   11,944,576       75,002   305,576",
        " converted by least squares    97.78 %    2,237,056       14,266",
        " after distillation            99.33 %    2,237,056       14,266    63,744",
        "",
        "5.34x fewer MACs, 5.26x fewer parameters, a file 4.79x smaller, 0.22 points of",
        "accuracy lost on 450 held-out images.",
        "",
        " network     engine       ms   speedup",
        " ─────────────────────────────────────",
        " dense       eager      7.51     1.00x",
        " separable   eager      3.22     2.33x",
        " dense       compiled    2.4     3.13x",
        " separable   compiled    0.5    15.02x",
        "",
        "Medians of 60 alternating calls, 8 images per call, 2 threads.",
        "With 5.3x fewer MACs the separable network is 4.8x as fast as the dense one if",
        "both are compiled by ts.compile. In eager PyTorch it is 2.3x as fast as the",
        "dense one, because depthwise and pointwise convolutions run one after the other,",
        "each limited by memory bandwidth and by the overhead of a call.",
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.text(st.characters(categories=["L", "N", "P", "Zs"]), max_size=90), min_size=2, max_size=4),
    macs=st.integers(1, 10**12),
    parameters=st.integers(1, 10**10),
    size=st.integers(1, 10**11),
)
def test_table_fits_the_terminal_and_shows_every_number_whole(
    results: dict[str, Any], names: list[str], macs: int, parameters: int, size: int
) -> None:
    given_results = copy.deepcopy(results)
    given_results["steps"] = [
        {**results["steps"][0], "name": name, "macs": macs, "parameters": parameters, "bytes": size} for name in names
    ]
    text = results_table(given_results)
    assert max(map(len, text.splitlines())) <= 80
    for number in (macs, parameters, size):
        assert text.count(f" {number:,}") >= len(names)


@pytest.mark.parametrize(("columns", "heads"), [(62, 4), (54, 3), (40, 2), (30, 1)])
def test_narrow_terminals_have_fewer_columns_and_whole_numbers(
    results: dict[str, Any], columns: int, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = results_table(results).splitlines()
    assert max(map(len, lines)) <= columns
    head = next(line for line in lines if line.startswith(" step"))
    assert head.split() == ["step", "accuracy", "MACs", "parameters", "bytes"][: 1 + heads]
    assert "…" not in "".join(lines)
    numbers = ["99.56 %", "11,944,576", "75,002", "305,576"][:heads]
    assert next(line for line in lines if line.startswith(" dense")).split() == " ".join(["dense", *numbers]).split()


@pytest.mark.parametrize(("columns", "most"), [("100", 100), ("300", 100)])
def test_wide_terminals_are_used_within_reason(
    results: dict[str, Any], monkeypatch: pytest.MonkeyPatch, columns: str, most: int
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert 80 < max(map(len, results_table(results).splitlines())) <= most


def test_markup_in_names_is_shown_as_it_is(results: dict[str, Any]) -> None:
    results["title"] = "[bold]Digits[/bold] [/]"
    results["steps"][0]["name"] = "[red]dense[/red]"
    text = results_table(results)
    assert text.startswith("[bold]Digits[/bold] [/]\n")
    assert "[red]dense[/red]" in text


def test_run_without_times_says_so(results: dict[str, Any]) -> None:
    del results["milliseconds"]
    text = results_table(results)
    assert "No times were measured." in text
    assert " ms " not in text
