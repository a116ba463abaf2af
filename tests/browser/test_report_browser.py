"""The page of a run as a reader has it: opened from disk, every control used, its numbers beside those of the JSON."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")
pytest.importorskip("vl_convert", reason="vl-convert-python is not installed: pip install '.[report]'")
from playwright.sync_api import Browser, Page, expect

from torch_separable._system.files import write_json
from torch_separable.artifacts import run_directory
from torch_separable.bench.compare import compare, step
from torch_separable.conversion import Budget, convert
from torch_separable.models.registry import Network
from torch_separable.report import write_report

SCRIPT = "<script>alert(1)</script>"
CLOSING = "</script><img src=x onerror=alert(2)>&quot;'\""
WIDTHS = [360, 820, 1440]
HEADS = ["#", "layer", "dense ⇒ becomes", "MACs", "MACs ÷", "parameters", "ms", "error", "why"]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[tuple[str, nn.Module]] = [
        ("stem", nn.Conv2d(3, 8, 3, padding=1)),
        ("norm", nn.BatchNorm2d(8)),
        (SCRIPT, nn.Conv2d(8, 16, 3, padding=1, stride=2)),
        (CLOSING, nn.Conv2d(16, 16, 3, padding=1)),
        ("a_layer_whose_name_is_far_longer_than_any_column", nn.Conv2d(16, 24, 3, padding=1)),
        ("pointwise", nn.Conv2d(24, 8, 1)),
        ("pool", nn.AdaptiveAvgPool2d(1)),
        ("flat", nn.Flatten()),
        ("head", nn.Linear(8, 10)),
    ]
    return nn.Sequential(OrderedDict((name.replace(".", ""), layer) for name, layer in layers)).eval()


def epoch(number: int, loss: float, accuracy: float | None = None) -> dict[str, Any]:
    validation = None if accuracy is None else {"correct": 1, "count": 2, "accuracy": accuracy, "loss": 1.0}
    record = {"kind": "epoch", "epoch": number, "step": 4 * number, "loss": loss, "agreement": 1 - loss / 4}
    return {**record, "learning_rate": 1e-3, "seconds": 1.0, "validation": validation}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as `separable` leaves it, of a network whose layers have names that are markup."""
    dense, images = network(), torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    conversion = convert(dense, images, budget=Budget(macs=0.45))
    compared = compare(dense, conversion.model, images[:2])
    evaluations = [{"accuracy": n / 400, "correct": n, "count": 400} for n in (390, 380, 388)]
    named = zip(("dense", f"converted {SCRIPT}", "distilled"), (0, 1, 1), evaluations, strict=True)
    results = {
        "kind": "demo",
        "title": f"A run of {SCRIPT} & more",
        "data": {"train": 1200, "test": 400},
        "steps": [
            step(name, compared.macs[i], compared.parameters[i], compared.bytes[i], evaluation)
            for name, i, evaluation in named
        ],
        "curve": [
            {"method": method, "macs": macs, "accuracy": accuracy, "parameters": 1}
            for method, macs, accuracy in (
                ("svd", 40_000, 0.31),
                ("svd", 90_000, 0.62),
                ("least_squares", 40_000, 0.91),
                ("least_squares", 90_000, 0.95),
            )
        ],
        "conversion": conversion.report.to_dict(),
        "milliseconds": compared.times(),
        "layers": compared.layer_rows(),
        "history": [epoch(i, 1 / i, 0.9 + i / 100) for i in range(1, 6)],
    }
    place = tmp_path_factory.mktemp("run")
    settings = {"budget": "macs=0.45", "note": SCRIPT}
    run_directory.write_run(
        place,
        conversion.model,
        conversion.plan,
        Network("some.package:function"),
        settings,
        results,
        command=f"separable demo --output 'a & {SCRIPT}'",
    )
    write_report(place)
    return place


