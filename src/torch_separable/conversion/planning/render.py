"""Render a plan as text and HTML: each convolution before and after."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from torch_separable._console.notebook import table

if TYPE_CHECKING:
    from torch_separable.conversion.planning.plan import LayerPlan, Plan

_GAP = "  "
_NARROWEST_NAME = 12


@dataclass(frozen=True)
class _Column:
    head: str
    cell: Callable[[LayerPlan], str]
    right: bool = False
    style: str = ""


def _printable(text: str) -> str:
    """Escape control characters: a plan read from a file may contain any text."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _name(layer: LayerPlan) -> str:
    return _printable(layer.name)


def _before(layer: LayerPlan) -> str:
    return _printable(layer.before)


def _reason(layer: LayerPlan) -> str:
    return _printable(layer.reason)


def _change(layer: LayerPlan) -> str:
    return f"{_before(layer)} ⇒ {layer.after or 'kept'}"


def _ratio(layer: LayerPlan) -> str:
    return f"{layer.macs.ratio:.2f}" if layer.order and all(layer.macs) else ""


def _macs(layer: LayerPlan) -> str:
    dense, converted = layer.macs
    return f"{dense:,} → {converted:,}" if layer.order and dense else f"{dense:,}" if dense else ""


_LAYER = _Column("layer", _name)
_CHANGE = _Column("dense ⇒ planned", _change)
_MACS = _Column("MACs", _macs, right=True)
_RATIO = _Column("MACs ÷", _ratio, right=True, style="green")
_ERROR = _Column("error", lambda layer: f"{100 * layer.error:.2g} %" if layer.order else "", right=True)
_PRECISION = _Column("precision", lambda layer: layer.precision)
_REASON = _Column("reason", _reason, style="dim")
# The columns that a line always shows, and those that it adds while the width allows, most important first.
_ALWAYS = (_LAYER, _CHANGE, _RATIO)
_OPTIONAL = (_ERROR, _REASON, _MACS)
_ORDER = (_LAYER, _CHANGE, _PRECISION, _MACS, _RATIO, _ERROR, _REASON)


def render_plan(plan: Plan, width: int | None = None) -> Text:
    """Return the plan layer by layer, with as many columns as fit.

    Where one line for each layer does not fit, there are two. A name that is still too long loses its beginning.
    ``.plain`` of the result is the text without styles.

    Args:
        plan: the plan.
        width: in characters; by default the terminal's, or 80 where there is none.
    """
    width = width or shutil.get_terminal_size((80, 24)).columns
    columns: tuple[_Column, ...] = (_LAYER, _CHANGE, _PRECISION, _RATIO) if _is_mixed(plan) else _ALWAYS
    if _needed(plan, columns) <= width:
        for more in _OPTIONAL:
            wider = tuple(column for column in _ORDER if column in (*columns, more))
            if any(more.cell(layer) for layer in plan.layers) and _needed(plan, wider) <= width:
                columns = wider
        lines = list(_table(plan, columns, width))
    else:
        lines = list(_pairs(plan, width))
    lines += [Text(line, "bold") for line in _totals(plan)]
    for line in lines:
        line.rstrip()
    return Text("\n", no_wrap=True).join(lines)


def render_plan_html(plan: Plan) -> str:
    """Return a table for notebooks, with all columns; names from the model are escaped."""
    columns = [column for column in _ORDER if column is not _PRECISION or _is_mixed(plan)]
    rows = [[column.cell(layer) for column in columns] for layer in plan.layers]
    shown = table([column.head for column in columns], rows, right=[column.right for column in columns])
    return f"{shown}<p>{'<br>'.join(map(escape, _totals(plan)))}</p>"


def _is_mixed(plan: Plan) -> bool:
    """Whether a layer is planned in another precision than float32, so that the precisions are shown."""
    return any(layer.precision != "f32" for layer in plan.layers)


def _totals(plan: Plan) -> list[str]:
    """Return the whole network's costs, one line each."""
    dense, converted = plan.macs
    lines = []
    if dense and converted:
        lines.append(f"whole network: {dense:,} -> {converted:,} MACs ({plan.macs.ratio:.2f}x fewer)")
    if plan.latency is not None:
        before, after = plan.latency.milliseconds
        engine = "compiled" if plan.latency.engine == "compiled" else "in PyTorch"
        threads = f"{plan.latency.threads} thread{'s' if plan.latency.threads > 1 else ''}"
        lines.append(f"for one image: about {before:.3g} -> {after:.3g} ms, {engine}, on {threads}")
    return lines


def _widths(plan: Plan, columns: Sequence[_Column]) -> list[int]:
    return [max(cell_len(text) for text in (c.head, *(c.cell(layer) for layer in plan.layers))) for c in columns]


def _needed(plan: Plan, columns: Sequence[_Column]) -> int:
    return sum(_widths(plan, columns)) + len(_GAP) * (len(columns) - 1)


def _table(plan: Plan, columns: Sequence[_Column], width: int) -> Iterator[Text]:
    widths = _widths(plan, columns)

    def line(cells: Sequence[str], styles: Sequence[str]) -> Text:
        row = Text()
        for text, style, column, wide in zip(cells, styles, columns, widths, strict=True):
            space = " " * (wide - cell_len(text))
            row.append(_GAP if row else "").append(space if column.right else "")
            row.append(text, style).append("" if column.right else space)
        return row

    yield line([column.head for column in columns], ["bold"] * len(columns))
    for layer in plan.layers:
        styles = [column.style for column in columns] if layer.order else ["dim"] * len(columns)
        row = line([column.cell(layer) for column in columns], styles)
        if layer.reason and not layer.order and _REASON not in columns:
            row.rstrip()  # the last columns are empty, so the reason fits there
            row.append(f"  {_reason(layer)}" if _MACS in columns else f": {_reason(layer)}", "dim")
            row.truncate(width, overflow="ellipsis")
        yield row


def _pairs(plan: Plan, width: int) -> Iterator[Text]:
    before = max((cell_len(_before(layer)) for layer in plan.layers), default=0)
    room = max(width - before - len(_GAP), _NARROWEST_NAME)
    name = min(max((cell_len(_name(layer)) for layer in plan.layers), default=0), room)
    for layer in plan.layers:
        precision = f"{_GAP}{layer.precision}" if _is_mixed(plan) else ""
        yield Text(_fitted(_name(layer), name) + _GAP + _before(layer) + precision, "" if layer.order else "dim")
        if not layer.order:
            yield Text(f"  kept: {_reason(layer)}" if layer.reason else "  kept", "dim")
            continue
        parts = [f"MACs ÷ {_ratio(layer)}" if _ratio(layer) else "", f"error {100 * layer.error:.2g} %"]
        yield Text(f"  ⇒ {layer.after}").append(_GAP + ", ".join(part for part in parts if part), "green")


def _fitted(name: str, width: int) -> str:
    """Pad a name, or cut its beginning: names of one network differ in their ends."""
    if cell_len(name) <= width:
        return set_cell_size(name, width)
    while cell_len(name) >= width:
        name = name[1:]
    return set_cell_size(f"…{name}", width)
