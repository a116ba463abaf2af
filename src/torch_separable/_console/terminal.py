"""Print styled text: with colours on a terminal, without them into a file or a pipe."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text


def show(text: Text) -> None:
    """Print ``text`` to standard output without wrapping it; ``NO_COLOR`` and ``FORCE_COLOR`` are respected."""
    console = Console(highlight=False)
    # rich swallows a broken pipe; `print` below raises it, so that the caller can end the command.
    with console.capture() as captured:
        console.print(text, soft_wrap=True)
    print(captured.get(), end="")
