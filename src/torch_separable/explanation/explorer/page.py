"""Render the explorer: one HTML page on which a reader configures a convolution and sees its figure and cost.

The page computes in JavaScript (``templates/explorer/``). It contains test vectors made by the library and compares its
own results with them whenever it is opened.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from torch_separable._system.files import write_text
from torch_separable._version import __version__
from torch_separable.explanation.explorer.state import EXAMPLES, LIMITS, ExplorerState
from torch_separable.explanation.explorer.vectors import vectors

_SCRIPTS = (
    "tree.js",
    "arithmetic.js",
    "working.js",
    "layout.js",
    "placing.js",
    "figure.js",
    "marks.js",
    "miniature.js",
    "walk.js",
    "closeup.js",
    "state.js",
    "cards.js",
    "formula.js",
    "tables.js",
    "saving.js",
    "check.js",
    "player.js",
    "controls.js",
    "page.js",
)


def explorer_page(state: ExplorerState | None = None) -> str:
    """Render the page as self-contained HTML that shows ``state`` when it opens.

    Example:
        >>> page = explorer_page(ExplorerState(in_channels=32, out_channels=64))
        >>> page.startswith("<!doctype html>"), "<link" in page
        (True, False)
    """
    environment = Environment(
        loader=PackageLoader("torch_separable.explanation.explorer"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    words = json.loads(_source(environment, "explorer/words.json"))
    script = "\n".join(_source(environment, f"explorer/{name}") for name in _SCRIPTS)
    data = {
        "version": __version__,
        "start": (state or ExplorerState()).document(),
        "limits": LIMITS,
        "examples": {name: example.document() for name, example in EXAMPLES.items()},
        "words": words,
        "vectors": vectors(),
    }
    return environment.get_template("explorer.html.j2").render(
        words=words["en"],
        limits=LIMITS,
        examples=list(EXAMPLES),
        style=Markup(_source(environment, "explorer.css")),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=data,
    )


def _source(environment: Environment, name: str) -> str:
    """Return a file of the templates unchanged: scripts, styles and texts are not Jinja templates."""
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def write_explorer(path: str | Path, state: ExplorerState | None = None) -> None:
    """Write the page to ``path``, atomically."""
    write_text(path, explorer_page(state))
