"""The frontier as one HTML file without scripts: the picture, the table and the conditions."""

from __future__ import annotations

from html import escape

from torch_separable.pareto.chart import draw
from torch_separable.pareto.points import Frontier

_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:820px;margin:2em auto;padding:0 1em}"
    "td,th{padding:.15em .8em}table{border-collapse:collapse}tr:nth-child(even){background:#f6f6f6}"
)


def html_page(frontier: Frontier) -> str:
    """Return the document; text from networks and engines is escaped."""
    notes = [frontier.conditions(), *frontier.noise, *frontier.problems]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            # Nothing in the page runs or is fetched.
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{escape(frontier.quality.capitalize())} against milliseconds</title><style>{_STYLE}</style>",
            f"<h1>{escape(frontier.quality.capitalize())} against milliseconds</h1>",
            draw(frontier),
            "<p>Filled points and bold rows: nothing measured is both as fast and as good.</p>",
            frontier._repr_html_(),
            *(f"<p>{escape(note)}</p>" for note in notes),
            "</html>\n",
        ]
    )
