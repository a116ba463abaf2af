"""``separable evaluate``: measure the accuracy of a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torch_separable.cli.arguments import (
    Data,
    DenseModel,
    Ema,
    ImageSize,
    Json,
    Mean,
    ModelArgs,
    Quiet,
    Std,
    Weights,
    keyword_arguments,
    load_prepared,
    preparation,
    print_json,
)
from torch_separable.errors import SeparableError

SEEN = "images that the network may have been trained on"


def evaluate(
    network: Annotated[str, typer.Argument(help="Folder written by convert, or a network as for convert.")],
    data: Data,
    model: DenseModel = None,
    model_arg: ModelArgs = None,
    weights: Weights = None,
    ema: Ema = False,
    split: Annotated[str, typer.Option(help="Split to evaluate on.")] = "test",
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    batch_size: Annotated[int, typer.Option(help="Images in one pass.")] = 256,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Classify labelled images and report accuracy and loss. A folder keeps the preparation of its images.

    Example: **separable evaluate runs/half --data npz:cifar10/**
    """
    from torch_separable.cli.model_argument import build_network, network_of_folder
    from torch_separable.data import split_names
    from torch_separable.distillation import evaluate as evaluate_network

    arguments = keyword_arguments("--model-arg", model_arg)
    folder = Path(network) if Path(network).is_dir() else None
    if folder is not None:
        evaluated = network_of_folder(folder, model, arguments, weights)
    elif model is None:
        evaluated = build_network(network, arguments, weights, trained=True, ema=ema)
    else:
        raise SeparableError(f"{network} is not a folder, but --model {model} needs a folder written by convert")
    progress = not (quiet or json)
    source = load_prepared(folder, data, split, preparation(image_size, mean, std, progress=progress, folder=folder))
    result = evaluate_network(evaluated, source, batch_size, progress=progress)
    seen = split == "train" and split in split_names(data)
    if json:
        print_json({**result.to_dict(), "split": split, "training_images": seen})
    else:
        print(f"{result} ({SEEN})" if seen else result)
