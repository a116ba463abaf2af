"""``separable distill``: train a converted network by distillation from the dense one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

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
    keyword_arguments,
    load_prepared,
    output_path,
    preparation,
    print_json,
)
from torch_separable.errors import SeparableError, SeparableValueError

_TIMED_IMAGES = 1  # the latency of one image, as in a plan within milliseconds


def distill(
    folder: Annotated[Path, typer.Argument(help="Folder written by convert.")],
    teacher: Annotated[Path, typer.Option(help="The dense network's weights.")],
    data: Data,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", parser=output_path, metavar="PATH", help="Folder of the run; by default FOLDER/distilled."
        ),
    ] = None,
    model: DenseModel = None,
    model_arg: ModelArgs = None,
    epochs: Annotated[int, typer.Option()] = 10,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="K=V", help="A setting of DistillConfig, as batch_size=64.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    hold_out: Annotated[
        float, typer.Option(help="Share of it to hold out and to measure the accuracy of each epoch on.")
    ] = 0.05,
    evaluate: Annotated[
        str | None,
        typer.Option(
            metavar="SPLIT",
            help="Split to compare the networks on; by default test or validation. Without one they are compared on "
            "held-out training images, which the dense network may have seen.",
        ),
    ] = None,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ignore a checkpoint in the folder.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train a converted network to reproduce the dense network's outputs; labels are not needed.

    Example: **separable distill runs/half --teacher resnet20.th --data npz:cifar10/ --epochs 5**
    """
    import torch

    from torch_separable._system.files import read_json
    from torch_separable._system.locking import is_first_process
    from torch_separable.artifacts import run_directory
    from torch_separable.bench.compare import compare
    from torch_separable.cli.model_argument import converted_network
    from torch_separable.cli.report import page_of
    from torch_separable.conversion import Plan
    from torch_separable.data import Preparation, find_test_split
    from torch_separable.distillation import DistillConfig, EpochRecord
    from torch_separable.distillation import distill as distill_network
    from torch_separable.distillation import evaluate as evaluate_network
    from torch_separable.distillation.run import LOG
    from torch_separable.distillation.training_log import read_records
    from torch_separable.models.registry import built_by
    from torch_separable.report import results_table

    if not 0 <= hold_out < 1:
        raise SeparableValueError(f"--hold-out {hold_out}: must be at least 0 and below 1")
    # The dense network was probably trained on the held-out images, too: they cannot select the best epoch.
    config = DistillConfig.from_dict({"epochs": epochs, "keep": "last", **keyword_arguments("--set", setting)})
    student, dense = converted_network(
        folder, model, keyword_arguments("--model-arg", model_arg), None, teacher=teacher
    )
    network = built_by(dense)
    assert network is not None
    network.check("the network to distill")  # fail now rather than when the run is written
    place = output or folder / "distilled"
    check_output(place, folder)
    progress = not (quiet or json)
    prepared = preparation(image_size, mean, std, progress=progress, folder=folder)
    source = load_prepared(folder, data, split, prepared)
    test_split = evaluate or find_test_split(data, split)
    test = None if test_split is None else load_prepared(folder, data, test_split, prepared)
    if test is not None and not test.labelled and evaluate is None:
        test = None  # test splits with secret labels cannot be evaluated
    images = Preparation.of(source)
    validation = None
    if source.labelled and (held := round(len(source) * hold_out)):
        if held == len(source):
            raise SeparableValueError(f"--hold-out {hold_out}: none of the {held} images would be left to train on")
        # Shuffled, because image folders are sorted by class; with a fixed seed, so that a run can resume.
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))
        source, validation = source.subset(order[held:]), source.subset(order[:held])

    def follow(record: EpochRecord) -> None:
        if not progress:
            return
        try:
            print(record, flush=True)
        except BrokenPipeError:  # the reader, for example `head`, has closed the pipe; training continues
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    distilled = distill_network(
        student,
        dense,
        source,
        config,
        validation=validation,
        output_dir=place,
        resume=not fresh,
        progress=progress,
        on_epoch=follow,
    )
    if not is_first_process():
        return
    described = {"data": source.describe(), "teacher": str(teacher), "epochs": config.epochs, "set": setting}
    # The first epochs of a resumed run are only in the log.
    epochs_done = [record for record in read_records(place / LOG) if record["kind"] == "epoch"]
    tried = [record["validation"] for record in epochs_done if record["validation"]]
    compared = compare(dense, distilled, source.sample(min(_TIMED_IMAGES, len(source))))
    before, converted, kept = None, None, None
    if test is not None:
        before, converted, kept = (
            evaluate_network(one, test, progress=progress).to_dict() for one in (dense, student, distilled)
        )
    elif validation is not None and tried:
        before = evaluate_network(dense, validation, progress=progress).to_dict()
        converted, kept = tried[0], tried[-1]
        if config.keep == "best":
            kept = max(tried, key=lambda result: (result["accuracy"], -result["loss"]))
    compared_on = test or validation
    converted_by = read_json(folder / run_directory.CONFIG, "how the network was converted").get("command")
    results = {
        "kind": "distill",
        "title": f"{type(dense).__name__}, converted and distilled",
        "data": {
            "train": len(source),
            "test": None if compared_on is None else len(compared_on),
            "split": "hold-out" if test is None else test_split,
            "seen_by_teacher": test is None or test_split == split,
        },
        "steps": [
            compared.step("dense", 0, before),
            compared.step("converted", 1, converted),
            compared.step("after distillation", 1, kept),
        ],
        "milliseconds": compared.times(),
        "layers": compared.layer_rows(),
        "epochs": epochs_done,
        "commands": [command for command in (converted_by, run_directory.command_line()) if isinstance(command, str)],
    }
    plan = Plan.load(folder / run_directory.PLAN)
    command = run_directory.command_line()
    run_directory.write_run(place, distilled, plan, network, described, results, command=command, preparation=images)
    if json:
        print_json({"weights": str(place / run_directory.WEIGHTS), "epochs": epochs_done})
    else:
        print(results_table(results))
        print(f"written to {place}")
    print(page_of(place))


def check_output(place: Path, folder: Path) -> None:
    """Raise if the folder holds a network that is not the result of an earlier distillation."""
    from torch_separable.artifacts import run_directory
    from torch_separable.distillation.run import CHECKPOINT, LOG

    run_directory.check_place(place)
    if place.exists() and place.samefile(folder):
        raise SeparableError(f"{place} is the folder of the network to distill: choose another folder")
    distillation = (place / CHECKPOINT).exists() or (place / LOG).exists()
    if (place / run_directory.WEIGHTS).exists() and not distillation:
        raise SeparableError(f"{place} already holds another network: choose another folder")
