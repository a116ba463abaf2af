"""The explorer as a reader has it: opened from disk, every control used, its numbers beside the library's."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")
from playwright.sync_api import Locator, Page, expect

from torch_separable.cost.formulas import ConvSpec
from torch_separable.errors import SeparableValueError
from torch_separable.explanation.arithmetic import count, share
from torch_separable.explanation.explorer import page as explorer_module
from torch_separable.explanation.explorer.page import explorer_page, write_explorer
from torch_separable.explanation.explorer.state import ExplorerState, Kind
from torch_separable.explanation.explorer.vectors import vectors

KINDS = get_args(Kind)
WIDTHS = [360, 820, 1440]
LATE = "#in=512&out=512&input=14&groups=32&depth_multiplier=2"
SVG = "{http://www.w3.org/2000/svg}"
FOLDER = Path(explorer_module.__file__).parent / "templates" / "explorer"
WORDS: dict[str, str] = json.loads((FOLDER / "words.json").read_text(encoding="utf-8"))["en"]


@pytest.fixture(scope="session")
def explorer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page's address on disk."""
    path = tmp_path_factory.mktemp("explorer") / "explorer.html"
    write_explorer(path)
    return path.as_uri()


@pytest.fixture
def at(page: Page, explorer: str) -> Callable[[str], Page]:
    """Opens the explorer at a fragment of its address."""

    def opened(fragment: str = "") -> Page:
        page.goto("about:blank")  # otherwise a change of the fragment alone does not load the page
        page.goto(explorer + fragment)
        return page

    return opened


def state(page: Page) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate("separableExplorer.state()")
    return found


def texts(locator: Locator) -> list[str]:
    return [re.sub(r"\s+", " ", text).strip() for text in locator.all_inner_texts()]


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


def test_it_opens_at_the_articles_example(at: Callable[[str], Page]) -> None:
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


def test_a_page_that_disagrees_says_so(page: Page, tmp_path: Path) -> None:
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
def test_every_number_on_the_page_is_the_librarys(shown: ExplorerState, page: Page, tmp_path: Path) -> None:
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


FIELDS = {
    "in": ("12", 12, 13, 24),
    "out": ("20", 20, 21, 40),
    "kernel": ("3×5", [3, 5], [4, 6], [6, 10]),
    "input": ("9x14", [9, 14], [10, 15], [18, 28]),
    "stride": ("2", [2, 2], [3, 3], [4, 4]),
    "padding": ("2, 1", [2, 1], [3, 2], [4, 2]),
    "dilation": ("2", [2, 2], [3, 3], [4, 4]),
    "depth_multiplier": ("3", 3, 4, 6),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_takes_typing_buttons_and_keys(name: str, at: Callable[[str], Page]) -> None:
    typed, value, more, doubled = FIELDS[name]
    page = at("#input=40")
    field = page.locator(f"#field-{name}")
    field.fill(typed)
    field.press("Enter")
    assert state(page)[name] == value
    page.locator(f'[data-field="{name}"][data-step="1"]').click()
    assert state(page)[name] == more
    field.press("ArrowDown")
    assert state(page)[name] == value
    page.locator(f'[data-field="{name}"][data-step="-1"]').click()
    field.press("ArrowUp")
    assert state(page)[name] == value
    field.press("PageUp")
    assert state(page)[name] == doubled
    field.press("PageDown")
    assert state(page)[name] == value


@pytest.mark.parametrize("text", ["", "0", "4097", "four", "3×5", "-1", "1e3", "<b>9</b>"])
def test_a_field_that_is_no_number_of_channels_is_put_back_and_says_what_is(text: str, at: Callable[..., Page]) -> None:
    page = at()
    field = page.locator("#field-in")
    field.fill(text)
    field.press("Enter")
    expect(page.locator("#notice")).to_have_text("Input channels: give a whole number from 1 to 4096")
    assert field.input_value() == "4"
    assert state(page)["in"] == 4


def test_padding_follows_the_kernel_until_it_is_set(at: Callable[[str], Page]) -> None:
    page = at("#input=20")
    page.locator("#field-kernel").press("PageUp")
    assert page.locator("#field-padding").input_value() == "2"
    page.get_by_role("button", name="Padding that keeps the size").click()
    page.locator("#field-kernel").press("ArrowDown")
    assert (state(page)["padding"], page.locator("#field-padding").input_value()) == ([2, 2], "2")


def complaint_of(inputs: int, outputs: int, groups: int) -> str:
    """What the library says against a number of groups; empty where it takes it."""
    try:
        ConvSpec(inputs, outputs, (3, 3), groups=groups)
    except SeparableValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 8), (8, 12), (30, 42), (7, 9)])
