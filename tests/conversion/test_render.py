"""A plan as text: it fits the terminal, shows as much as has room, and loses no layer."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from torch import nn

from torch_separable.conversion import Latency, LayerPlan, Plan
from torch_separable.conversion.convolutions import describe_convolution
from torch_separable.conversion.planning.render import render_plan
from torch_separable.conversion.solvers.factorize import Order

REASON = "depthwise first of rank 2 would lose 0.8 % for 409,600 more MACs"
PLAN = Plan(
    "least_squares",
    (
        LayerPlan("conv1", (16, 3, 3, 3), None, 0, "dense is best within the budget", (442_368, 442_368)),
        LayerPlan("layer1.conv1", (16, 16, 3, 3), "depthwise_first", 1, REASON, (2_359_296, 409_600), error=0.0274),
        LayerPlan(
            "layer2.conv1", (32, 16, 3, 3), "pointwise_first", 2, "", (1_179_648, 335_872), error=0.3,
            dense="Conv2d(16, 32, 3x3/2)",
        ),
        LayerPlan("shortcut", (32, 16, 1, 1), None, 0, "1x1: no spatial kernel to factorise"),
    ),
    macs=(40_551_040, 20_268_672),
)  # fmt: skip


def lines(width: int) -> list[str]:
    return render_plan(PLAN, width).plain.splitlines()


def test_plan_in_80_columns() -> None:
    assert lines(80) == [
        "layer         dense ⇒ planned                                       MACs ÷",
        "conv1         Conv2d(3, 16, 3x3) ⇒ kept: dense is best within the budget",
        "layer1.conv1  Conv2d(16, 16, 3x3) ⇒ depthwise 3x3 + pointwise         5.76",
        "layer2.conv1  Conv2d(16, 32, 3x3/2) ⇒ pointwise + depthwise 3x3 ·2    3.51",
        "shortcut      Conv2d(16, 32, 1x1) ⇒ kept: 1x1: no spatial kernel to factorise",
        "whole network: 40,551,040 -> 20,268,672 MACs (2.00x fewer)",
    ]


def test_plan_for_milliseconds_shows_engine_and_threads() -> None:
    timed = replace(PLAN, latency=Latency((0.7125, 0.3546), "compiled", 1))
    assert render_plan(timed, 80).plain.splitlines()[-2:] == [
        "whole network: 40,551,040 -> 20,268,672 MACs (2.00x fewer)",
        "for one image: about 0.713 -> 0.355 ms, compiled, on 1 thread",
    ]
    in_pytorch = replace(PLAN, latency=Latency((12, 7.5), "pytorch", 4))
    assert "about 12 -&gt; 7.5 ms, in PyTorch, on 4 threads</p>" in in_pytorch._repr_html_()


def test_plan_in_60_columns_has_two_lines_a_layer() -> None:
    assert lines(60) == [
        "conv1         Conv2d(3, 16, 3x3)",
        "  kept: dense is best within the budget",
        "layer1.conv1  Conv2d(16, 16, 3x3)",
        "  ⇒ depthwise 3x3 + pointwise  MACs ÷ 5.76, error 2.7 %",
        "layer2.conv1  Conv2d(16, 32, 3x3/2)",
        "  ⇒ pointwise + depthwise 3x3 ·2  MACs ÷ 3.51, error 30 %",
        "shortcut      Conv2d(16, 32, 1x1)",
        "  kept: 1x1: no spatial kernel to factorise",
        "whole network: 40,551,040 -> 20,268,672 MACs (2.00x fewer)",
    ]


def test_plan_in_200_columns_has_every_column() -> None:
    head, _, row, *_ = lines(200)
    assert re.split(r" {2,}", head) == ["layer", "dense ⇒ planned", "MACs", "MACs ÷", "error", "reason"]
    assert re.split(r" {2,}", row) == [
        "layer1.conv1",
        "Conv2d(16, 16, 3x3) ⇒ depthwise 3x3 + pointwise",
        "2,359,296 → 409,600",
        "5.76",
        "2.7 %",
        REASON,
    ]


NAMES = st.text(st.characters(categories=["L", "N"], include_characters="._-"), min_size=1, max_size=60)
CHANNELS = st.integers(1, 2048)


@st.composite
def layers(draw: st.DrawFn) -> LayerPlan:
    order = draw(st.sampled_from([None, *get_args(Order)]))
    shape = (draw(CHANNELS), draw(CHANNELS), 3, 3)
    macs = (draw(st.integers(0, 10**11)), draw(st.integers(0, 10**11)))
    reason = draw(st.sampled_from(["", REASON]))
    error = draw(st.floats(0, 1)) if order else 0.0
    return LayerPlan(draw(NAMES), shape, order, draw(st.integers(1, 9)) if order else 0, reason, macs, error=error)


@given(st.lists(layers(), max_size=6, unique_by=lambda layer: layer.name), st.integers(80, 250))
def test_plan_fits_any_width_and_shows_every_layer(planned: list[LayerPlan], width: int) -> None:
    text = render_plan(Plan("svd", tuple(planned), macs=(10**12, 10**11)), width).plain
    assert max(cell_len(line) for line in text.splitlines()) <= width
    for layer in planned:
        assert layer.name[-12:] in text
        assert layer.before in text
        assert layer.after in text


def test_control_characters_in_names_are_escaped() -> None:
    layer = LayerPlan("a\n\x1b[2Jb", (8, 8, 3, 3), None, 0, "\rhidden", dense="Conv2d\t")
    for width in (80, 20):
        text = render_plan(Plan("svd", (layer,)), width).plain
        assert "\x1b" not in text
        assert "\r" not in text
        assert r"a\n\x1b[2Jb" in text or width == 20
        assert len(text.splitlines()) == 2


def test_str_uses_the_terminals_width(monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (60, 80, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        assert str(PLAN).splitlines() == lines(width)
    assert str(Plan("svd", ())) == "layer  dense ⇒ planned  MACs ÷"


@pytest.mark.parametrize(
    ("conv", "words"),
    [
        (nn.Conv2d(4, 8, 3), "Conv2d(4, 8, 3x3)"),
        (nn.Conv2d(4, 8, (3, 5), stride=2, groups=2), "Conv2d(4, 8, 3x5/2, groups 2)"),
        (nn.Conv2d(4, 8, 3, stride=(1, 2), dilation=2), "Conv2d(4, 8, 3x3/1x2, dilation 2)"),
        (nn.Conv1d(4, 8, 7), "Conv1d(4, 8, 7)"),
        (nn.ConvTranspose3d(4, 8, 2, stride=2), "ConvTranspose3d(4, 8, 2x2x2/2)"),
    ],
)
def test_describe_convolution(conv: nn.Module, words: str) -> None:
    assert describe_convolution(conv) == words
