"""``separable demo``: the whole workflow on real images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torch_separable.cli.arguments import Json, Quiet, output_path, print_json


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=output_path, metavar="PATH", help="Folder for the run.")
    ] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    image: Annotated[
        Path | None,
        typer.Option(
            metavar="PHOTO",
            help="Instead of this, let EfficientNet-Lite0 with its published weights name what is in a photograph.",
        ),
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train a small CNN on handwritten digits, convert it, distill it, and measure accuracy and time.

    Takes about a minute, and writes a page. With --image PHOTO it takes seconds and writes nothing.

    Example: **separable demo -o runs/demo**
    """
    if image is not None:
        from torch_separable.cli.demo_photo import recognise

        recognised = recognise(image)
        if json:
            print_json(recognised.to_dict())
        else:
            print(recognised)
        return
    from torch_separable._system.locking import sole_writer
    from torch_separable.artifacts import run_directory
    from torch_separable.cli.demo_pipeline import run_demo
    from torch_separable.report import results_table

    run_directory.check_place(output)
    with sole_writer(output):
        results = run_demo(output, seed=seed, progress=not (quiet or json))
    if json:
        print_json(results)
        return
    print(results_table(results))
    print(f"page: {output / run_directory.PAGE}")