def test_only_groups_that_divide_can_be_chosen_and_others_say_why(
    inputs: int, outputs: int, at: Callable[[str], Page]
) -> None:
    page = at(f"#in={inputs}&out={outputs}")
    chips = page.locator("#groups [role=radio]")
    offered = [int(text) for text in texts(chips)]
    possible = []
    for chip, groups in zip(chips.all(), offered, strict=True):
        chip.dispatch_event("click")
        complaint = complaint_of(inputs, outputs, groups)
        assert page.locator("#notice").inner_text() == complaint
        assert chip.get_attribute("aria-disabled") == ("true" if complaint else None)
        assert page.locator(f"#groups-{groups}").get_attribute("aria-checked") == str(not complaint).lower()
        if not complaint:
            possible.append(groups)
            weights = ConvSpec(inputs, outputs, (3, 3), groups=groups).weights
            assert f": {count(weights)} weights" in page.locator("#result").inner_text()
    assert possible == [g for g in range(1, min(inputs, outputs) + 1) if inputs % g == outputs % g == 0]
    assert len(possible) < len(offered)


def test_groups_that_no_longer_divide_give_way_and_the_page_says_so(at: Callable[[str], Page]) -> None:
    page = at("#in=12&out=24&groups=6&show=grouped")
    page.locator("#field-out").fill("20")
    page.locator("#field-out").press("Enter")
    assert state(page)["groups"] == 4
    notice = page.locator("#notice").inner_text()
    assert notice.startswith("groups=6 does not divide out_channels=20")
    assert notice.endswith("now groups=4")


def test_a_kind_of_layer_that_cannot_be_had_says_why(at: Callable[[str], Page]) -> None:
    page = at("#in=8&out=12")
    card = page.locator("#card-depthwise")
    assert card.get_attribute("aria-disabled") == "true"
    card.dispatch_event("click")
    expect(page.locator("#notice")).to_contain_text("groups=8 does not divide out_channels=12")
    assert state(page)["show"] == "standard"
    at("#kernel=1&show=depthwise_first")
    assert state(page)["show"] == "standard"
    expect(page.locator("#notice")).to_contain_text("A 1×1 kernel has nothing to separate")


def test_the_cards_are_chosen_from_by_arrow_keys(at: Callable[[str], Page]) -> None:
    page = at("")
    page.locator("#card-standard").focus()
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowLeft", "Home", "End"):
        page.keyboard.press(key)
        seen.append(state(page)["show"])
        assert page.evaluate("document.activeElement.id") == f"card-{seen[-1]}"
        assert page.locator("#cards [aria-checked=true]").count() == 1
    assert seen == [*KINDS[1:], KINDS[0], KINDS[4], KINDS[0], KINDS[4]]


def test_arrow_keys_reach_groups_that_cannot_be_chosen_and_hear_why(at: Callable[[str], Page]) -> None:
    page = at("")
    page.locator("#groups-2").click()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "groups-3"
    expect(page.locator("#notice")).to_contain_text("groups=3 does not divide in_channels=4")
    page.keyboard.press("ArrowRight")
    assert state(page)["show"] == "depthwise"


def test_a_row_of_the_choices_is_chosen(at: Callable[[str], Page]) -> None:
    page = at("#in=64&out=64&input=8")
    page.get_by_role("button", name="grouped, groups=16").click()
    assert (state(page)["show"], state(page)["groups"]) == ("grouped", 16)
    page.get_by_role("button", name="pointwise → depthwise").click()
    assert state(page)["show"] == "pointwise_first"


