"""Build the documentation site: ``python docs/website/build.py``, into ``site/``.

The documents are written for readers of the repository. Those of its root and the notebook become pages too, so that
nothing is written twice. `stage` copies ``docs/`` with these pages and the explorer, and rewrites the links between
documents; Zensical builds the site from the copy. A broken link fails the build.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path
from typing import Any

import nbformat

from torch_separable.explanation.explorer.page import write_explorer

ROOT = Path(__file__).resolve().parents[2]
# Documents that are not Markdown in docs/, and the pages that they become.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "licence.md",
    "docs/tutorial.ipynb": "tutorial.md",
}


def stage(folder: Path) -> None:
    """Write into ``folder`` what the site is built from."""
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("*.py", "__pycache__", "website"))
    for path in (ROOT / "docs" / "website").iterdir():
        if path.is_file() and path.name != "build.py":
            shutil.copy(path, folder / "docs" if path.suffix in {".css", ".js"} else folder)
    (folder / "src").symlink_to(ROOT / "src")
    write_explorer(folder / "docs" / "explorer.html")
    for source, page in {**{f"docs/{path.name}": path.name for path in (ROOT / "docs").glob("*.md")}, **PAGES}.items():
        path = ROOT / source
        text = notebook_page(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
        (folder / "docs" / page).write_text(page_of(text, source), encoding="utf-8")


def page_of(text: str, source: str) -> str:
    """Turn the document ``source`` into a page: rewrite links, and mark examples with prompts as sessions."""
    text = re.sub(r"\]\(([^)#\s]+)", lambda match: f"]({led(match[1], source)}", text)
    return re.sub(r"^```python\n>>>", "```pycon\n>>>", text, flags=re.MULTILINE)


def led(target: str, source: str) -> str:
    """Return the page that a link of the document ``source`` leads to. Other targets stay, and fail the build.

    Example:
        >>> led("docs/article.md", "README.md"), led("../CONTRIBUTING.md", "docs/architecture.md")
        ('article.md', 'contributing.md')
    """
    if ":" in target:
        return target
    place = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    return PAGES.get(place, place.removeprefix("docs/") if place.startswith("docs/") else target)


def notebook_page(path: Path) -> str:
    """Render the notebook, with its saved outputs, as Markdown."""
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        else:
            parts += [f"```python\n{cell.source}\n```", *map(shown, cell.outputs)]
    return "\n\n".join([*parts, f'This page is a notebook: <a href="{path.name}" download>{path.name}</a>.\n'])


def shown(output: Any) -> str:
    """Render one output of a cell: as HTML where it has that form, else as text."""
    if "text/html" in output.get("data", {}):
        return f'<div class="output" tabindex="0">{output.data["text/html"]}</div>'
    text = output.text if output.output_type == "stream" else output.data["text/plain"]
    return f'<div class="output" tabindex="0"><pre>{escape(text.rstrip())}</pre></div>'


def render(folder: Path) -> Path:
    """Build the site from what `stage` wrote, and return its folder.

    Raises:
        SystemExit: Zensical refused the documents, for example because of a broken link; it has printed the reason.
    """
    done = subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], cwd=folder, check=False)
    if done.returncode:
        raise SystemExit("the documentation site was not built")
    site = folder / "site"
    for page in site.glob("*.zh.html"):
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace("<article", '<article lang="zh"', 1), encoding="utf-8")
    return site


def build(site: Path) -> None:
    """Build the site into the folder ``site``, and replace an earlier one."""
    with tempfile.TemporaryDirectory() as name:
        stage(Path(name))
        built = render(Path(name))
        shutil.rmtree(site, ignore_errors=True)
        shutil.move(built, site)


if __name__ == "__main__":
    build(ROOT / "site")
