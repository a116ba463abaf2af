"""``separable recover``: the rest of the accuracy, by distillation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torch_separable.cli.arguments import (
    Data,
    DenseModel,
    ImageSize,
    Json,
    Mean,
    ModelArgs,
    Quiet,
    Std,
    channel_values,
    keyword_arguments,
    print_json,
)
from torch_separable.errors import SeparableError, SeparableValueError

if TYPE_CHECKING:
    from torch import nn


def recover(
    folder: Annotated[Path, typer.Argument(help="A folder that convert wrote.")],
    teacher: Annotated[Path, typer.Option(help="The dense network's weights.")],
    data: Data,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the run; by default FOLDER/recovered.")
    ] = None,
    model: DenseModel = None,
    model_arg: ModelArgs = None,
    epochs: Annotated[int, typer.Option()] = 10,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="K=V", help="Any setting of RecoverConfig, as batch_size=64.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split that is trained on.")] = "train",
    hold_out: Annotated[
        float, typer.Option(help="Share of it, drawn at random, kept aside to choose the best epoch by its labels.")
    ] = 0.05,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not go on from a checkpoint in the folder.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train a converted network to give the dense one's outputs; labels are not needed.

    Example: **separable recover runs/half --teacher resnet20.th --data npz:cifar10/ --mean imagenet --std imagenet
    --epochs 5**
    """
    import torch

    from torch_separable import runs
    from torch_separable.files import save_weights, write_json
    from torch_separable.recover import EpochRecord, load_data
    from torch_separable.recover import recover as distil

    if not 0 <= hold_out < 1:
        raise SeparableValueError(f"--hold-out {hold_out}: must be a share, at least 0 and below 1")
    student, dense = converted_network(
        folder, model, keyword_arguments("--model-arg", model_arg), None, teacher=teacher
    )
    source = load_data(
        data, split, image_size=image_size, mean=channel_values("--mean", mean), std=channel_values("--std", std)
    )
    validation = None
    if source.labelled and (held := round(len(source) * hold_out)):
        # At random, for image folders come class by class; the same ones each time, so that a run can go on.
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))
        source, validation = source.subset(order[held:]), source.subset(order[:held])
    place = output or folder / "recovered"
    history: list[EpochRecord] = []

    def follow(record: EpochRecord) -> None:
        history.append(record)
        if not (quiet or json):
            print(record)

    recovered = distil(
        student,
        dense,
        source,
        validation=validation,
        output_dir=place,
        resume=not fresh,
        progress=not (quiet or json),
        on_epoch=follow,
        **{"epochs": epochs, **keyword_arguments("--set", setting)},
    )
    save_weights(recovered, place / runs.WEIGHTS)
    write_json(place / "command.json", {"command": runs.command_line(), "machine": runs.machine()})
    if json:
        print_json({"weights": str(place / runs.WEIGHTS), "epochs": [record.to_dict() for record in history]})
    else:
        print(f"written to {place / runs.WEIGHTS}: try it with separable evaluate {folder} --weights ...")


def converted_network(
    folder: Path, model: str | None, arguments: dict[str, Any], weights: Path | None, teacher: Path | None = None
) -> tuple[nn.Module, nn.Module]:
    """Build the converted network of a folder, and its dense one.

    Nothing that a folder names is imported but the networks of ``torch_separable.models``; others the caller names.
    """
    from torch_separable import runs
    from torch_separable.cli.networks import build_network, is_built_in
    from torch_separable.files import load_weights

    network = runs.read_network(folder)
    if model is None and not is_built_in(network.model):
        raise SeparableError(
            f"{folder} was made of {network.model}, which would have to be imported: if you trust it, "
            f"give --model {network.model}"
        )
    dense = build_network(model or network.model, {**network.arguments, **arguments}, teacher)
    converted = runs.load_converted(folder, dense)
    if weights is not None:
        load_weights(converted, weights)
    return converted, dense