def document(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def drawn(page: Page, folder: Path) -> Page:
    page.goto((folder / run_directory.PAGE).as_uri())
    expect(page.locator("html[data-drawn]")).to_have_count(1, timeout=20_000)
    return page


@pytest.fixture
def report(page: Page, folder: Path) -> Page:
    """The page at 1280 pixels, its charts drawn."""
    return drawn(page, folder)


def column(page: Page, head: str) -> list[str]:
    """The texts of a column of the table of layers, in the order in which they stand, of the rows that are shown."""
    cells = page.locator(f"#layers-table tbody tr:visible > :nth-child({HEADS.index(head) + 1})")
    return [re.sub(r"\s+", " ", text).strip() for text in cells.all_text_contents()]


def natural(text: str) -> list[tuple[int, str]]:
    """A key by which words sort as words, and numbers as numbers and before them."""
    parts = re.findall(r"\d+|[a-z]+", text.lower())
    return [(int(part), "") if part.isdecimal() else (10**9, part) for part in parts]


def test_headline_and_steps_are_those_of_the_results(report: Page, folder: Path) -> None:
    results = document(folder, run_directory.RESULTS)
    dense, last, times = results["steps"][0], results["steps"][-1], results["milliseconds"]
    pair = times["compiled"] or times
    speed = pair["dense"] / pair["separable"]
    engine = "compiled" if times["compiled"] else "eager"
    macs = dense["macs"] / last["macs"]
    cards = [re.sub(r"\s+", " ", text).strip() for text in report.locator(".cards li").all_inner_texts()]
    assert cards == [
        "97.00 % accuracy 97.50 % → 97.00 % of 400 images",
        f"{dense['parameters'] / last['parameters']:.2f}x fewer parameters "
        f"{dense['parameters']:,} → {last['parameters']:,}",
        f"{macs:.2f}x fewer MACs {dense['macs']:,} → {last['macs']:,}",
        f"{dense['bytes'] / last['bytes']:.2f}x smaller weights {dense['bytes']:,} → {last['bytes']:,} bytes",
        f"{speed if speed >= 1 else 1 / speed:.2f}x {'as fast' if speed >= 1 else 'as long'} "
        f"{pair['dense']:.3g} → {pair['separable']:.3g} ms, {engine}",
        f"{100 * speed / macs:.0f} % of the MAC reduction realized {macs:.2f}x fewer MACs, {speed:.2f}x the speed",
    ]
    rows = [row.split("\t") for row in report.locator("#steps-table tbody tr").all_inner_texts()]
    assert rows == [
        [
            str(i),
            step["name"],
            f"{100 * step['accuracy']:.2f} %",
            f"{step['macs']:,}",
            f"{step['parameters']:,}",
            f"{step['bytes']:,}",
        ]
        for i, step in enumerate(results["steps"], start=1)
    ]


def test_layers_are_those_of_the_plan_and_of_the_measurement(report: Page, folder: Path) -> None:
    plan, results = document(folder, run_directory.PLAN), document(folder, run_directory.RESULTS)
    measured = {layer["name"]: layer for layer in results["layers"]}
    assert column(report, "layer") == [layer["name"] for layer in plan["layers"]]
    assert column(report, "why") == [layer["reason"] for layer in plan["layers"]]

    def change(pair: list[float], form: str) -> str:
        before, after = (format(value, form) for value in pair)
        return before if pair[0] == pair[1] else f"{before} →to {after}"

    assert column(report, "MACs") == [change(measured[layer["name"]]["macs"], ",") for layer in plan["layers"]]
    assert column(report, "parameters") == [
        change(measured[layer["name"]]["parameters"], ",") for layer in plan["layers"]
    ]
    assert column(report, "ms") == [change(measured[layer["name"]]["milliseconds"], ".2f") for layer in plan["layers"]]
    assert column(report, "error") == [
        f"{100 * layer['error']:.2f} %" if layer["order"] else "" for layer in plan["layers"]
    ]
    totals = report.locator("#layers-table tfoot tr").all_text_contents()
    assert change(plan["macs"], ",") in totals[1]
    assert change(plan["parameters"], ",") in totals[1]
    convolutions = [layer["name"] for layer in plan["layers"]]
    rest = sum(layer["parameters"][0] for name, layer in measured.items() if name not in convolutions)
    assert f"{rest:,}" in totals[0]


def test_every_column_sorts_both_ways_and_says_so(report: Page, folder: Path) -> None:
    names = [layer["name"] for layer in document(folder, run_directory.PLAN)["layers"]]
    for index, head in enumerate(HEADS, start=1):
        cell = report.locator(f"#layers-table thead th:nth-child({index})")
        orders = {}
        for _ in range(2):
            cell.get_by_role("button").click()
            direction = cell.get_attribute("aria-sort")
            assert report.locator("#layers-table thead [aria-sort]").count() == 1
            cells = report.locator(f"#layers-table tbody tr > :nth-child({index})")
            orders[direction] = cells.evaluate_all("cells => cells.map((cell) => cell.dataset.value)")
            assert sorted(column(report, "layer")) == sorted(names)
            count = report.locator("#layers-count").inner_text()
            assert count.endswith(f"by {head}, {direction}" if index > 1 or direction == "descending" else "order")
        assert set(orders) == {"ascending", "descending"}
        if head in ("layer", "dense ⇒ becomes", "why"):
            words = {direction: [natural(text) for text in texts] for direction, texts in orders.items()}
            assert words["ascending"][0] < words["ascending"][-1]
            assert words["descending"][0] > words["descending"][-1]
        else:
            values = {direction: list(map(float, texts)) for direction, texts in orders.items()}
            assert values["ascending"] == sorted(values["ascending"])
            assert values["descending"] == sorted(values["descending"], reverse=True)


def test_table_is_sorted_by_the_keyboard_alone(report: Page) -> None:
    button = report.locator("#layers-table thead th").nth(HEADS.index("MACs")).get_by_role("button")
    button.focus()
    report.keyboard.press("Enter")
    assert report.locator("th[aria-sort=descending]").inner_text() == "MACs"
    report.keyboard.press("Space")
    assert report.locator("th[aria-sort=ascending]").inner_text() == "MACs"


def test_table_is_searched_and_filtered(report: Page, folder: Path) -> None:
    layers = document(folder, run_directory.PLAN)["layers"]
    search, show, count = (report.locator(f"#layers-{name}") for name in ("search", "show", "count"))
    search.fill("<SCRIPT> conv2d")
    assert column(report, "layer") == [SCRIPT]
    assert count.inner_text() == f"1 of {len(layers)} layers, in the network's order"
    search.fill("no such layer")
    assert report.locator("#layers-table tbody tr:visible").all_inner_texts() == ["No layer matches."]
    search.fill("")
    show.select_option("kept")
    assert column(report, "layer") == [layer["name"] for layer in layers if layer["order"] is None]
    show.select_option("converted")
    assert column(report, "layer") == [layer["name"] for layer in layers if layer["order"] is not None]
    show.select_option("all")
    assert len(column(report, "layer")) == len(layers)


def test_phone_sorts_by_the_list(new_page: Callable[..., Page], folder: Path) -> None:
    page = drawn(new_page(viewport={"width": 360, "height": 800}), folder)
    assert not page.locator("#layers-table thead").is_visible()
    page.locator("#layers-sort").select_option("parameters")
    page.locator("#layers-turn").click()
    values = page.locator("#layers-table tbody [data-label=parameters]").evaluate_all(
        "cells => cells.map((cell) => Number(cell.dataset.value))"
    )
    assert values == sorted(values)
    assert page.locator("#layers-count").inner_text().endswith("by parameters, ascending")


def test_chart_of_layers_shows_what_is_chosen(report: Page, folder: Path) -> None:
    convolutions = [layer["name"] for layer in document(folder, run_directory.PLAN)["layers"]]
    measured = {layer["name"]: layer for layer in document(folder, run_directory.RESULTS)["layers"]}
    bars = report.locator("#chart-layers .mark-rect.role-mark path")
    before = None
    for choice, key in (("parameters", "parameters"), ("ms", "milliseconds"), ("MACs", "macs")):
        report.locator(f"#metric input[value={choice}]").check()
        report.wait_for_function(
            "before => document.querySelector('#chart-layers .mark-rect.role-mark path').getAttribute('d') !== before",
            arg=before,
        )
        before = bars.first.get_attribute("d")
        widths = bars.evaluate_all("bars => bars.map((bar) => bar.getBBox().width)")
        others = [layer[key] for name, layer in measured.items() if name not in convolutions]
        rows = [measured[name][key] for name in convolutions] + [[sum(pair[i] for pair in others) for i in (0, 1)]]
        values = [pair[0] for pair in rows] + [pair[1] for pair in rows]  # the dense bars lie below the others
        assert len(widths) == len(values)
        scale = max(widths) / max(values)
        assert widths == pytest.approx([scale * value for value in values], rel=0.02, abs=0.5)


def test_charts_say_in_words_what_they_show(report: Page, folder: Path) -> None:
    results = document(folder, run_directory.RESULTS)
    said = report.locator("#chart-accuracy").get_attribute("aria-label")
    assert said is not None
    for one in results["steps"]:
        assert f"{one['name']} {100 * one['accuracy']:.2f} % at {one['macs']:,} MACs" in said
    assert "least squares without training 95.00 % at 90,000 MACs" in said
    for name in ("shares", "layers", "loss", "agreement"):
        chart = report.locator(f"#chart-{name}")
        assert chart.get_attribute("role") == "img"
        assert len(chart.get_attribute("aria-label") or "") > 40
        assert chart.locator("svg").count() == 1


def test_curves_and_epochs_stand_there_in_numbers(report: Page, folder: Path) -> None:
    results = document(folder, run_directory.RESULTS)
    for details in report.locator("summary").all():
        details.click()
    rows = [row.split("\t") for row in report.locator("#epochs-table tbody tr").all_inner_texts()]
    assert rows == [
        [
            "distillation",
            str(e["epoch"]),
            f"{e['loss']:.4f}",
            f"{100 * e['agreement']:.2f} %",
            f"{100 * e['validation']['accuracy']:.2f} %",
            "0.001",
        ]
        for e in results["history"]
    ]
    points = {tuple(row.split("\t")) for row in report.locator("#curve-table tbody tr").all_inner_texts()}
    assert ("SVD of the weights (baseline)", "40,000", "31.00 %") in points
    assert len(points) == 4


def test_tooltip_shows_the_layer_as_text(report: Page) -> None:
    report.locator("#chart-layers .mark-rect.role-mark path").nth(1).hover(force=True)
    tooltip = report.locator("#vg-tooltip-element")
    expect(tooltip).to_be_visible()
    assert SCRIPT in tooltip.inner_text()
    assert tooltip.locator("script, img").count() == 0


def test_names_and_words_of_the_run_are_only_text(page: Page, folder: Path) -> None:
    alerts: list[str] = []
    page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    report = drawn(page, folder)
    assert alerts == []
    assert report.locator("h1").inner_text() == f"A run of {SCRIPT} & more"
    assert report.title() == f"A run of {SCRIPT} & more"
    assert report.locator("img, [onerror]").count() == 0
    assert report.locator("script").count() == 3, "the bundle, the page's own, and the charts' data"
    assert SCRIPT in report.locator("dd").all_inner_texts()
    specs = report.evaluate("JSON.parse(document.getElementById('specs').textContent)")
    assert CLOSING.replace(".", "") in json.dumps(specs, ensure_ascii=False).replace('\\"', '"')


def test_policy_of_the_page_lets_no_other_script_run(browser: Browser, folder: Path, tmp_path: Path) -> None:
    page = browser.new_page()  # not the fixture's, on which the console's error would be a failure
    html = (folder / run_directory.PAGE).read_text(encoding="utf-8")
    (tmp_path / "spoilt.html").write_text(html.replace("<h1>", "<script>window.ran = true</script><h1>", 1))
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto((tmp_path / "spoilt.html").as_uri())
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in text for text in refused)
    page.context.close()


