"""The article: its code runs in both languages, says the same in both, and its figures are the ones drawn today."""

from __future__ import annotations

import doctest
import re
import runpy
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
ARTICLES = [DOCS / "article.md", DOCS / "article.zh.md"]


def python_blocks(article: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", article.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("article", ARTICLES, ids=lambda path: path.name)
def test_the_code_runs_and_prints_what_the_article_says(article: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code = "\n".join(python_blocks(article))
    test = doctest.DocTestParser().get_doctest(code, {}, article.name, str(article), 0)
    complaints: list[str] = []
    result = doctest.DocTestRunner().run(test, out=complaints.append)
    assert result.attempted > 20
    assert result.failed == 0, "".join(complaints)


def test_both_languages_show_the_same_code_and_figures() -> None:
    english, chinese = ARTICLES
    assert python_blocks(english) == python_blocks(chinese)
    figures = [re.findall(r"\]\((figures/[^)]+)\)", article.read_text(encoding="utf-8")) for article in ARTICLES]
    assert figures[0] == figures[1]


@pytest.mark.parametrize("article", ARTICLES, ids=lambda path: path.name)
def test_links_lead_somewhere(article: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", article.read_text(encoding="utf-8"))
    assert len(targets) >= 4
    assert [target for target in targets if not target.startswith("http") and not (DOCS / target).is_file()] == []


def test_the_numbers_of_the_example_are_in_both_languages() -> None:
    for article in ARTICLES:
        text = article.read_text(encoding="utf-8")
        assert all(f"**{weights}**" in text for weights in (288, 144, 68))
        assert all(parameters in text for parameters in ("296", "152", "40 + 40 = 80"))


def test_the_figures_are_those_that_the_script_draws() -> None:
    figures = runpy.run_path(str(DOCS / "figures" / "make.py"))["figures"]()
    assert sorted(figures) == sorted(path.name for path in (DOCS / "figures").glob("*.svg"))
    for name, drawn in figures.items():
        kept = (DOCS / "figures" / name).read_text(encoding="utf-8")
        assert words(kept) == words(drawn), f"{name} is out of date: run python docs/figures/make.py"


def words(svg: str) -> list[str]:
    """The text of a figure, apart from coordinates, which matplotlib's versions may round differently."""
    return ["".join(text.itertext()) for text in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
