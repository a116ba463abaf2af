"""The results of a run as a table for the terminal."""

from __future__ import annotations

import io
import shutil
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from torch_separable._system.text import printable
from torch_separable.report.content import conditions_sentence, times_of
from torch_separable.report.facts import accuracy_sentence, costs_sentence, facts_of, speed_sentence

_NAME = 12  # width reserved for the names of steps; longer names are wrapped
_SPEEDS_WIDTH = 44  # the table of times with its column of speedups


def results_table(results: dict[str, Any]) -> str:
    """Return a table of the steps of a run, at most as wide as the terminal, and sentences that state the ratios."""
    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    columns = {
        "accuracy": ["" if s["accuracy"] is None else f"{100 * s['accuracy']:.2f} %" for s in results["steps"]],
        "MACs": [f"{s['macs']:,}" for s in results["steps"]],
        "parameters": [f"{s['parameters']:,}" for s in results["steps"]],
        "bytes": ["" if s["bytes"] is None else f"{s['bytes']:,}" for s in results["steps"]],
    }
    names = [printable(step["name"]) for step in results["steps"]]
    remaining = width - min(_NAME, max(map(len, names))) - 2
    table = Table(box=box.SIMPLE_HEAD, title=printable(results["title"]), title_justify="left", pad_edge=False)
    table.add_column("step", ratio=1)
    shown: list[list[str]] = []
    for head, cells in columns.items():  # only columns that fit: a truncated number would be read as another number
        remaining -= max(map(len, (head, *cells))) + 3
        if shown and remaining < 0:
            break
        shown.append(cells)
        table.add_column(head, justify="right", no_wrap=True)
    for row in zip(names, *shown, strict=True):
        table.add_row(*row)
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, markup=False, emoji=False, highlight=False)
    console.print(table)
    facts, times = facts_of(results), results.get("milliseconds")
    console.print(f"{costs_sentence(facts)}, {accuracy_sentence(facts, results['steps'][0]['count'])}.")
    if times:
        measured = times_of(times)
        speeds = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        heads = ("network", "engine", "ms", "speedup")[: 4 if width >= _SPEEDS_WIDTH else 3]
        for head in heads:
            speeds.add_column(head, justify="right" if head in ("ms", "speedup") else "left", no_wrap=True)
        for each in measured.rows:
            texts = (each.network, each.engine, f"{each.milliseconds:.3g}", f"{each.speedup:.2f}x")
            speeds.add_row(*texts[: len(heads)])
        console.print(speeds)
        console.print(conditions_sentence(measured))
    console.print(speed_sentence(facts))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).rstrip()
