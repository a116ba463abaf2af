"""``separable quantize``: quantize a trained network to int8."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    output_path,
    preparation,
    print_json,
)
from torch_separable.cli.evaluate import SEEN
from torch_separable.errors import SeparableError, SeparableValueError


def quantize(
    context: typer.Context,
    network: Annotated[
        str, typer.Argument(help="Folder written by convert, distill or demo, or a network as for convert.")
    ],
    data: Data,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", parser=output_path, metavar="PATH", help="Folder for the quantized network."),
    ],
    model: DenseModel = None,
    model_arg: ModelArgs = None,
    weights: Weights = None,
    ema: Ema = False,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Leave a layer, or all layers of a module, in float32. Repeatable."),
    ] = None,
    float_macs: Annotated[
        float, typer.Option(help="Share of the MACs that may stay in float32, for the layers that lose most in int8.")
    ] = 0.0,
    images: Annotated[
        int, typer.Option(min=8, help="Number of calibration images; 128 to 1,024 suffice. No labels are used.")
    ] = 512,
    split: Annotated[str, typer.Option(help="Split of the data that they are sampled from.")] = "train",
    evaluate: Annotated[
        str | None, typer.Option(metavar="SPLIT", help="Also measure the accuracy of both networks on this split.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Random seed for sampling calibration images.")] = 0,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a network in the folder.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Quantize a trained network, dense or converted, to int8 weights and uint8 activations, without training.

    Example: **separable quantize runs/half --data npz:cifar10/ -o runs/half-int8**
    """
    from torch_separable._system.locking import sole_writer
    from torch_separable.artifacts import run_directory
    from torch_separable.artifacts.quantized_run import write_quantized
    from torch_separable.bench.precisions import compare_precisions
    from torch_separable.cli.model_argument import build_network, converted_network, expand_name
    from torch_separable.cli.report import page_of
    from torch_separable.conversion import Plan
    from torch_separable.data import Preparation, split_names
    from torch_separable.distillation import evaluate as evaluate_network
    from torch_separable.quantization import quantize as quantize_network

    if (output / run_directory.WEIGHTS).exists() and not force:
        raise SeparableError(f"{output} already contains a network: choose another folder or give --force")
    run_directory.check_place(output)
    progress = not (quiet or json)
    arguments = keyword_arguments("--model-arg", model_arg)
    folder = Path(network) if Path(network).is_dir() else None
    if folder is not None:
        built, plan = converted_network(folder, model, arguments, weights)[0], Plan.load(folder / run_directory.PLAN)
    elif model is None:
        name, arguments = expand_name(network, arguments)
        built, plan = build_network(name, arguments, weights, trained=True, ema=ema), None
    else:
        raise SeparableValueError(f"{network} is not a folder, but --model {model} needs a folder written by convert")
    prepared = preparation(image_size, mean, std, progress=progress, folder=folder)
    source = load_prepared(folder, data, split, prepared)
    held_out = None if evaluate is None else load_prepared(folder, data, evaluate, prepared)
    sample = source.sample(min(images, len(source)), seed=seed)
    context.with_resource(sole_writer(output))
    quantized = quantize_network(built, sample, exclude=exclude or (), float_macs=float_macs, progress=progress)
    evaluations = (
        [None, None]
        if held_out is None
        else [evaluate_network(one, held_out, progress=progress) for one in (built, quantized.model)]
    )
    compared = compare_precisions(built, quantized.model, sample[:1])
    steps = [
        {"name": precision, "bytes": size, **({} if evaluation is None else evaluation.to_dict())}
        for precision, size, evaluation in zip(("float32", "int8"), quantized.report.bytes, evaluations, strict=True)
    ]
    seen = evaluate is not None and (evaluate == split or evaluate not in split_names(data))
    settings = {
        "network": network,
        "weights": None if weights is None else str(weights),
        "data": source.describe(),
        "split": split,
        "images": len(sample),
        "seed": seed,
        "exclude": exclude or [],
        "float_macs": float_macs,
        "evaluate": evaluate,
    }
    results: dict[str, Any] = {
        "kind": "quantize",
        "title": f"{type(built).__name__}, quantized",
        "quantization": quantized.report.to_dict(),
        "precisions": {**compared.to_dict(), "networks": steps, "split": evaluate, "seen_by_teacher": seen},
    }
    write_quantized(
        output,
        quantized.model,
        settings,
        results,
        plan=plan,
        command=run_directory.command_line(),
        preparation=Preparation.of(source),
    )
    if json:
        print_json({"output": str(output), **quantized.report.to_dict(), "precisions": results["precisions"]})
    else:
        print(quantized.report)
        if held_out is not None:
            print("accuracy    {} -> {}{}".format(*evaluations, f" ({SEEN})" if seen else ""))
        print(f"time        {compared}")
    print(f"written to {output}")
    print(page_of(output))