def test_the_examples_are_the_articles_layers(at: Callable[[str], Page]) -> None:
    page = at("#in=7&out=9&padding=0&pixel=1")
    weights = []
    for button in page.locator("[data-example]").all():
        button.click()
        weights.append(page.locator("#card-depthwise_first .number").inner_text().split()[0])
    assert weights == ["68", "2,336", "266,752"]


def test_a_layer_without_output_says_what_the_library_says(at: Callable[[str], Page]) -> None:
    page = at("#kernel=5&padding=0")
    with pytest.raises(SeparableValueError) as raised:
        ConvSpec(4, 8, (5, 5)).output_size((3, 3))
    assert page.locator("#result").inner_text() == str(raised.value)
    assert not page.locator("#cards").is_visible()
    page.locator("#auto").click()
    assert page.locator("#cards").is_visible()


WALKS = [
    *(ExplorerState(show=show) for show in KINDS),
    ExplorerState(6, 4, (3, 2), (7, 6), (2, 1), (2, 0), (1, 2), show="grouped"),
    ExplorerState(12, 18, (2, 3), (6, 7), (2, 2), (1, 1), depth_multiplier=2, show="depthwise_first"),
    ExplorerState(12, 9, (3, 3), (8, 8), (2, 2), depth_multiplier=2, show="pointwise_first"),
]


def made_up(shape: tuple[int, ...], stage: int | None = None) -> torch.Tensor:
    """Input or weights as the page makes them up, from the indices alone."""
    i = [torch.tensor(grid) for grid in np.indices(shape)]
    if stage is None:
        c, u, v = i
        return ((7 * c + 5 * u + 3 * v + c * u + u * v) % 5).double()
    m, c, u, v = i
    return ((3 * m + 5 * c + 7 * u + 2 * v + u * v + m * c + stage) % 5 - 2).double()


