"""``separable convert``: from a trained dense network to a depthwise separable one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torch_separable.cli.arguments import (
    Data,
    ImageSize,
    Json,
    Mean,
    Model,
    ModelArgs,
    Quiet,
    Std,
    Weights,
    channel_values,
    keyword_arguments,
    print_json,
    read_budget,
)
from torch_separable.errors import MissingExtraError, SeparableError, SeparableValueError


def convert(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the converted network.")],
    model_arg: ModelArgs = None,
    weights: Weights = None,
    budget: Annotated[
        str | None, typer.Option(help="macs=SHARE, params=SHARE (of the dense network's) or latency_ms=NUMBER.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="One rank for all layers, instead of a budget.")] = None,
    order: Annotated[str | None, typer.Option(help="Allow only depthwise_first or pointwise_first.")] = None,
    method: Annotated[
        str, typer.Option(help="least_squares, or svd: the baseline that sees no data.")
    ] = "least_squares",
    images: Annotated[
        int, typer.Option(min=1, help="Calibration images; 256 to 1,024 suffice. No labels are used.")
    ] = 512,
    split: Annotated[str, typer.Option(help="Split that they are drawn from.")] = "train",
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    memory: Annotated[str, typer.Option(help="What samples may take at a time, as 4GB.")] = "2GB",
    force: Annotated[bool, typer.Option("--force", help="Replace what the folder holds.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Convert a trained network, its weights kept: no labels, no training.

    Example: **separable convert resnet20 --weights resnet20.th --data npz:cifar10/ --mean imagenet --std imagenet
    --budget macs=0.5 -o runs/half**
    """
    from torch_separable import runs
    from torch_separable.cli.networks import build_network
    from torch_separable.convert import convert as convert_network
    from torch_separable.recover import load_data
    from torch_separable.report import write_report

    if (output / runs.WEIGHTS).exists() and not force:
        raise SeparableError(f"{output} already holds a converted network: choose another folder, or give --force")
    runs.check_place(output)
    if budget is not None and rank is not None:
        raise SeparableValueError(f"--budget {budget} and --rank {rank} are both given: give one of them")
    if budget is None and rank is None:
        budget = "macs=0.5"
    arguments = keyword_arguments("--model-arg", model_arg)
    network = build_network(model, arguments, weights)
    source = load_data(
        data, split, image_size=image_size, mean=channel_values("--mean", mean), std=channel_values("--std", std)
    )
    conversion = convert_network(
        network,
        source.sample(min(images, len(source)), seed=seed),
        budget=None if budget is None else read_budget(budget),
        rank=rank,
        order=order,  # type: ignore[arg-type]
        method=method,  # type: ignore[arg-type]
        memory=read_bytes(memory),
        progress=not (quiet or json),
    )
    settings = {
        "weights": None if weights is None else str(weights),
        "data": source.describe(),
        "split": split,
        "images": min(images, len(source)),
        "seed": seed,
        "budget": budget,
        "rank": rank,
        "order": order,
        "method": method,
    }
    results = {
        "kind": "convert",
        "title": f"{type(network).__name__}, converted",
        "conversion": conversion.report.to_dict(),
    }
    runs.write_run(output, conversion.model, conversion.plan, runs.Network(model, arguments), settings, results)
    if json:
        print_json({"output": str(output), **conversion.report.to_dict()})
    else:
        print(conversion.plan)
        print(conversion.report)
    try:
        print(f"written to {output}; open {write_report(output)}")
    except MissingExtraError as missing:  # the page is a help to look at the run, which is whole without it
        print(f"written to {output}, without a page: {missing}")


def read_bytes(text: str) -> int:
    """Read ``4GB``, ``512MB`` or a plain number of bytes.

    Example:
        >>> read_bytes("4GB")
        4294967296
    """
    units = {"KB": 1024, "MB": 1024**2, "GB": 1024**3, "B": 1, "": 1}
    number = text.upper().rstrip("KMGB ")
    unit = text.upper()[len(number) :].strip()
    try:
        size = int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        raise SeparableValueError(f"--memory {text}: expected a number of bytes, as 4GB or 512MB") from None
    if size < 2**20:
        raise SeparableValueError(f"--memory {text}: at least 1MB is needed")
    return size
