"""The explorer's page: what it is made of, the state that it opens at, and what it is checked against."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

from torch_separable.cli.main import app
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.explanation import explain
from torch_separable.explanation.explorer import page as explorer_module
from torch_separable.explanation.explorer.page import explorer_page, write_explorer
from torch_separable.explanation.explorer.state import ExplorerState, Kind
from torch_separable.explanation.explorer.vectors import vectors

TEMPLATES = Path(explorer_module.__file__).parent / "templates"
WORDS: dict[str, dict[str, str]] = json.loads((TEMPLATES / "explorer" / "words.json").read_text(encoding="utf-8"))


def data_of(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    document: dict[str, Any] = json.loads(text)
    return document


def test_page_is_self_contained() -> None:
    page = explorer_page()
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}
    assert re.findall(r"<(?:link|iframe|img|script[^>]* src)\b", page) == []
    assert "default-src 'none'" in page
    assert len(page.encode()) < 400_000


def test_page_opens_with_the_example_of_the_article() -> None:
    assert data_of(explorer_page())["start"] == {
        "in": 4,
        "out": 8,
        "kernel": [3, 3],
        "input": [3, 3],
        "stride": [1, 1],
        "padding": "auto",
        "dilation": [1, 1],
        "groups": 2,
        "depth_multiplier": 1,
        "show": "standard",
    }


sides = st.integers(1, 11)
states = st.builds(
    ExplorerState,
    in_channels=st.sampled_from([4, 12]),
    out_channels=st.sampled_from([12, 24]),
    kernel_size=st.tuples(st.integers(2, 11), sides),
    input_size=st.tuples(st.integers(30, 99), st.integers(30, 99)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.just(2),
    depth_multiplier=st.just(1),
    show=st.sampled_from(get_args(Kind)),
)


@given(state=states)
def test_a_state_comes_back_from_its_explanation(state: ExplorerState) -> None:
    back = ExplorerState.of(state.explanation())
    assert back.explanation() == state.explanation()
    assert (back.show, back.padding_shown, back.groups) == (state.show, state.padding_shown, state.groups)


def test_a_depth_multiplier_comes_back_in_both_orders() -> None:
    for show in ("depthwise_first", "pointwise_first"):
        state = ExplorerState(show=show, depth_multiplier=3)
        assert ExplorerState.of(state.explanation()) == state


@pytest.mark.parametrize(
    ("layer", "size", "complaint"),
    [
        (nn.Conv1d(4, 8, 3), (9,), "two dimensions"),
        (nn.ConvTranspose2d(4, 8, 3), (9, 9), "not transposed"),
        (nn.Conv2d(4, 8, 4, padding="same"), (9, 9), "both sides"),
        (nn.Conv2d(4, 8, 13), (20, 20), r"kernel_size=\(13, 13\): the explorer shows 1 to 11"),
    ],
    ids=["one dimension", "transposed", "uneven padding", "large kernel"],
)
def test_a_layer_that_the_page_cannot_show_is_refused(layer: nn.Module, size: tuple[int, ...], complaint: str) -> None:
    explanation = explain(layer, size)
    with pytest.raises(SeparableValueError, match=complaint):
        ExplorerState.of(explanation)


def test_a_separable_layer_of_kernel_1x1_is_refused() -> None:
    explanation = explain(in_channels=4, out_channels=8, kernel_size=1, order="depthwise_first", input_shape=(3, 3))
    with pytest.raises(SeparableValueError, match="nothing to separate"):
        ExplorerState.of(explanation)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(SeparableValueError, match="show='spatial': must be one of standard, grouped"):
        ExplorerState(show="spatial")  # type: ignore[arg-type]


def test_the_command_writes_a_page_that_opens_at_its_layer(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    options = ["--in", "8", "--out", "24", "--kernel", "3,5", "--input", "9,14", "--groups", "4", "--stride", "2"]
    result = CliRunner().invoke(app, ["explain", *options, "--html", str(path)])
    assert result.exit_code == 0
    assert f"page: {path}" in result.stdout
    start = data_of(path.read_text(encoding="utf-8"))["start"]
    assert (start["in"], start["out"], start["kernel"], start["input"]) == (8, 24, [3, 5], [9, 14])
    assert (start["stride"], start["padding"], start["groups"], start["show"]) == ([2, 2], "auto", 4, "grouped")


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SeparableError, match="cannot write"):
        write_explorer(tmp_path / "file" / "page.html")


def test_both_languages_have_the_same_words_and_values() -> None:
    assert list(WORDS["en"]) == list(WORDS["zh"])
    for key, english in WORDS["en"].items():
        values = [sorted(set(re.findall(r"\{(\w+)\}", text))) for text in (english, WORDS["zh"][key])]
        assert values[0] == values[1], key


def test_every_word_is_used() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in TEMPLATES.rglob("*.j*") if path.suffix != ".json")
    built = set(re.findall(r"`([a-z]+\.)\$\{", sources)) | {"examples.", "controls."}
    unused = [key for key in WORDS["en"] if f'"{key}"' not in sources and not key.startswith(tuple(built))]
    assert unused == []


def test_data_in_the_page_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer_module, "__version__", "</script><script>alert(1)</script>")
    page = explorer_page()
    assert "alert(1)</script>" not in page
    assert data_of(page)["version"] == "</script><script>alert(1)</script>"


def test_the_vectors_hold_every_kind_of_layer_and_of_refusal() -> None:
    made = vectors()
    assert {layer["state"]["show"] for layer in made["layers"]} == set(get_args(Kind))
    assert len(made["specs"]) > 250
    assert 20 < sum("error" in spec for spec in made["specs"]) < 100
    assert sum(len(division["errors"]) for division in made["divisions"]) > 50
    assert made["divisions"][4] == {
        "in": 4,
        "out": 8,
        "groups": [1, 2, 4],
        "errors": {
            "3": "groups=3 does not divide in_channels=4: both channel counts must be multiples of groups",
            **{
                str(groups): f"groups={groups} does not divide in_channels=4: "
                "both channel counts must be multiples of groups"
                for groups in (5, 6, 7, 8)
            },
        },
    }
