"""``separable explain``: explain the arithmetic of one convolution."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torch_separable.cli.arguments import Json, print_json, whole_numbers


def explain(
    in_channels: Annotated[int, typer.Option("--in", help="Channels of the input.")],
    out_channels: Annotated[int, typer.Option("--out", help="Channels of the output.")],
    size: Annotated[str, typer.Option("--input", help="Spatial size of the input, as 32,32.")],
    kernel: Annotated[str, typer.Option(help="Kernel size: 3, or 3,5 for each dimension.")] = "3",
    groups: Annotated[int, typer.Option(help="Groups; must divide both channel counts.")] = 1,
    stride: Annotated[int, typer.Option()] = 1,
    padding: Annotated[int | None, typer.Option(help="By default the padding that keeps the size at stride 1.")] = None,
    dilation: Annotated[int, typer.Option()] = 1,
    order: Annotated[str | None, typer.Option(help="Depthwise separable: depthwise_first or pointwise_first.")] = None,
    depth_multiplier: Annotated[int, typer.Option(help="Multiplier, or rank, of a depthwise separable layer.")] = 1,
    bias: Annotated[bool, typer.Option(help="Whether outputs have a bias.")] = True,
    figure: Annotated[Path | None, typer.Option(help="Write a figure: .svg, .png or .pdf.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write an interactive page that shows this layer.")] = None,
    json: Json = False,
) -> None:
    """Show the cost of one convolution and the savings of its grouped and separable forms.

    Example: **separable explain --in 4 --out 8 --kernel 3 --groups 2 --input 3,3 --figure groups.svg**
    """
    from torch_separable.explanation import explain as work_out
    from torch_separable.explanation.explorer.page import write_explorer
    from torch_separable.explanation.explorer.state import ExplorerState

    input_shape = whole_numbers("--input", size)
    kernel_size = whole_numbers("--kernel", kernel)
    if len(kernel_size) == 1:
        kernel_size *= len(input_shape)
    explanation = work_out(
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=kernel_size,
        stride=stride,
        padding=tuple(dilation * (n - 1) // 2 for n in kernel_size) if padding is None else padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
        order=order,  # type: ignore[arg-type]
        depth_multiplier=depth_multiplier,
        input_shape=input_shape,
    )
    if figure is not None:
        explanation.save(figure)
    if html is not None:
        write_explorer(html, ExplorerState.of(explanation))
    if json:
        print_json(explanation.to_dict())
    else:
        print(explanation)
        if figure is not None:
            print(f"\nfigure: {figure}")
        if html is not None:
            print(f"\npage: {html}")
