"""``separable summary``: what a network costs."""

from __future__ import annotations

from typing import Annotated

import typer

from torch_separable.cli.arguments import Json, Model, ModelArgs, Weights, keyword_arguments, print_json, whole_numbers
from torch_separable.errors import SeparableValueError


def summary(
    model: Model,
    size: Annotated[list[str], typer.Option("--input", help="Shape of one input without the batch; repeat for more.")],
    model_arg: ModelArgs = None,
    weights: Weights = None,
    batch_size: Annotated[int, typer.Option(help="Inputs to count for.")] = 1,
    depth: Annotated[int | None, typer.Option(help="Show modules down to this depth.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="Columns, separated by commas: layer,type,kernel,stride,groups,...")
    ] = None,
    json: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print the rows as comma-separated values.")] = False,
) -> None:
    """Count parameters, MACs and bytes, layer by layer.

    Example: **separable summary mobilenet_v1 --input 3,224,224 --depth 2**
    """
    from torch_separable.cli.networks import build_network
    from torch_separable.cost import summary as count

    if json and csv:
        raise SeparableValueError("--json and --csv are both given: give one of them")
    network = build_network(model, keyword_arguments("--model-arg", model_arg), weights)
    counted = count(
        network,
        [whole_numbers("--input", text) for text in size],
        batch_size,
        depth=depth,
        columns=columns.split(",") if columns is not None else None,
        verbose=False,
    )
    if json:
        print_json(counted.to_dict())
    else:
        print(counted.to_csv() if csv else counted, end="" if csv else "\n")
