"""A run's figures as a table for the terminal."""

from __future__ import annotations

import io
import shutil
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from torch_separable.report.facts import accuracy_sentence, costs_sentence, facts_of, promise_sentence


def results_table(results: dict[str, Any]) -> str:
    """Return what each step of a run came to, at most as wide as the terminal, and what it amounts to in words."""
    table = Table(box=box.SIMPLE_HEAD, title=results["title"], title_justify="left", pad_edge=False)
    table.add_column("step", ratio=1)
    for head in ("accuracy", "MACs", "parameters", "bytes"):
        table.add_column(head, justify="right", no_wrap=True)
    for step in results["steps"]:
        table.add_row(
            step["name"],
            "" if step["accuracy"] is None else f"{100 * step['accuracy']:.2f} %",
            f"{step['macs']:,}",
            f"{step['parameters']:,}",
            "" if step["bytes"] is None else f"{step['bytes']:,}",
        )
    out = io.StringIO()
    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    console = Console(file=out, width=width, color_system=None, markup=False, emoji=False, highlight=False)
    console.print(table)
    facts, times = facts_of(results), results.get("milliseconds")
    console.print(f"{costs_sentence(facts)}, {accuracy_sentence(facts, results['steps'][0]['count'])}.")
    if times:
        console.print(
            f"{times['dense']:.2f} ms dense, {times['separable']:.2f} ms separable ({times['images']} images, medians "
            f"of {times['rounds']} runs in turn, {times['threads']} threads, PyTorch eager).",
        )
    console.print(promise_sentence(facts))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).rstrip()
