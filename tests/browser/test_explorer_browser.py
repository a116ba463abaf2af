"""The explorer, opened from disk: its numbers agree with the library's, and its walk with PyTorch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")
from playwright.sync_api import Page, expect

from explorer_cases import WALKS, WORDS, state, texts
from torch_separable.cost.formulas import ConvSpec
from torch_separable.errors import SeparableValueError
from torch_separable.explanation.arithmetic import count, share
from torch_separable.explanation.explorer.page import explorer_page, write_explorer
from torch_separable.explanation.explorer.state import ExplorerState
from torch_separable.explanation.explorer.vectors import vectors


def walk_to_the_end(page: Page) -> list[str]:
    """What is said at every step."""
    said: list[str] = page.evaluate(
        """() => {
          const said = [];
          const next = document.getElementById("next");
          while (next.getAttribute("aria-disabled") === "false") {
            next.click();
            said.push(document.getElementById("narration").textContent);
          }
          return said;
        }"""
    )
    return said


def test_opens_at_the_articles_example(at: Callable[[str], Page]) -> None:
    page = at("")
    assert [text.split()[0] for text in texts(page.locator(".card .number"))] == ["288", "144", "72", "68", "104"]
    assert page.locator("#result").inner_text() == (
        "Standard convolution 4 → 8, 3×3: 288 weights, 296 parameters with biases, 2,592 MACs; "
        "100 % of the dense layer's MACs."
    )
    assert page.title() == "Standard convolution 4 → 8, 3×3 · torch-separable"


def test_page_and_library_agree_on_every_vector(at: Callable[[str], Page]) -> None:
    page = at("")
    check = page.evaluate("separableExplorer.selfCheck()")
    assert check == {"checked": sum(map(len, vectors().values())), "failures": []}
    assert f"on {check['checked']} layers" in page.locator("#check").inner_text()


def test_page_that_disagrees_with_the_library_warns(page: Page, tmp_path: Path) -> None:
    html = explorer_page()
    wrong = html.replace('"weights":288,"parameters":296,"macs":2592', '"weights":388,"parameters":296,"macs":2592')
    assert wrong != html
    (tmp_path / "wrong.html").write_text(wrong, encoding="utf-8")
    page.goto((tmp_path / "wrong.html").as_uri())
    expect(page.locator("#check")).to_contain_text("differs from torch-separable")
    assert "do not trust it" in page.locator("#check").inner_text()
    assert "388" in page.evaluate("separableExplorer.selfCheck().failures[0]")


SHOWN = [
    ExplorerState(show="grouped"),
    ExplorerState(8, 24, (3, 5), (9, 14), (2, 1), (0, 2), (1, 1), 4, show="depthwise"),
    ExplorerState(512, 512, input_size=(14, 14), stride=(2, 2), depth_multiplier=2, show="pointwise_first"),
    ExplorerState(6, 10, (5, 5), (32, 32), dilation=(2, 2), depth_multiplier=3, show="depthwise_first"),
    ExplorerState(3, 5, (1, 1), (7, 7)),
]


@pytest.mark.parametrize("shown", SHOWN, ids=lambda state: f"{state.show} {state.in_channels}-{state.out_channels}")
def test_every_number_on_the_page_agrees_with_the_library(shown: ExplorerState, page: Page, tmp_path: Path) -> None:
    write_explorer(tmp_path / "page.html", shown)
    page.goto((tmp_path / "page.html").as_uri())
    explanation = shown.explanation()
    result = page.locator("#result").inner_text()
    for part in (
        f"{explanation.title}:",
        f" {count(explanation.weights)} weights",
        f" {count(explanation.parameters)} parameters",
        f" {count(explanation.macs)} MACs",
        f" {share(explanation.share)} of the dense",
    ):
        assert part in result
    page.locator("summary").first.click()
    rows = [texts(row.locator("td")) for row in page.locator("#working tbody tr").all()]
    assert rows == [[s.part, s.title, s.symbols, s.numbers, s.result_text] for s in explanation.steps]
    listed = [texts(row.locator("td")) for row in page.locator("#choices tbody tr").all()]
    expected = [
        [each.name, count(each.weights), count(each.parameters), count(each.macs), share(each.share)]
        for each in explanation.alternatives
    ]
    assert [row for row in listed if row[0] != "…"] == [row for row in expected if row in listed]
    assert len(listed) == min(len(expected), 13)
    assert texts(page.locator("#choices .chosen td"))[0] == explanation.chosen.name
    formulas = texts(page.locator("#formula .equation"))
    for stage in explanation.stages:
        numbers, weights = stage.spec.formula().split(" (")[0].split(" = ")
        assert any(all(f in text for f in (*numbers.split("·"), f"= {count(int(weights))}")) for text in formulas)
        assert any(f"= {count(stage.macs)}" in text for text in formulas)


def test_the_examples_are_the_articles_layers(at: Callable[[str], Page]) -> None:
    page = at("#in=7&out=9&padding=0&pixel=1")
    weights = []
    for button in page.locator("[data-example]").all():
        button.click()
        weights.append(page.locator("#card-depthwise_first .number").inner_text().split()[0])
    assert weights == ["68", "2,336", "266,752"]


def test_layer_without_output_shows_the_librarys_error(at: Callable[[str], Page]) -> None:
    page = at("#kernel=5&padding=0")
    with pytest.raises(SeparableValueError) as raised:
        ConvSpec(4, 8, (5, 5)).output_size((3, 3))
    assert page.locator("#result").inner_text() == str(raised.value)
    assert not page.locator("#cards").is_visible()
    page.locator("#auto").click()
    assert page.locator("#cards").is_visible()


def synthetic_values(shape: tuple[int, ...], stage: int | None = None) -> torch.Tensor:
    """Input or weights as the page makes them up, from the indices alone."""
    i = [torch.tensor(grid) for grid in np.indices(shape)]
    if stage is None:
        c, u, v = i
        return ((7 * c + 5 * u + 3 * v + c * u + u * v) % 5).double()
    m, c, u, v = i
    return ((3 * m + 5 * c + 7 * u + 2 * v + u * v + m * c + stage) % 5 - 2).double()


@pytest.mark.parametrize("shown", WALKS, ids=lambda state: f"{state.show} {state.in_channels}-{state.out_channels}")
def test_walked_pixel_agrees_with_pytorch(shown: ExplorerState, at: Callable[[str], Page]) -> None:
    values = synthetic_values((shown.in_channels, *shown.input_size))
    explanation = shown.explanation()
    for number, stage in enumerate(explanation.stages):
        spec = stage.spec
        weight = synthetic_values((spec.out_channels, spec.in_channels // spec.groups, *spec.kernel_size), number)
        values = F.conv2d(values[None], weight, None, spec.stride, spec.padding, spec.dilation, spec.groups)[0]
    fragment = "&".join(f"{name}={written(value)}" for name, value in shown.document().items())
    middle = [(n - 1) // 2 for n in explanation.output_shape[1:]]
    for pixel, chosen in (([0, 0], "0"), (middle, "auto")):
        page = at(f"#{fragment}&pixel={chosen}")
        found = last_stage(walk_to_the_end(page), len(explanation.stages))
        assert found == {m: int(values[m, pixel[0], pixel[1]]) for m in found}
        assert {0, 1, shown.out_channels - 1} <= set(found)
        used = f"{count(explanation.weights)} of {count(explanation.weights)} weights used"
        assert page.locator("#used").inner_text() == used


def written(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def last_stage(said: list[str], stages: int) -> dict[int, int]:
    """The results of the filters of the last stage by number: the sum of filter 0, and the values told of others."""
    lines = [line.replace("−", "-") for line in said]
    firsts = [i for i, line in enumerate(lines) if line.startswith(("Filter 0,", "Filter 0:"))]
    whole = [i for i in firsts if i + 1 not in firsts]
    assert len(whole) == stages
    (total,) = re.findall(r"Sum: (-?\d+)\.$", lines[whole[-1]])
    filter_ = re.escape(WORDS["walk.filter"]).replace(r"\{filter\}", r"(\d+)").replace(r"\{value\}", r"(-?\d+)")
    others = re.findall(filter_, "\n".join(lines[whole[-1] :]))
    return {0: int(total)} | {int(m): int(value) for m, value in others}


def test_the_walk_plays_pauses_steps_and_jumps(at: Callable[[str], Page]) -> None:
    page = at("")
    progress = page.locator("#progress")
    page.get_by_role("button", name="Play").click()
    expect(progress).not_to_have_value(re.compile("^[01]$"))
    page.get_by_role("button", name="Pause").click()
    stopped = progress.input_value()
    page.wait_for_timeout(700)
    assert progress.input_value() == stopped
    page.get_by_role("button", name="One step back").click()
    assert progress.input_value() == str(int(stopped) - 1)
    page.get_by_role("button", name="To the end").click()
    assert "each of the 288 weights was used once" in page.locator("#narration").inner_text()
    page.get_by_role("button", name="To the start").click()
    assert progress.input_value() == "0"
    progress.press("ArrowRight")
    assert page.locator("#narration").inner_text().startswith("Filter 0, channel 0 of the input, tap (0, 0):")
    assert progress.get_attribute("aria-valuetext") == "step 1 of 44. 1 of 288 weights used"
    assert "1 of 288 weights used" in page.locator("#used").inner_text()


def test_playing_ends_by_itself(at: Callable[[str], Page]) -> None:
    page = at("#kernel=1&in=2&out=2")
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("button", name="Play")).to_be_visible(timeout=15_000)
    assert page.locator("#narration").inner_text().startswith("Done:")


def test_pixel_is_chosen_by_fields_and_in_the_figure(at: Callable[[str], Page]) -> None:
    page = at("")
    page.locator("#pixel-row").fill("2")
    page.locator("#pixel-row").press("Enter")
    assert state(page)["pixel"] == [2, 1]
    sheet = page.locator("#figure .pixels polygon").nth(2).bounding_box()
    assert sheet is not None
    page.mouse.click(sheet["x"] + sheet["width"] * 0.45, sheet["y"] + sheet["height"] * 0.15)
    assert state(page)["pixel"] == [0, 0]
    page.locator("#pixel-column").fill("99")
    page.locator("#pixel-column").press("Enter")
    assert state(page)["pixel"] == [0, 2]


@pytest.mark.parametrize("shown", WALKS, ids=lambda state: f"{state.show} {state.in_channels}-{state.out_channels}")
def test_code_on_the_page_builds_the_shown_layer(
    shown: ExplorerState, page: Page, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_explorer(tmp_path / "page.html", shown)
    page.goto((tmp_path / "page.html").as_uri())
    names: dict[str, Any] = {}
    exec(page.locator("#code").inner_text(), names)
    assert sum(each.numel() for each in names["layer"].parameters()) == shown.explanation().parameters
    assert shown.explanation().title in capsys.readouterr().out.replace("\n", " ")


def test_page_adds_one_name_to_the_window(at: Callable[[str], Page]) -> None:
    page = at("")
    added = page.evaluate(
        """() => {
          const frame = document.body.appendChild(document.createElement("iframe"));
          const usual = new Set(Object.getOwnPropertyNames(frame.contentWindow));
          frame.remove();
          return Object.getOwnPropertyNames(window).filter((name) => !usual.has(name));
        }"""
    )
    assert [name for name in added if not re.match(r"\d|__pw|playwright", name)] == ["separableExplorer"]


def test_embedded_data_is_current(at: Callable[[str], Page]) -> None:
    embedded = at("").evaluate("JSON.parse(document.getElementById('data').textContent).vectors")
    assert embedded == json.loads(json.dumps(vectors()))
