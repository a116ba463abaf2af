"""``separable report``: a run as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(help="A folder that demo, convert, distill or bench wrote.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file; by default index.html in the folder.")
    ] = None,
) -> None:
    """Show a run: one HTML file that opens anywhere, without a network.

    What the folder lacks, or holds damaged, is told; the rest is shown.

    Example: **separable report runs/demo -o report.html**
    """
    print(page_of(folder, output))


def page_of(folder: Path, output: Path | None = None) -> str:
    """Write the page of a run; return a line that says where it is, and one for everything that it lacks."""
    from torch_separable.artifacts import run_directory
    from torch_separable.report import build_page, read_run

    page = build_page(read_run(folder))
    path = page.write(output or folder / run_directory.PAGE)
    return "\n".join([f"page: {path}", *(f"  {problem}" for problem in page.problems)])
