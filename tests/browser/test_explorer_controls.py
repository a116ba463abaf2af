"""The explorer's controls: fields, groups, kinds of layer, links and language."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")
from playwright.sync_api import Page, expect

from explorer_cases import FIELDS, KINDS, WORDS, labels, numbers, state, texts
from torch_separable.cost.formulas import ConvSpec
from torch_separable.errors import SeparableValueError
from torch_separable.explanation.arithmetic import count


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
def test_invalid_field_is_restored_with_a_notice(text: str, at: Callable[..., Page]) -> None:
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
def test_only_groups_that_divide_the_channels_can_be_chosen(
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


def test_groups_that_no_longer_divide_are_replaced_with_a_notice(at: Callable[[str], Page]) -> None:
    page = at("#in=12&out=24&groups=6&show=grouped")
    page.locator("#field-out").fill("20")
    page.locator("#field-out").press("Enter")
    assert state(page)["groups"] == 4
    notice = page.locator("#notice").inner_text()
    assert notice.startswith("groups=6 does not divide out_channels=20")
    assert notice.endswith("now groups=4")


def test_impossible_kind_of_layer_is_explained(at: Callable[[str], Page]) -> None:
    page = at("#in=8&out=12")
    card = page.locator("#card-depthwise")
    assert card.get_attribute("aria-disabled") == "true"
    card.dispatch_event("click")
    expect(page.locator("#notice")).to_contain_text("groups=8 does not divide out_channels=12")
    assert state(page)["show"] == "standard"
    at("#kernel=1&show=depthwise_first")
    assert state(page)["show"] == "standard"
    expect(page.locator("#notice")).to_contain_text("A 1×1 kernel has nothing to separate")


def test_arrow_keys_choose_cards(at: Callable[[str], Page]) -> None:
    page = at("")
    page.locator("#card-standard").focus()
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowLeft", "Home", "End"):
        page.keyboard.press(key)
        seen.append(state(page)["show"])
        assert page.evaluate("document.activeElement.id") == f"card-{seen[-1]}"
        assert page.locator("#cards [aria-checked=true]").count() == 1
    assert seen == [*KINDS[1:], KINDS[0], KINDS[4], KINDS[0], KINDS[4]]


def test_arrow_keys_reach_disabled_groups_and_their_reason(at: Callable[[str], Page]) -> None:
    page = at("")
    page.locator("#groups-2").click()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "groups-3"
    expect(page.locator("#notice")).to_contain_text("groups=3 does not divide in_channels=4")
    page.keyboard.press("ArrowRight")
    assert state(page)["show"] == "depthwise"


def test_a_row_of_the_table_chooses_its_layer(at: Callable[[str], Page]) -> None:
    page = at("#in=64&out=64&input=8")
    page.get_by_role("button", name="grouped, groups=16").click()
    assert (state(page)["show"], state(page)["groups"]) == ("grouped", 16)
    page.get_by_role("button", name="pointwise → depthwise").click()
    assert state(page)["show"] == "pointwise_first"


def test_links_and_the_back_button_restore_the_state(at: Callable[[str], Page]) -> None:
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


def test_edited_fragment_is_applied_without_reloading(at: Callable[[str], Page]) -> None:
    page = at("")
    page.evaluate("location.hash = '#in=6&out=9&show=grouped&groups=3'")
    expect(page.locator("#result")).to_contain_text("Grouped convolution 6 → 9, 3×3, 3 groups")


def test_unknown_entries_of_a_fragment_are_named_and_escaped(at: Callable[[str], Page]) -> None:
    page = at("#in=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E&out=16&kernel=99&colour=red&groups=1.5&show=all&pixel=-1")
    assert state(page) | {"in": 4, "out": 16, "kernel": [3, 3], "show": "standard", "pixel": "auto"} == state(page)
    notice = page.locator("#notice").inner_text()
    entries = "in=<img src=x onerror=alert(1)>, kernel=99"
    assert notice.startswith(WORDS["notice.unread"].format(entries=entries))
    assert page.locator("img").count() == 0


def test_language_switch_changes_everything_but_the_numbers(at: Callable[[str], Page]) -> None:
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


def test_browser_language_is_the_default(new_page: Callable[..., Page], explorer: str) -> None:
    page = new_page(locale="zh-CN")
    page.goto(explorer)
    assert page.locator("html").get_attribute("lang") == "zh-Hans"
    page.goto("about:blank")
    page.goto(explorer + "#lang=en")
    assert page.locator("html").get_attribute("lang") == "en"
