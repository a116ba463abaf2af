"""A progress bar that shows itself only to a person who has been waiting for two seconds."""

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
    """Count one more step done; ``note`` is shown behind the bar."""

    def __call__(self, note: str = "", steps: int = 1) -> None:
        """Move the bar by ``steps``."""


class _Rate(ProgressColumn):
    """Steps a second, or seconds a step where it takes them."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")


@contextmanager
def progress_bar(title: str, total: int, *, shown: bool, done: int = 0) -> Iterator[Advance]:
    """Yield a function to call after each of ``total`` steps, ``done`` of which are behind us.

    The bar goes to standard error, appears after two seconds, and never where standard error is not a terminal.
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
        redirect_stdout=sys.stdout.isatty(),  # a file's lines are no matter of the terminal's
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
