"""HTML tables for notebooks. They set no colours, so that they follow the notebook's light or dark theme."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[bool] = (),
    marked: Sequence[bool] = (),
    foot: Sequence[str] = (),
) -> str:
    """Render rows of text as an HTML table; every cell is escaped.

    Args:
        header: column headings; empty for a table without headings.
        rows: the cells of each row, from left to right.
        right: whether each column is aligned right, as numbers are; by default all are aligned left.
        marked: whether each row is set in bold; by default none is.
        foot: a last row of totals; empty for none.

    Example:
        >>> print(table(("layer", "MACs"), [("<conv>", "288")]))
        <table><thead><tr><th style="text-align:left;white-space:pre">layer</th><th style="text-align:left;...
        >>> "&lt;conv&gt;" in table((), [("<conv>", "288")])
        True
    """
    columns = len(header or rows[0])
    sides = [f"text-align:{'right' if number else 'left'};white-space:pre" for number in right or [False] * columns]

    def line(tag: str, cells: Sequence[str]) -> str:
        marks = (f'<{tag} style="{side}">{escape(cell)}</{tag}>' for side, cell in zip(sides, cells, strict=True))
        return f"<tr>{''.join(marks)}</tr>"

    bold = marked or [False] * len(rows)
    head = f"<thead>{line('th', header)}</thead>" if header else ""
    body = "".join(line("th" if mark else "td", cells) for mark, cells in zip(bold, rows, strict=True))
    last = f"<tfoot>{line('th', foot)}</tfoot>" if foot else ""
    return f"<table>{head}<tbody>{body}</tbody>{last}</table>"
