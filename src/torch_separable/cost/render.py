"""A summary as text, HTML and comma-separated values."""

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
    """What a table can show."""

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
class _Look:
    head: str
    cell: Callable[[LayerCost], str]
    right: bool = False
    total: Callable[[Summary], str] | None = None


def _times(numbers: tuple[int, ...]) -> str:
    return "x".join(map(str, numbers))


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"


def _name(row: LayerCost) -> str:
    return "  " * max(row.depth - 1, 0) + (row.name.rpartition(".")[2] or row.type)


_LOOKS: dict[Column, _Look] = {
    Column.LAYER: _Look("Layer", _name),
    Column.TYPE: _Look("Type", lambda row: row.type),
    Column.KERNEL: _Look("Kernel", lambda row: _times(row.kernel)),
    Column.STRIDE: _Look("Stride", lambda row: _times(row.stride)),
    Column.GROUPS: _Look("Groups", lambda row: str(row.groups or ""), right=True),
    Column.OUTPUT: _Look("Output", lambda row: str(row.output_shape) if row.output_shape else ""),
    Column.PARAMETERS: _Look("Params", lambda row: _count(row.parameters), True, lambda s: f"{s.parameters:,}"),
    Column.MACS: _Look("MACs", lambda row: _count(row.macs), True, lambda s: f"{s.macs:,}"),
    Column.BYTES: _Look("Bytes moved", lambda row: _count(row.bytes), True, lambda s: f"{s.bytes:,}"),
    Column.INTENSITY: _Look(
        "FLOP/byte", lambda row: f"{row.intensity:.2f}" if row.macs else "", True, lambda s: f"{s.intensity:.2f}"
    ),
    Column.DENSE: _Look("Stands for (dense)", lambda row: row.dense),
    Column.SAVING: _Look("Saving", lambda row: f"{row.saving:.2f}x" if row.saving else "", True),
    Column.FORMULA: _Look("Weights", lambda row: row.formula),
}

_NARROWEST_NAME = 12
# What a table shows in any width, and what it adds where there is room, the most wanted first.
_ALWAYS = (Column.LAYER, Column.OUTPUT, Column.PARAMETERS, Column.MACS)
_ROOM = (
    Column.SAVING, Column.TYPE, Column.FORMULA, Column.KERNEL, Column.GROUPS, Column.BYTES, Column.INTENSITY,
    Column.STRIDE, Column.DENSE,
)  # fmt: skip


def as_columns(columns: Sequence[Column | str] | None) -> tuple[Column, ...] | None:
    """Check names of columns.

    Raises:
        SeparableValueError: a name is not of `Column`.
    """
    if columns is None:
        return None
    if isinstance(columns, str) or not columns:
        raise SeparableValueError(f"columns={columns!r}: expected a list of names: {', '.join(Column)}")
    for name in columns:
        if name not in set(Column):
            raise SeparableValueError(f"columns has {name!r}: expected names of {', '.join(Column)}")
    return tuple(Column(name) for name in columns)


def render_text(summary: Summary, width: int | None = None) -> str:
    """Return the table, with as many columns as fit ``width`` (the terminal's; 80 where there is none), and totals.

    Names that are too long even for the fewest columns lose their beginning.
    """
    width = width or shutil.get_terminal_size((80, 24)).columns
    if summary.columns is not None:
        table = _table(summary, summary.columns)
    else:
        columns: tuple[Column, ...] = _ALWAYS
        table = _table(summary, columns)
        for more in _ROOM:
            wider = tuple(column for column in Column if column in (*columns, more))
            attempt = _table(summary, wider)
            if any(_LOOKS[more].cell(row) for row in summary.layers) and len(attempt[1]) <= width:
                columns, table = wider, attempt
        if len(table[1]) > width:
            room = max(width - len(table[1]) + max(len(_name(row)) for row in summary.layers), _NARROWEST_NAME)
            table = _table(summary, columns, room)
    totals = [textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False) for line in _totals(summary)]
    return "\n".join([*table, *totals])


def _table(summary: Summary, columns: Sequence[Column], longest_name: int | None = None) -> list[str]:
    looks = [_LOOKS[column] for column in columns]
    totals = [look.total(summary) if look.total else "" for look in looks]
    cells = [[look.cell(row) for look in looks] for row in summary.layers]
    if longest_name is not None:
        place = columns.index(Column.LAYER)
        for row in cells:
            if len(row[place]) > longest_name:
                row[place] = f"…{row[place][1 - longest_name :]}"
    widths = [
        max(len(look.head), len(total), *(len(row[i]) for row in cells))
        for i, (look, total) in enumerate(zip(looks, totals, strict=True))
    ]

    def line(values: Sequence[str]) -> str:
        parts = [
            value.rjust(n) if look.right else value.ljust(n)
            for value, n, look in zip(values, widths, looks, strict=True)
        ]
        return (" " + "   ".join(parts)).rstrip()

    rule = "─" * (sum(widths) + 3 * (len(widths) - 1) + 2)
    head = [look.head for look in looks]
    return [line(head), rule, *map(line, cells), rule, *([line(totals)] if any(totals) else [])]


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
        lines.append(f"Not counted, no rule is known: {listed}")
    if summary.uncalled:
        more = f" and {len(summary.uncalled) - 5} more" if len(summary.uncalled) > 5 else ""
        lines.append(f"Never ran: {', '.join(summary.uncalled[:5])}{more}")
    return lines


def render_html(summary: Summary) -> str:
    """Return a table for notebooks; names from the model are escaped."""
    columns = summary.columns or tuple(column for column in Column if column is not Column.DENSE)
    looks = [_LOOKS[column] for column in columns]
    cells = [[look.cell(layer) for look in looks] for layer in summary.layers]
    foot = [look.total(summary) if look.total else "" for look in looks]
    totals = "<br>".join(escape(line) for line in _totals(summary))
    shown = table([look.head for look in looks], cells, right=[look.right for look in looks], foot=foot)
    return f"{shown}<p>{totals}</p>"


def render_csv(summary: Summary) -> str:
    """Return rows of plain numbers."""
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
