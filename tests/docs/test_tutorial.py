"""The notebook: it runs, gives today what it was saved with, and holds nothing of the machine that ran it."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from torch_separable.runtime import available

DOCS = Path(__file__).resolve().parents[2] / "docs"
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install '.[docs]'")
SAVED = nbformat.read(DOCS / "tutorial.ipynb", as_version=4)


def outputs(notebook: Any) -> dict[str, list[str]]:
    """What each cell gives, as HTML or else text, by the cell's name."""
    return {
        cell.id: [output.data.get("text/html", output.data.get("text/plain")) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    }


def words(html: str) -> list[str]:
    """The texts of a page; of a figure its labels, without coordinates, which matplotlib's versions may round."""
    return re.findall(
        r"[^\s<>][^<>]*(?=<)", re.sub(r"<(style|metadata|defs)\b.*?</\1>", "", html, flags=re.DOTALL)
    ) or [html]


def rows(html: str) -> Iterator[list[str]]:
    for row in re.findall(r"<tr>(.*?)</tr>", html):
        yield re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)


def names_of_rows(html: str) -> list[str]:
    return [row[0] for row in rows(html)]


def accuracy(notebook: Any, cell: str) -> float:
    (shown,) = outputs(notebook)[cell]
    return float(dict(rows(shown))["accuracy"].partition(" %")[0])


def test_it_gives_today_what_it_was_saved_with() -> None:
    """Counts and figures to the letter; accuracies and ranks, which differ between processors, by their promises."""
    pytest.importorskip("nbclient", reason="nbclient is not installed: pip install '.[docs]'")
    for needed in ("accelerate", "matplotlib", "sklearn"):
        pytest.importorskip(needed, reason=f"{needed} is not installed: pip install '.[demo]'")
    if not available():
        pytest.skip("this installation has no kernel library, which the notebook runs its network with")
    ran = runpy.run_path(str(DOCS / "make_tutorial.py"))["executed"]()
    check_promises(ran)
    today, kept = outputs(ran), outputs(SAVED)
    measured = {cell.id for cell in SAVED.cells if "measured" in cell.metadata.get("tags", [])}
    assert len(today.keys() - measured) >= 6
    for cell in kept:
        if cell in measured:
            assert [names_of_rows(shown) for shown in today[cell]] == [names_of_rows(shown) for shown in kept[cell]]
        else:
            assert [words(shown) for shown in today[cell]] == [words(shown) for shown in kept[cell]], cell


def test_the_promises_hold_in_what_was_saved() -> None:
    check_promises(SAVED)


def check_promises(notebook: Any) -> None:
    dense, converted, distilled = (accuracy(notebook, cell) for cell in ("train", "converted", "distill"))
    assert dense > 97
    assert converted > dense - 3
    assert distilled > dense - 1.5
    (conversion,) = outputs(notebook)["convert"]
    before, after = (
        int(n.replace(",", "")) for n in re.findall(r"MACs</td><td[^>]*>([\d,]+) -&gt; ([\d,]+)", conversion)[0]
    )
    assert after <= 0.2 * before
    (verified,) = outputs(notebook)["verify"]
    assert float(re.findall(r"([\d.e-]+) of the outputs", verified)[0]) < 1e-4
    assert outputs(notebook)["compile"] == ["()"]
    assert outputs(notebook)["load"] == ["True"]


def test_it_is_saved_as_it_was_run_from_top_to_bottom() -> None:
    cells = [cell for cell in SAVED.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert kinds == {"execute_result"}, "no errors, no warnings, nothing printed"


def test_it_holds_nothing_of_a_machine() -> None:
    text = (DOCS / "tutorial.ipynb").read_text(encoding="utf-8")
    assert not re.search(
        r"(?<![\w<.])/(?:home|root|tmp|usr|opt|var|work|Users|private)/|\b0x[0-9a-f]{6,}|[A-Z]:\\\\", text
    )
    assert not re.search(r"\b20\d\d-\d\d-\d\dT", text)
    assert SAVED.metadata == {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    assert len(text) < 300_000


def test_its_links_lead_somewhere() -> None:
    targets = [
        target
        for cell in SAVED.cells
        for target in re.findall(r"\]\(([^)#]+)", cell.source)
        if cell.cell_type == "markdown"
    ]
    assert len(targets) >= 5
    assert [target for target in targets if not (DOCS / target).is_file()] == []
