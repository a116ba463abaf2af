"""``separable export``: write a network for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from torch_separable.exporting.to_native import NativeOptions


def export(
    folder: Annotated[Path, typer.Argument(help="Folder written by convert, distill or demo.")],
    to: Annotated[str, typer.Option(help="onnx, pt2, executorch or native.")] = "onnx",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            parser=output_path,
            metavar="PATH",
            help="The file; by default FOLDER/model.onnx, .pt2, .pte or .tsn.",
        ),
    ] = None,
    model: DenseModel = None,
    model_arg: ModelArgs = None,
    weights: Weights = None,
    size: Annotated[
        str | None, typer.Option("--input", help="Shape of one image, as 3,32,32; by default that of the folder.")
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            help="Fixed batch size; by default any, and 1 for executorch and native, which takes several: 1,8."
        ),
    ] = None,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Accept images of any height and width (ONNX and .pt2).")
    ] = False,
    opset: Annotated[int | None, typer.Option(help="ONNX opset; 18 by default.")] = None,
    targets: Annotated[
        str | None,
        typer.Option(help="Instruction sets of a native file, as avx2,avx512,neon; by default this processor's best."),
    ] = None,
    threads: Annotated[
        str | None,
        typer.Option(help="Numbers of threads that a native file is planned for, as 1,4; any number can run it."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Precision of a native file: float32 or bfloat16.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence of the weights, which a native file states.")] = None,
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
    """Write a converted network as ONNX, .pt2, for ExecuTorch or compiled, and verify the file against the network.

    Example: **separable export runs/demo --to onnx --data digits**
    """
    from torch_separable.cli.model_argument import network_of_folder
    from torch_separable.exporting import SUFFIXES
    from torch_separable.exporting import export as export_network

    suffixes = {form: suffix for suffix, form in SUFFIXES.items()}
    if to not in suffixes:
        raise SeparableValueError(f"--to {to}: must be one of {', '.join(suffixes)}")
    sizes = None if batch is None else (0,) if batch == "0" else whole_numbers("--batch", batch)
    if sizes is not None and to != "native" and len(sizes) > 1:
        raise SeparableValueError(f"--batch {batch}: only native files have several batch sizes")
    native = None
    if to == "native":
        native = _native_options(folder, targets, threads, dtype, license)
    elif any(given is not None for given in (targets, threads, dtype, license)):
        raise SeparableValueError("--targets, --threads, --dtype and --license are options of --to native")
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
        batch=None if sizes is None else sizes[0] if len(sizes) == 1 else sizes,
        dynamic_size=dynamic_size,
        opset=opset,
        native=native,
    )
    if json:
        print_json(exported.to_dict())
    else:
        print(exported)


def _native_options(
    folder: Path, targets: str | None, threads: str | None, dtype: str | None, license: str | None
) -> NativeOptions:
    """Describe a native file, with the preparation of the folder's images."""
    from torch_separable.artifacts import run_directory
    from torch_separable.exporting.to_native import NativeOptions
    from torch_separable.runtime import Details
    from torch_separable.runtime.native.operations import FLOATS

    precisions = {str(precision).removeprefix("torch."): precision for precision in FLOATS}
    if dtype is not None and dtype not in precisions:
        raise SeparableValueError(f"--dtype {dtype}: must be {' or '.join(precisions)}")
    known = run_directory.read_preparation(folder)
    about = Details(
        name=folder.resolve().name,
        mean=() if known is None else known.mean,
        std=() if known is None else known.std,
        classes=() if known is None else known.classes,
        license=license or "",
    )
    return NativeOptions(
        targets=None if targets is None else tuple(targets.split(",")),
        threads=None if threads is None else whole_numbers("--threads", threads),
        dtype=precisions[dtype or "float32"],
        details=about,
    )