def test_command_is_copied(report: Page, folder: Path) -> None:
    report.context.grant_permissions(["clipboard-read", "clipboard-write"])
    report.get_by_role("button", name="copy the command").click()
    expect(report.locator("#copied")).to_have_text("Copied.")
    assert report.evaluate("navigator.clipboard.readText()") == document(folder, run_directory.CONFIG)["command"]


def test_theme_is_the_systems_until_another_is_chosen(new_page: Callable[..., Page], folder: Path) -> None:
    page = drawn(new_page(color_scheme="dark"), folder)

    def colours() -> tuple[str, str]:
        found = page.evaluate(
            """() => [getComputedStyle(document.body).backgroundColor,
                      getComputedStyle(document.querySelector("#chart-shares text")).fill]"""
        )
        return tuple(found)

    dark = colours()
    button = page.locator("#theme")
    button.click()
    light = colours()
    assert button.inner_text() == "theme: light"
    assert light[0] == "rgb(255, 255, 255)"
    assert dark[0] != light[0]
    assert dark[1] != light[1], "charts follow"
    button.click()
    assert colours() == dark
    button.click()
    assert (button.inner_text(), colours()) == ("theme: system", dark)


def test_print_is_light_whole_and_fits_the_paper(new_page: Callable[..., Page], folder: Path) -> None:
    page = drawn(new_page(color_scheme="dark", viewport={"width": 690, "height": 900}), folder)
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 690
    assert page.locator("#epochs-table").is_visible()
    assert not page.locator("#layers-search").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")


