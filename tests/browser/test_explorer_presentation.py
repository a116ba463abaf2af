"""How the explorer looks and reads: layout, saved figures, accessibility and print."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")
from playwright.sync_api import Page

from explorer_cases import FIELDS, KINDS, LATE, WORDS, labels, texts

WIDTHS = [360, 820, 1440]
SVG = "{http://www.w3.org/2000/svg}"


def downloaded(page: Page, what: str, form: str, folder: Path) -> Path:
    with page.expect_download() as caught:
        page.locator(f'[data-save="{what}"][data-form="{form}"]').click()
    path = folder / caught.value.suggested_filename
    caught.value.save_as(path)
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_are_saved_as_self_contained_svg(
    scheme: str, new_page: Callable[..., Page], explorer: str, tmp_path: Path
) -> None:
    page = new_page(color_scheme=scheme)
    page.goto(explorer + "#show=depthwise_first")
    figure = downloaded(page, "figure", "SVG", tmp_path)
    assert figure.name == "depthwise_first-4-8-3x3.svg"
    comparison = downloaded(page, "comparison", "SVG", tmp_path)
    assert comparison.name == "comparison-4-8-3x3.svg"
    for path in (figure, comparison):
        source = path.read_text(encoding="utf-8")
        assert "var(" not in source
        assert ET.fromstring(source).find(f"{SVG}rect").get("fill") == "#ffffff"  # type: ignore[union-attr]
    words = ["".join(node.itertext()) for node in ET.parse(figure).iter(f"{SVG}text")]
    assert "Depthwise separable convolution 4 → 8, 3×3, depthwise first" in words
    assert {"36 + 32 = 68 weights", "324 + 288 = 612 MACs, 23.6 % of the dense layer's", "group 3"} <= set(words)
    compared = ["".join(node.itertext()) for node in ET.parse(comparison).iter(f"{SVG}text")]
    assert {f"{weights} weights" for weights in (288, 144, 72, 68, 104)} <= set(compared)
    assert "Saved as comparison-4-8-3x3.svg." in page.locator("#notice").inner_text()


def test_figures_are_saved_as_png(at: Callable[[str], Page], tmp_path: Path) -> None:
    from matplotlib.image import imread

    page = at("#show=grouped")
    for what in ("figure", "comparison"):
        pixels = np.asarray(imread(downloaded(page, what, "PNG", tmp_path)))[..., :3]
        assert pixels.shape[0] > 500
        assert pixels.shape[1] > 700
        blue, orange = (pixels[..., 2] - pixels[..., 0] > 0.3), (pixels[..., 0] - pixels[..., 2] > 0.3)
        assert min(blue.sum(), orange.sum()) > 1_000


CROWDED = ["", "#show=pointwise_first&depth_multiplier=2", f"{LATE}&show=depthwise_first", f"{LATE}&show=grouped"]
WIDE = "#in=4096&out=4096&input=1024&kernel=11&depth_multiplier=16&groups=2048"


@pytest.mark.parametrize("width", WIDTHS)
def test_page_fits_and_figure_texts_do_not_overlap(width: int, new_page: Callable[..., Page], explorer: str) -> None:
    page = new_page(viewport={"width": width, "height": 900})
    for fragment in (*CROWDED, *(f"{WIDE}&show={show}" for show in KINDS)):
        for language in ("en", "zh"):
            page.goto(f"{explorer}{fragment or '#'}&lang={language}")
            page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, fragment
            boxes = page.evaluate(
                """() => [...document.querySelectorAll("#figure text")].map((node) => {
                  const { left, right, top, bottom } = node.getBoundingClientRect();
                  return [left, right, top, bottom, node.textContent];
                })"""
            )
            frame = page.evaluate("(({left, right}) => [left, right])(figure.getBoundingClientRect())")
            assert len(boxes) > 8
            for i, (left, right, top, bottom, words) in enumerate(boxes):
                assert frame[0] - 1 <= left < right <= frame[1] + 1, (fragment, words)
                for other_left, other_right, other_top, other_bottom, other in boxes[i + 1 :]:
                    overlap = min(right, other_right) - max(left, other_left)
                    assert min(overlap, min(bottom, other_bottom) - max(top, other_top)) < 2.5, (fragment, words, other)


def test_many_channels_are_elided(at: Callable[[str], Page]) -> None:
    words = set(labels(at("#in=64&out=128&input=56&groups=4&show=grouped")))
    assert {"0", "15", "63", "127", "group 3"} <= words
    assert "100" not in words


def test_the_figure_has_a_text_alternative(at: Callable[[str], Page]) -> None:
    page = at("#show=grouped")
    figure = page.get_by_role("img", name="Grouped convolution 4 → 8, 3×3, 2 groups")
    assert figure.count() == 1
    link = {"stage": "grouped", "group": 1, "filters": "4–7", "inputs": "2–3", "what": "input", "made": "output"}
    assert WORDS["figure.link"].format(**link) in figure.locator("desc").inner_html()
    page.get_by_text(WORDS["section.links"]).click()
    assert texts(page.locator("#links tbody tr").nth(1).locator("td")) == ["1", "2–3", "4–7", "4–7"]


def test_results_and_steps_are_announced(at: Callable[[str], Page]) -> None:
    page = at("")
    assert page.locator("#result").get_attribute("aria-live") == "polite"
    assert page.locator("#notice").get_attribute("role") == "status"
    assert page.locator("#narration").get_attribute("aria-live") == "polite"
    page.get_by_role("button", name="Play").click()
    assert page.locator("#narration").get_attribute("aria-live") == "off"


def test_tab_reaches_every_control_with_a_visible_focus(at: Callable[[str], Page]) -> None:
    page = at("")
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen = page.evaluate(
            """() => {
              const node = document.activeElement;
              const style = getComputedStyle(node);
              return [node.id || node.dataset.walk || node.tagName, style.outlineStyle, parseFloat(style.outlineWidth)];
            }"""
        )
        if seen[0] == "BODY":
            break
        assert seen[1] == "solid", seen
        assert seen[2] >= 2, seen
        reached.append(seen[0])
    wanted = [f"field-{name}" for name in FIELDS] + ["auto", "groups-1", "card-standard", "play", "progress"]
    assert [name for name in wanted if name not in reached] == []
    assert {"pixel-row", "pixel-column", "choose-grouped-2-1", "SUMMARY", "first", "next"} <= set(reached)


@pytest.mark.parametrize(("scheme", "language"), [("light", "en"), ("dark", "zh")])
def test_axe_finds_no_violation(
    scheme: str, language: str, new_page: Callable[..., Page], explorer: str, axe: Callable[[Page], None]
) -> None:
    page = new_page(color_scheme=scheme)
    page.goto(f"{explorer}#lang={language}&in=8&out=12&show=depthwise_first")
    for summary in page.locator("summary").all()[:2]:
        summary.click()
    page.locator("#groups-3").dispatch_event("click")
    for _ in range(4):
        page.locator("#next").click()
    axe(page)


def test_axe_finds_no_violation_on_a_phone_or_without_output(
    new_page: Callable[..., Page], explorer: str, axe: Callable[[Page], None]
) -> None:
    page = new_page(viewport={"width": 360, "height": 740})
    page.goto(explorer)
    axe(page)
    page.goto(explorer + "#kernel=7&padding=0")
    axe(page)


def test_reduced_motion_is_respected(new_page: Callable[..., Page], explorer: str) -> None:
    durations = {}
    for wish in ("no-preference", "reduce"):
        page = new_page(reduced_motion=wish)
        page.goto(explorer)
        durations[wish] = page.evaluate("getComputedStyle(document.getElementById('used-bar')).transitionDuration")
        assert page.locator("#progress").input_value() == "0"
    assert durations == {"no-preference": "0.12s", "reduce": "0s"}


def test_print_is_light_without_controls(new_page: Callable[..., Page], explorer: str) -> None:
    page = new_page(color_scheme="dark")
    page.goto(explorer)
    paper = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(paper) == "rgb(18, 23, 29)"
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    assert not page.locator(".controls").is_visible()
    assert page.locator("#figure svg").is_visible()
    assert page.locator("#result").is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#working table").is_visible()
