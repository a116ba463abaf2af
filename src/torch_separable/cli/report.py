"""``separable report``: write the report page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torch_separable.cli.arguments import output_path


def report(
    folder: Annotated[Path, typer.Argument(help="Folder written by demo, convert, quantize, distill or bench.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            parser=output_path,
            metavar="PATH",
            help="File to write; by default index.html in the folder.",
        ),
    ] = None,
) -> None:
    """Write a run as one self-contained HTML file that opens offline.

    Missing and damaged files are listed on the page; everything else is shown.

    Example: **separable report runs/demo -o report.html**
    """
    print(page_of(folder, output))


def page_of(folder: Path, output: Path | None = None) -> str:
    """Write the page of a run; return a line with its path and one line per problem."""
    from torch_separable.artifacts import run_directory
    from torch_separable.report import build_page, read_run

    page = build_page(read_run(folder))
    path = page.write(output or folder / run_directory.PAGE)
    return "\n".join([f"page: {path}", *(f"  {problem}" for problem in page.problems)])
