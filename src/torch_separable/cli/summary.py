"""``separable summary``: count parameters, MACs and bytes of a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from torch_separable.cli.arguments import (
    Csv,
    DenseModel,
    Json,
    Model,
    ModelArgs,
    Weights,
    keyword_arguments,
    print_json,
    print_text,
    whole_numbers,
)
from torch_separable.errors import SeparableValueError

if TYPE_CHECKING:
    import torch


def summary(
    model: Model,
    size: Annotated[
        list[str] | None,
        typer.Option(
            "--input", help="Shape of one input without the batch; repeatable. By default that of the folder."
        ),
    ] = None,
    made_of: DenseModel = None,
    model_arg: ModelArgs = None,
    weights: Weights = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="Data type of each input, as int64; by default that of the network.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Batch size to count for.")] = 1,
    depth: Annotated[int | None, typer.Option(help="Largest module depth to show.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="Columns, separated by commas: layer,type,kernel,stride,groups,...")
    ] = None,
    json: Json = False,
    csv: Csv = False,
) -> None:
    """Count parameters, MACs and bytes, layer by layer. MODEL may also be a folder written by convert.

    Example: **separable summary mobilenet_v1 --input 3,224,224 --depth 2**
    """
    from torch_separable._console.terminal import show
    from torch_separable.cli.model_argument import network_or_folder
    from torch_separable.cost import summary as count

    if json and csv:
        raise SeparableValueError("--json and --csv are both given: give one of them")
    network, _, own = network_or_folder(model, made_of, keyword_arguments("--model-arg", model_arg), weights)
    shapes = [whole_numbers("--input", text) for text in size or ()]
    if not shapes:
        if own is None:
            raise typer.BadParameter("give the shape of one input, as 3,224,224", param_hint="--input")
        shapes = [own]
    counted = count(
        network,
        shapes,
        batch_size,
        dtypes=None if dtype is None else [tensor_type(name) for name in dtype],
        depth=depth,
        columns=columns.split(",") if columns is not None else None,
        verbose=False,
    )
    if json:
        print_json(counted.to_dict())
    elif csv:
        print_text(counted.to_csv())
    else:
        show(styled(str(counted)))


def tensor_type(name: str) -> torch.dtype:
    """Return the PyTorch data type of this name."""
    import torch

    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise SeparableValueError(f"--dtype {name}: must be a data type of PyTorch, such as int64 or float16")
    return found


def styled(table: str) -> Text:
    """Make the header and the totals of a table bold, and its rules and empty cells dim."""
    lines = table.splitlines()
    rules = [i for i, line in enumerate(lines) if line.startswith("─")]
    text = Text()
    for i, line in enumerate(lines):
        bold = i < rules[0] or rules[1] < i < rules[1] + 2
        row = Text(line, "dim" if i in rules else "bold" if bold else "")
        row.highlight_regex(r" -(?= |$)", "dim")
        text.append_text(row).append("\n" if i + 1 < len(lines) else "")
    return text