@pytest.mark.parametrize("shown", WALKS, ids=lambda state: f"{state.show} {state.in_channels}-{state.out_channels}")
def test_a_walked_pixel_is_what_torch_computes(shown: ExplorerState, at: Callable[[str], Page]) -> None:
    values = made_up((shown.in_channels, *shown.input_size))
    explanation = shown.explanation()
    for number, stage in enumerate(explanation.stages):
        spec = stage.spec
        weight = made_up((spec.out_channels, spec.in_channels // spec.groups, *spec.kernel_size), number)
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


def test_a_pixel_is_chosen_by_fields_and_in_the_figure(at: Callable[[str], Page]) -> None:
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


def test_a_link_restores_the_state_and_back_goes_back(at: Callable[[str], Page]) -> None:
    page = at("")
    page.locator("#card-grouped").click()
    page.locator("#field-out").press("PageUp")
    page.get_by_role("button", name="中文").click()
    linked, address = state(page), page.url
    assert (linked["show"], linked["out"], linked["lang"]) == ("grouped", 16, "zh")
    page.go_back()
    assert (state(page)["out"], state(page)["lang"]) == (16, "en")
    page.go_back()
    assert (state(page)["out"], page.locator("#field-out").input_value()) == (8, "8")
    page.go_back()
    assert (state(page)["show"], page.url.partition("#")[2]) == ("standard", "")
    page.go_forward()
    assert state(page)["show"] == "grouped"
    page.goto("about:blank")
    page.goto(address)
    assert state(page) == linked
    assert page.title() == "分组卷积 4 → 16，3×3，2 组 · torch-separable"


def test_an_edited_address_is_followed_without_loading(at: Callable[[str], Page]) -> None:
    page = at("")
    page.evaluate("location.hash = '#in=6&out=9&show=grouped&groups=3'")
    expect(page.locator("#result")).to_contain_text("Grouped convolution 6 → 9, 3×3, 3 groups")


def test_what_is_not_understood_in_an_address_is_named_and_never_markup(at: Callable[[str], Page]) -> None:
    page = at("#in=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E&out=16&kernel=99&colour=red&groups=1.5&show=all&pixel=-1")
    assert state(page) | {"in": 4, "out": 16, "kernel": [3, 3], "show": "standard", "pixel": "auto"} == state(page)
    notice = page.locator("#notice").inner_text()
    entries = "in=<img src=x onerror=alert(1)>, kernel=99"
    assert notice.startswith(WORDS["notice.unread"].format(entries=entries))
    assert page.locator("img").count() == 0


def test_the_language_switches_everything_but_the_numbers(at: Callable[[str], Page]) -> None:
    page = at("#show=depthwise_first")
    english = {name: texts(page.locator(f"#{name}")) for name in ("cards", "choices", "formula")}
    page.get_by_role("button", name="中文").click()
    assert page.locator("html").get_attribute("lang") == "zh-Hans"
    assert "lang=zh" in page.url
    assert page.locator("h1").inner_text() == "一个卷积层的代价"
    for name, before in english.items():
        after = texts(page.locator(f"#{name}"))
        assert numbers(after) == numbers(before)
        assert not re.search(r"[a-z]{4}", "".join(after).replace("groups", ""))
    assert {"输入", "逐通道", "中间", "逐点", "输出"} <= set(labels(page))
    assert "68 个权重" in page.locator("#result").inner_text()
    page.get_by_role("button", name="English").click()
    assert page.locator("html").get_attribute("lang") == "en"


def numbers(lines: list[str]) -> list[str]:
    return sorted(re.findall(r"\d[\d,.]*", " ".join(lines)))


def labels(page: Page) -> list[str]:
    found: list[str] = page.locator("#figure text").all_text_contents()
    return found


def test_a_chinese_browser_gets_chinese_unless_the_link_says_otherwise(
    new_page: Callable[..., Page], explorer: str
) -> None:
    page = new_page(locale="zh-CN")
    page.goto(explorer)
    assert page.locator("html").get_attribute("lang") == "zh-Hans"
    page.goto("about:blank")
    page.goto(explorer + "#lang=en")
    assert page.locator("html").get_attribute("lang") == "en"


def downloaded(page: Page, what: str, form: str, folder: Path) -> Path:
    with page.expect_download() as caught:
        page.locator(f'[data-save="{what}"][data-form="{form}"]').click()
    path = folder / caught.value.suggested_filename
    caught.value.save_as(path)
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_are_saved_as_svg_that_stands_alone(
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
def test_the_page_fits_and_the_figures_words_stay_apart(
    width: int, new_page: Callable[..., Page], explorer: str
) -> None:
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


def test_everything_is_reached_by_tab_and_shows_the_focus(at: Callable[[str], Page]) -> None:
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


def test_less_motion_is_respected(new_page: Callable[..., Page], explorer: str) -> None:
    durations = {}
    for wish in ("no-preference", "reduce"):
        page = new_page(reduced_motion=wish)
        page.goto(explorer)
        durations[wish] = page.evaluate("getComputedStyle(document.getElementById('used-bar')).transitionDuration")
        assert page.locator("#progress").input_value() == "0"
    assert durations == {"no-preference": "0.12s", "reduce": "0s"}


def test_print_is_light_and_leaves_the_controls_out(new_page: Callable[..., Page], explorer: str) -> None:
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


@pytest.mark.parametrize("shown", WALKS, ids=lambda state: f"{state.show} {state.in_channels}-{state.out_channels}")
def test_the_code_on_the_page_is_the_shown_layer(
    shown: ExplorerState, page: Page, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_explorer(tmp_path / "page.html", shown)
    page.goto((tmp_path / "page.html").as_uri())
    names: dict[str, Any] = {}
    exec(page.locator("#code").inner_text(), names)
    assert sum(each.numel() for each in names["layer"].parameters()) == shown.explanation().parameters
    assert shown.explanation().title in capsys.readouterr().out.replace("\n", " ")


def test_only_one_name_is_added_to_the_window(at: Callable[[str], Page]) -> None:
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


def test_the_embedded_data_is_what_the_library_makes_now(at: Callable[[str], Page]) -> None:
    embedded = at("").evaluate("JSON.parse(document.getElementById('data').textContent).vectors")
    assert embedded == json.loads(json.dumps(vectors()))
