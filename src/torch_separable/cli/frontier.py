"""``separable frontier``: accuracy against milliseconds, for a network in every form, precision and engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torch_separable.cli.arguments import (
    Data,
    Ema,
    ImageSize,
    Json,
    Mean,
    Model,
    ModelArgs,
    Quiet,
    Std,
    Weights,
    keyword_arguments,
    output_path,
    preparation,
    print_json,
    read_budget,
)


def frontier(
    model: Model,
    data: Data,
    model_arg: ModelArgs = None,
    weights: Weights = None,
    ema: Ema = False,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            help="macs=RATIO, parameters=RATIO or latency_ms=NUMBER of a converted network; repeatable. By default "
            "macs=0.7, macs=0.5 and macs=0.35."
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=8, help="Number of images that everything is fitted to.")] = 512,
    split: Annotated[str, typer.Option(help="Split that they are sampled from.")] = "train",
    evaluate: Annotated[
        str | None,
        typer.Option(
            metavar="SPLIT",
            help="Split that quality is measured on: accuracy where it has labels. By default the held-out quarter of "
            "the images, on which agreement with the dense network is measured.",
        ),
    ] = None,
    most: Annotated[int, typer.Option("--evaluate-images", min=1, help="Largest number of images for it.")] = 10_000,
    peers: Annotated[
        str | None,
        typer.Option(
            help="Engines to compare with, separated by commas: openvino, openvino_bf16, openvino_int8, onnxruntime, "
            "onnxruntime_int8; or none. By default those that are installed."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Number of threads of each engine.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each engine, of about 0.1 s each.")] = 20,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Random seed for sampling images.")] = 0,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", parser=output_path, metavar="PATH", help="Folder for frontier.json, .svg and .html."
        ),
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Measure accuracy against milliseconds: dense and converted, in float32, bfloat16 and int8, and other engines.

    A star marks what nothing measured beats in both.

    Example: **separable frontier resnet20 --weights resnet20.th --data npz:cifar10/ --mean imagenet --std imagenet
    --evaluate test -o runs/frontier**
    """
    from torch_separable.cli.model_argument import build_network
    from torch_separable.data import load_data
    from torch_separable.pareto import frontier as measure_frontier
    from torch_separable.pareto.measuring import BUDGETS

    budgets = BUDGETS if budget is None else [read_budget(text) for text in budget]
    progress = not (quiet or json)
    network = build_network(model, keyword_arguments("--model-arg", model_arg), weights, trained=True, ema=ema)
    prepared = preparation(image_size, mean, std, progress=progress)
    source = load_data(data, split, **prepared)
    sample = source.sample(min(images, len(source)), seed=seed)
    tested = labels = None
    if evaluate is not None:
        held_out = load_data(data, evaluate, **prepared)
        tested, labels = held_out.take(slice(0, most))
        labels = labels if held_out.labelled else None
    found = measure_frontier(
        network,
        sample,
        test_images=tested,
        labels=labels,
        budgets=budgets,
        engines=None if peers is None else [] if peers == "none" else peers.split(","),
        threads=threads,
        rounds=rounds,
        progress=progress,
    )
    written = () if output is None else found.write(output)
    if json:
        print_json(found.to_dict())
        return
    print(found)
    for path in written:
        print(f"written to {path}")
