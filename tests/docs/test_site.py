"""The documentation site: it builds strictly, every link leads somewhere, and it fetches nothing from elsewhere."""

from __future__ import annotations

import re
import runpy
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import torch_separable as ts

WEBSITE = Path(__file__).resolve().parents[2] / "docs" / "website"
pytest.importorskip("zensical", reason="zensical is not installed: pip install '.[docs]'")
pytest.importorskip(
    "mkdocstrings_handlers.python", reason="mkdocstrings-python is not installed: pip install '.[docs]'"
)
pytest.importorskip("nbformat", reason="nbformat is not installed: pip install '.[docs]'")
BUILDER = runpy.run_path(str(WEBSITE / "build.py"))


class Read(HTMLParser):
    """A page's anchors, the places that it leads to, and what a browser loads to show it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors, self.links, self.loads = set[str](), list[str](), list[str]()
        self.language = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        values = dict(attrs)
        self.anchors.update(filter(None, (values.get("id"), values.get("name"))))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("canonical", "prev", "next", "alternate"):
            self.loads.append(values["href"])
        elif tag in ("script", "img", "iframe", "source", "video", "audio") and "src" in values:
            self.loads.append(values["src"])
        if tag == "article":
            self.language = values.get("lang", "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("site") / "site"
    BUILDER["build"](folder)
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Read]:
    return {path.name: Read(path) for path in site.glob("*.html") if path.name != "404.html"}


def test_every_document_is_a_page_and_in_the_menu(pages: dict[str, Read]) -> None:
    documents = {path.stem for path in WEBSITE.parent.glob("*.md")} | {
        Path(page).stem for page in BUILDER["PAGES"].values()
    }
    assert {f"{name}.html" for name in documents} | {"explorer.html"} == set(pages)
    config = tomllib.loads((WEBSITE / "zensical.toml").read_text(encoding="utf-8"))
    menu = re.findall(r"'([\w.-]+\.(?:md|html))'", str(config["project"]["nav"]))
    assert sorted(Path(entry).stem for entry in menu) == sorted(Path(name).stem for name in pages)


def test_every_link_leads_to_a_file_and_a_place_in_it(site: Path, pages: dict[str, Read]) -> None:
    broken, tried = [], 0
    for name, page in pages.items():
        if name == "explorer.html":
            continue  # its links carry a state
        for link in page.links:
            place = urlsplit(link)
            if place.scheme or place.netloc:
                continue
            tried += 1
            path = (site / unquote(place.path)) if place.path else site / name
            path = path / "index.html" if path.is_dir() else path
            anchors = pages[path.name].anchors if path.name in pages else set()
            if not path.is_file() or (place.fragment and unquote(place.fragment) not in anchors):
                broken.append(f"{name}: {link}")
    assert tried > 300
    assert broken == []


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[str, Read]) -> None:
    for name, page in pages.items():
        for load in page.loads:
            assert not re.match(r"(?:[a-z]+:)?//", load), f"{name} loads {load}"
            assert load.startswith("data:") or (site / urlsplit(load).path).is_file(), f"{name} loads {load}"
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert len(styles) >= 3
    assert [url for text in styles for url in re.findall(r"(?:url\(|@import\s)[\s\"']*(?:https?:)?//[^)]*", text)] == []


def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    BUILDER["stage"](tmp_path)
    with (tmp_path / "docs" / "article.md").open("a", encoding="utf-8") as page:
        page.write("\n[nowhere](nowhere.md)\n")
    with pytest.raises(SystemExit, match="not built"):
        BUILDER["render"](tmp_path)


@pytest.mark.parametrize(
    ("target", "source", "page"),
    [
        ("docs/article.md", "README.md", "article.md"),
        ("CONTRIBUTING.md", "README.md", "contributing.md"),
        ("../CONTRIBUTING.md", "docs/architecture.md", "contributing.md"),
        ("../README.md", "docs/architecture.md", "index.md"),
        ("export.md", "docs/tutorial.ipynb", "export.md"),
        ("tutorial.ipynb", "docs/article.md", "tutorial.md"),
        ("figures/standard.svg", "docs/article.md", "figures/standard.svg"),
        ("https://keepachangelog.com", "CHANGELOG.md", "https://keepachangelog.com"),
        ("../native/kernels/gemm.h", "docs/kernels.md", "../native/kernels/gemm.h"),
    ],
)
def test_links_among_documents_are_led_to_pages(target: str, source: str, page: str) -> None:
    assert BUILDER["led"](target, source) == page


def test_the_reference_tells_of_every_public_name(pages: dict[str, Read]) -> None:
    told = {
        anchor.rpartition(".")[2] for anchor in pages["reference.html"].anchors if anchor.startswith("torch_separable.")
    }
    modules = {"importing", "models", "nn", "runtime"}
    public = (
        {*ts.__all__, *ts.nn.__all__, *ts.models.__all__, *ts.runtime.__all__} - modules - {"__version__", "NETWORKS"}
    )
    assert sorted(public - told) == []


def test_examples_of_the_reference_are_code(site: Path) -> None:
    text = (site / "reference.html").read_text(encoding="utf-8")
    assert text.count("Examples:") > 20
    assert "<blockquote>" not in text
    assert not re.search(r"<p>[^<]*&gt;&gt;&gt;", text)


def test_the_notebooks_outputs_are_on_its_page(site: Path) -> None:
    text = (site / "tutorial.html").read_text(encoding="utf-8")
    assert text.count('class="output"') >= 10
    assert "largest difference" in text
    assert "<svg" in text.partition('class="output"')[2]
    assert (site / "tutorial.ipynb").read_bytes() == (WEBSITE.parent / "tutorial.ipynb").read_bytes()


def test_the_chinese_page_says_that_it_is_chinese(pages: dict[str, Read]) -> None:
    assert (pages["article.zh.html"].language, pages["article.html"].language) == ("zh", "")
