"""Render a summary as text, HTML and comma-separated values."""

from __future__ import annotations

import csv
import io
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from html import escape
from typing import TYPE_CHECKING

from torch_separable._console.notebook import table
from torch_separable.errors import SeparableValueError

if TYPE_CHECKING:
    from torch_separable.cost.network_summary import LayerCost, Summary


class Column(StrEnum):
    """A column of the table."""

    LAYER = "layer"
    TYPE = "type"
    KERNEL = "kernel"
    STRIDE = "stride"
    GROUPS = "groups"
    OUTPUT = "output"
    PARAMETERS = "parameters"
    MACS = "macs"
    BYTES = "bytes"
    INTENSITY = "intensity"
    DENSE = "dense"
    SAVING = "saving"
    FORMULA = "formula"


@dataclass(frozen=True)
class _ColumnFormat:
    heading: str
    cell: Callable[[LayerCost], str]
    right: bool = False
    total: Callable[[Summary], str] | None = None


def _times(numbers: tuple[int, ...]) -> str:
    return "x".join(map(str, numbers))


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"


def _name(row: LayerCost) -> str:
    return "  " * max(row.depth - 1, 0) + (row.name.rpartition(".")[2] or row.type)


_FORMATS: dict[Column, _ColumnFormat] = {
    Column.LAYER: _ColumnFormat("Layer", _name),
    Column.TYPE: _ColumnFormat("Type", lambda row: row.type),
    Column.KERNEL: _ColumnFormat("Kernel", lambda row: _times(row.kernel)),
    Column.STRIDE: _ColumnFormat("Stride", lambda row: _times(row.stride)),
    Column.GROUPS: _ColumnFormat("Groups", lambda row: str(row.groups or ""), right=True),
    Column.OUTPUT: _ColumnFormat("Output", lambda row: str(row.output_shape) if row.output_shape else ""),
    Column.PARAMETERS: _ColumnFormat("Params", lambda row: _count(row.parameters), True, lambda s: f"{s.parameters:,}"),
    Column.MACS: _ColumnFormat("MACs", lambda row: _count(row.macs), True, lambda s: f"{s.macs:,}"),
    Column.BYTES: _ColumnFormat("Bytes moved", lambda row: _count(row.bytes), True, lambda s: f"{s.bytes:,}"),
    Column.INTENSITY: _ColumnFormat(
        "FLOP/byte", lambda row: f"{row.intensity:.2f}" if row.macs else "", True, lambda s: f"{s.intensity:.2f}"
    ),
    Column.DENSE: _ColumnFormat("Dense equivalent", lambda row: row.dense),
    Column.SAVING: _ColumnFormat("Saving", lambda row: f"{row.saving:.2f}x" if row.saving else "", True),
    Column.FORMULA: _ColumnFormat("Weights", lambda row: row.formula),
}

_SHORTEST_NAME = 12
# The columns of every table, and those that are added while they fit, in this order.
_ALWAYS = (Column.LAYER, Column.OUTPUT, Column.PARAMETERS, Column.MACS)
_IF_THEY_FIT = (
    Column.SAVING, Column.TYPE, Column.FORMULA, Column.KERNEL, Column.GROUPS, Column.BYTES, Column.INTENSITY,
    Column.STRIDE, Column.DENSE,
)  # fmt: skip


def as_columns(columns: Sequence[Column | str] | None) -> tuple[Column, ...] | None:
    """Convert names to columns.

    Raises:
        SeparableValueError: a name is not that of a `Column`.
    """
    if columns is None:
        return None
    if isinstance(columns, str) or not columns:
        raise SeparableValueError(f"columns={columns!r}: expected a list of names: {', '.join(Column)}")
    for name in columns:
        if name not in set(Column):
            raise SeparableValueError(f"columns has {name!r}: must be one of {', '.join(Column)}")
    return tuple(Column(name) for name in columns)


