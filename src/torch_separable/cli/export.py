"""``separable export``: write a network for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torch_separable.cli.arguments import (
    DenseModel,
    ImageSize,
    Json,
    Mean,
    ModelArgs,
    Std,
    Weights,
    keyword_arguments,
    load_prepared,
    output_path,
    preparation,
    print_json,
    whole_numbers,
)
from torch_separable.errors import SeparableValueError


def export(
    folder: Annotated[Path, typer.Argument(help="Folder written by convert, distill or demo.")],
    to: Annotated[str, typer.Option(help="onnx, pt2 or executorch.")] = "onnx",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            parser=output_path,
            metavar="PATH",
            help="The file; by default FOLDER/model.onnx, .pt2 or .pte.",
        ),
    ] = None,
    model: DenseModel = None,
    model_arg: ModelArgs = None,
    weights: Weights = None,
    size: Annotated[
        str | None, typer.Option("--input", help="Shape of one image, as 3,32,32; by default that of the folder.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Fixed batch size; by default any, and 1 for executorch.")] = None,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Accept images of any height and width (ONNX and .pt2).")
    ] = False,
    opset: Annotated[int | None, typer.Option(help="ONNX opset; 18 by default.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Images to verify the outputs on: digits, npz:PATH, folder:PATH or hf:NAME; by default random noise."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of these images.")] = "test",
    images: Annotated[int, typer.Option(min=1, help="Number of these images.")] = 64,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    json: Json = False,
) -> None:
    """Write a converted network as ONNX, .pt2 or for ExecuTorch, and verify the file against the network.

    Example: **separable export runs/demo --to onnx --data digits**
    """
    from torch_separable.cli.model_argument import network_of_folder
    from torch_separable.exporting import SUFFIXES
    from torch_separable.exporting import export as export_network

    suffixes = {form: suffix for suffix, form in SUFFIXES.items()}
    if to not in suffixes:
        raise SeparableValueError(f"--to {to}: must be one of {', '.join(suffixes)}")
    shape = None if size is None else whole_numbers("--input", size)
    compared = None
    if data is not None:
        prepared = preparation(image_size, mean, std, progress=not json, folder=folder)
        source = load_prepared(folder, data, split, prepared)
        compared = source.sample(min(images, len(source)))
    network = network_of_folder(folder, model, keyword_arguments("--model-arg", model_arg), weights)
    exported = export_network(
        network,
        output or folder / f"model{suffixes[to]}",
        to=to,
        input_shape=shape,
        images=compared,
        batch=batch,
        dynamic_size=dynamic_size,
        opset=opset,
    )
    if json:
        print_json(exported.to_dict())
    else:
        print(exported)
