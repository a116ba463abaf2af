"""A progress bar that appears after two seconds, and only on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

_PATIENCE_S = 2.0


class Advance(Protocol):
    """A callback that reports finished steps; ``note`` is shown after the bar."""

    def __call__(self, note: str = "", steps: int = 1) -> None:
        """Advance the bar by ``steps``."""


class _Rate(ProgressColumn):
    """Steps per second; seconds per step when a step takes longer than a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")


@contextmanager
def progress_bar(title: str, total: int, *, shown: bool, done: int = 0) -> Iterator[Advance]:
    """Yield a function to call after each step.

    The bar is written to standard error. It appears after two seconds, and only if standard error is a terminal.

    Args:
        title: text before the bar.
        total: number of steps.
        shown: whether the caller wants a bar at all.
        done: steps that were finished before, as in a resumed run.
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        redirect_stdout=sys.stdout.isatty(),  # rich would print lines that belong into a file on the terminal
    )
    task = bar.add_task(title, total=total, completed=done, note="")
    wanted = shown and console.is_terminal
    start = time.monotonic()

    def advance(note: str = "", steps: int = 1) -> None:
        if not wanted:
            return
        bar.update(task, advance=steps, note=note)
        if not bar.live.is_started and time.monotonic() - start > _PATIENCE_S:
            bar.start()

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
