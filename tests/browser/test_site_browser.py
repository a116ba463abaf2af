"""The documentation site in a browser, from disk: it reads at every width, its search works, and nothing is fetched."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

BUILDER = Path(__file__).resolve().parents[2] / "docs" / "website" / "build.py"


@pytest.fixture(scope="module")
def site(browser: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; asked for after the browser, so that it is not built where no browser looks at it."""
    for needed in ("zensical", "mkdocstrings_handlers.python", "nbformat"):
        pytest.importorskip(needed, reason=f"{needed} is not installed: pip install '.[docs]'")
    folder: Path = tmp_path_factory.mktemp("site") / "site"
    runpy.run_path(str(BUILDER))["build"](folder)
    return folder


@pytest.mark.parametrize("width", [360, 1400])
def test_pages_read_without_scrolling_sideways(site: Path, new_page: Callable[..., Page], width: int) -> None:
    page = new_page(viewport={"width": width, "height": 900})
    for name in ("index.html", "article.html", "tutorial.html", "kernels.html"):
        page.goto((site / name).as_uri())
        assert page.locator("h1").first.inner_text().strip(), name
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name


def test_search_finds_a_page_from_disk(site: Path, page: Page) -> None:
    page.goto((site / "index.html").as_uri())
    page.get_by_role("button", name="Search").first.click()
    field = page.get_by_role("combobox").first
    for typed, letter in enumerate("micro-kernel", start=1):
        page.keyboard.type(letter)
        page.wait_for_timeout(60)  # the answer to each letter draws the field again
        assert field.input_value() == "micro-kernel"[:typed]
    result = page.locator("[role=option][href*='kernels.html']").first
    result.wait_for()
    result.click()
    page.wait_for_url("**/kernels.html*")
    assert page.locator("h1").first.inner_text().startswith("How the kernels work")


def test_the_theme_follows_the_system_and_can_be_chosen(site: Path, new_page: Callable[..., Page]) -> None:
    page = new_page(color_scheme="dark")
    page.goto((site / "index.html").as_uri())
    scheme = "document.body.getAttribute('data-md-color-scheme')"
    assert page.evaluate(scheme) == "slate"
    page.locator("label[title='Use the light theme']:visible").click()
    assert page.evaluate(scheme) == "default"


@pytest.mark.parametrize(
    ("name", "scheme"), [("index.html", "light"), ("article.html", "dark"), ("tutorial.html", "light")]
)
def test_nothing_serious_is_in_the_way_of_a_screen_reader(
    site: Path, new_page: Callable[..., Page], name: str, scheme: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = new_page(color_scheme=scheme, viewport={"width": 800, "height": 900})
    page.goto((site / name).as_uri())
    # Reading style sheets anew, as axe does by default, is what a page from disk may not do.
    found = Axe().run(page, options={"preload": False})
    serious = [each for each in found.response["violations"] if each["impact"] in ("serious", "critical")]
    assert [(each["id"], each["nodes"][0]["html"], len(each["nodes"])) for each in serious] == []