def render_text(summary: Summary, width: int | None = None) -> str:
    """Return the table and the totals.

    Columns are added while they fit into ``width``, by default the terminal's, or 80. Layer names that do not fit even
    the narrowest table are cut at their beginning.
    """
    width = width or shutil.get_terminal_size((80, 24)).columns
    if summary.columns is not None:
        table = _table(summary, summary.columns)
    else:
        columns: tuple[Column, ...] = _ALWAYS
        table = _table(summary, columns)
        for more in _IF_THEY_FIT:
            wider = tuple(column for column in Column if column in (*columns, more))
            attempt = _table(summary, wider)
            if any(_FORMATS[more].cell(row) for row in summary.layers) and len(attempt[1]) <= width:
                columns, table = wider, attempt
        if len(table[1]) > width:
            longest = max(width - len(table[1]) + max(len(_name(row)) for row in summary.layers), _SHORTEST_NAME)
            table = _table(summary, columns, longest)
    totals = [textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False) for line in _totals(summary)]
    return "\n".join([*table, *totals])


def _table(summary: Summary, columns: Sequence[Column], longest_name: int | None = None) -> list[str]:
    formats = [_FORMATS[column] for column in columns]
    totals = [form.total(summary) if form.total else "" for form in formats]
    cells = [[form.cell(row) for form in formats] for row in summary.layers]
    if longest_name is not None:
        place = columns.index(Column.LAYER)
        for row in cells:
            if len(row[place]) > longest_name:
                row[place] = f"…{row[place][1 - longest_name :]}"
    widths = [
        max(len(form.heading), len(total), *(len(row[i]) for row in cells))
        for i, (form, total) in enumerate(zip(formats, totals, strict=True))
    ]

    def line(values: Sequence[str]) -> str:
        parts = [
            value.rjust(n) if form.right else value.ljust(n)
            for value, n, form in zip(values, widths, formats, strict=True)
        ]
        return (" " + "   ".join(parts)).rstrip()

    rule = "─" * (sum(widths) + 3 * (len(widths) - 1) + 2)
    headings = [form.heading for form in formats]
    return [line(headings), rule, *map(line, cells), rule, *([line(totals)] if any(totals) else [])]


def _totals(summary: Summary) -> list[str]:
    lines = [
        f"Total params: {summary.parameters:,}",
        f"Trainable params: {summary.trainable:,}",
        f"Non-trainable params: {summary.parameters - summary.trainable:,}",
        f"MACs: {summary.macs:,} (FLOPs, two for each: {summary.flops:,})",
        f"Bytes moved: {summary.bytes:,} ({summary.intensity:.2f} FLOP/byte); weights: {summary.weight_bytes:,}",
    ]
    if summary.uncounted:
        listed = ", ".join(f"{name} ({calls}x)" for name, calls in summary.uncounted.items())
        lines.append(f"Not counted, for lack of a rule: {listed}")
    if summary.uncalled:
        more = f" and {len(summary.uncalled) - 5} more" if len(summary.uncalled) > 5 else ""
        lines.append(f"Never ran: {', '.join(summary.uncalled[:5])}{more}")
    return lines


def render_html(summary: Summary) -> str:
    """Return a table for notebooks; names from the model are escaped."""
    columns = summary.columns or tuple(column for column in Column if column is not Column.DENSE)
    formats = [_FORMATS[column] for column in columns]
    cells = [[form.cell(layer) for form in formats] for layer in summary.layers]
    foot = [form.total(summary) if form.total else "" for form in formats]
    totals = "<br>".join(escape(line) for line in _totals(summary))
    shown = table([form.heading for form in formats], cells, right=[form.right for form in formats], foot=foot)
    return f"{shown}<p>{totals}</p>"


def render_csv(summary: Summary) -> str:
    """Return the rows as comma-separated values, with plain numbers."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["layer", "type", "calls", "kernel", "stride", "groups", "output_shape", "parameters", "trainable", "macs"]
        + ["flops", "bytes", "intensity", "dense", "dense_macs", "saving", "formula"]
    )
    for row in summary.layers:
        writer.writerow(
            [
                row.name,
                row.type,
                row.calls,
                _times(row.kernel),
                _times(row.stride),
                row.groups or "",
                _times(row.output_shape),
            ]
            + [row.parameters, row.trainable, row.macs, row.flops, row.bytes, row.intensity]
            + [row.dense, row.dense_macs, "" if row.saving is None else row.saving, row.formula]
        )
    return out.getvalue()
