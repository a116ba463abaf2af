"""Printing styled text: with its colours on a terminal, without them into a file or a pipe."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text


def show(text: Text) -> None:
    """Print ``text`` on standard output, its lines as they are; ``NO_COLOR`` and ``FORCE_COLOR`` are minded."""
    console = Console(highlight=False)
    with console.capture() as captured:  # printed below, where a reader that has gone is an error for the caller
        console.print(text, soft_wrap=True)
    print(captured.get(), end="")