OUTSIDE = """(width) => [...document.querySelectorAll(".chart svg")].flatMap((svg) => {
    const room = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")]; // of legends, axes and marks
    const out = texts.filter((text) => {
        const box = text.getBoundingClientRect();
        const beside = box.left < room.left - 1 || box.right > room.right + 1;
        return beside || box.top < room.top - 1 || box.bottom > room.bottom + 1;
    });
    const whole = texts.length > 0 && room.right <= width;
    return [...out.map((text) => text.textContent), ...(whole ? [] : ["the chart itself"])];
})"""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_the_window_and_is_accessible(
    new_page: Callable[..., Page], axe: Callable[[Page], None], folder: Path, width: int, scheme: str
) -> None:
    page = drawn(new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), folder)
    for details in page.locator("summary").all():
        details.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OUTSIDE, width) == []
    page.set_viewport_size({"width": 500, "height": 900})
    page.wait_for_function(f"() => ({OUTSIDE})(500).length === 0", timeout=5_000)
    page.set_viewport_size({"width": width, "height": 900})
    axe(page)


def test_page_without_scripts_still_tells_everything(new_page: Callable[..., Page], folder: Path) -> None:
    page = new_page(java_script_enabled=False)
    page.goto((folder / run_directory.PAGE).as_uri())
    assert "JavaScript" in page.locator("noscript").inner_text()
    assert len(column(page, "layer")) == len(document(folder, run_directory.PLAN)["layers"])
    assert not page.locator("#layers-search").is_visible()


@pytest.mark.parametrize("damage", [run_directory.RESULTS, run_directory.PLAN, run_directory.CONFIG])
def test_damaged_run_is_shown_as_far_as_it_goes(
    new_page: Callable[..., Page], axe: Callable[[Page], None], folder: Path, tmp_path: Path, damage: str
) -> None:
    for name in (run_directory.RESULTS, run_directory.PLAN, run_directory.CONFIG):
        write_json(tmp_path / name, document(folder, name))
    (tmp_path / damage).write_text('{"half')
    write_report(tmp_path)
    page = drawn(new_page(), tmp_path)
    problems = page.locator(".problems li").all_inner_texts()
    assert len(problems) == 1
    assert problems[0].startswith(f"{damage} is damaged (")
    assert page.locator(".cards").count() == (damage != run_directory.RESULTS)
    assert len(column(page, "layer")) > 4
    assert page.locator("pre").count() == (damage != run_directory.CONFIG)
    axe(page)
