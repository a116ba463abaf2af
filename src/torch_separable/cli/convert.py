"""``separable convert``: convert a trained dense network to a depthwise separable one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

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
from torch_separable.cli.evaluate import SEEN
from torch_separable.errors import SeparableError, SeparableValueError

_TIMED_IMAGES = 1  # the latency of one image, as in a plan within milliseconds
_METHODS = {"least_squares": "least squares", "svd": "SVD (baseline)"}


def convert(
    context: typer.Context,
    model: Model,
    data: Data,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", parser=output_path, metavar="PATH", help="Folder for the converted network."),
    ],
    model_arg: ModelArgs = None,
    weights: Weights = None,
    ema: Ema = False,
    budget: Annotated[
        str | None,
        typer.Option(
            help="macs=RATIO or parameters=RATIO to the dense network's, or latency_ms=NUMBER. Required unless "
            "--rank or --plan is given."
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="What latency_ms is measured with: compiled (the default) or pytorch."),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="One rank for all layers, instead of a budget.")] = None,
    plan: Annotated[Path | None, typer.Option(help="Carry out this plan.json instead of making a plan.")] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="f32, bf16, int8, or auto: for each layer int8 or float, weighed together with its rank within "
            "latency_ms=NUMBER."
        ),
    ] = "f32",
    order: Annotated[str | None, typer.Option(help="Allow only depthwise_first or only pointwise_first.")] = None,
    method: Annotated[
        str, typer.Option(help="least_squares, or svd, the baseline that uses the weights alone.")
    ] = "least_squares",
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Leave a layer, or all layers of a module, dense: conv1 or 'layer3.*'. Repeatable."
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Compare only this output of the network, such as logits or 0. Repeatable; all by default.",
        ),
    ] = None,
    reconstruct: Annotated[
        bool,
        typer.Option(
            "--reconstruct", help="Then train the layers against the dense network, for some minutes, without labels."
        ),
    ] = False,
    images: Annotated[
        int, typer.Option(min=1, help="Number of calibration images; 256 to 1,024 suffice. No labels are used.")
    ] = 512,
    split: Annotated[str, typer.Option(help="Split of the data that they are sampled from.")] = "train",
    evaluate: Annotated[
        str | None, typer.Option(metavar="SPLIT", help="Also measure the accuracy of both networks on this split.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Random seed for sampling calibration images.")] = 0,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    memory: Annotated[str, typer.Option(help="Memory that samples may take at a time, such as 4GB.")] = "4GB",
    force: Annotated[bool, typer.Option("--force", help="Overwrite a converted network in the folder.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Convert a trained network to a depthwise separable one, without labels and without training.

    Example: **separable convert resnet20 --weights resnet20.th --data npz:cifar10/ --mean imagenet --std imagenet
    --budget macs=0.5 -o runs/half**
    """
    from torch_separable._console.terminal import show
    from torch_separable._system.locking import sole_writer
    from torch_separable.artifacts import run_directory
    from torch_separable.artifacts.quantized_run import write_quantized
    from torch_separable.bench.compare import compare as compare_networks
    from torch_separable.bench.compare import step
    from torch_separable.cli.model_argument import build_network, expand_name
    from torch_separable.cli.report import page_of
    from torch_separable.conversion import Plan
    from torch_separable.conversion.planning.render import render_plan
    from torch_separable.data import Preparation, load_data, split_names
    from torch_separable.distillation import evaluate as evaluate_network
    from torch_separable.mixed_precision import convert as convert_network
    from torch_separable.mixed_precision.composition import quantization_of
    from torch_separable.models.registry import Network
    from torch_separable.quantization import QuantizedNetwork

    if (output / run_directory.WEIGHTS).exists() and not force:
        raise SeparableError(f"{output} already contains a converted network: choose another folder or give --force")
    run_directory.check_place(output)
    if budget is not None and rank is not None:
        raise SeparableValueError(f"--budget {budget} and --rank {rank} are both given: give one of them")
    if engine is not None and rank is not None:
        raise SeparableValueError(
            f"--engine {engine} only applies to --budget latency_ms=NUMBER, but --rank {rank} is given"
        )
    given = None if plan is None else Plan.load(plan)
    for option, value in (("--budget", budget), ("--rank", rank), ("--order", order), ("--engine", engine)):
        if given is not None and value is not None:
            raise SeparableValueError(f"--plan {plan} and {option} {value} are both given: the plan already decides it")
    if budget is None and rank is None and given is None:
        raise SeparableValueError(
            "--budget, --rank and --plan are all missing: give one of them, for example --budget macs=0.5"
        )
    progress = not (quiet or json)
    model, arguments = expand_name(model, keyword_arguments("--model-arg", model_arg))
    Network(model, arguments).check("the network to convert")  # now, not when it is written after minutes
    network = build_network(model, arguments, weights, trained=True, ema=ema)
    prepared = preparation(image_size, mean, std, progress=progress)
    source = load_data(data, split, **prepared)
    held_out = None if evaluate is None else load_data(data, evaluate, **prepared)
    sample = source.sample(min(images, len(source)), seed=seed)
    context.with_resource(sole_writer(output))
    stale = sorted(p.name for p in output.iterdir() if p.name[0] != "." and p.name not in run_directory.FILES)
    conversion = convert_network(
        network,
        sample,
        budget=None if budget is None else read_budget(budget, engine),
        rank=rank,
        plan=given,
        precision=precision,  # type: ignore[arg-type]
        order=order,  # type: ignore[arg-type]
        method=method,  # type: ignore[arg-type]
        exclude=exclude or (),
        outputs=compare or None,
        reconstruct=reconstruct,
        memory=read_bytes(memory),
        progress=progress,
    )
    evaluations = (
        [None, None]
        if held_out is None
        else [evaluate_network(one, held_out, progress=progress) for one in (network, conversion.model)]
    )
    before, after = (None if evaluation is None else evaluation.to_dict() for evaluation in evaluations)
    quantized = conversion.model if isinstance(conversion.model, QuantizedNetwork) else None
    trained = ", reconstructed" if conversion.report.reconstructed else ""
    settings = {
        "weights": None if weights is None else str(weights),
        "data": source.describe(),
        "split": split,
        "images": min(images, len(source)),
        "seed": seed,
        "budget": budget,
        "engine": engine,
        "rank": rank,
        "plan": None if plan is None else str(plan),
        "precision": precision,
        "order": order,
        "method": conversion.plan.method,
        "exclude": exclude or [],
        "compare": compare or [],
        "reconstruct": reconstruct,
        "evaluate": evaluate,
    }
    results: dict[str, Any] = {
        "kind": "convert",
        "title": f"{type(network).__name__}, converted",
        "conversion": conversion.report.to_dict(),
        "data": {
            "calibration": len(sample),
            "test": None if held_out is None else len(held_out),
            "split": evaluate,
            "seen_by_teacher": evaluate is not None and (evaluate == split or evaluate not in split_names(data)),
        },
    }
    titles = ["dense", f"converted by {_METHODS[conversion.plan.method]}{trained}"]
    latency = conversion.plan.latency
    common: dict[str, Any] = {"command": run_directory.command_line(), "preparation": Preparation.of(source)}
    if quantized is not None:
        results |= {"kind": "quantize", "title": f"{results['title']} and quantized", **quantization_of(conversion)}
        pairs = zip(conversion.report.macs, conversion.report.parameters, (before, after), titles, strict=True)
        results["steps"] = [step(title, macs, parameters, None, done) for macs, parameters, done, title in pairs]
        write_quantized(output, quantized, settings, results, plan=conversion.plan, **common)
    else:  # layers of a quantized network are no modules, so only these are compared one by one
        compared = compare_networks(network, conversion.model, sample[:_TIMED_IMAGES])
        results["steps"] = [compared.step(titles[0], 0, before), compared.step(titles[1], 1, after)]
        results |= {"milliseconds": compared.times(), "layers": compared.layer_rows()}
        made_of = Network(model, arguments, source.image_shape)
        run_directory.write_run(output, conversion.model, conversion.plan, made_of, settings, results, **common)
    if json:
        times = {} if latency is None else {"latency": asdict(latency)}
        print_json({"output": str(output), **conversion.report.to_dict(), **times})
    else:
        show(render_plan(conversion.plan))
        print(conversion.report)
        if held_out is not None:
            where = f" ({SEEN})" if results["data"]["seen_by_teacher"] else ""
            print("accuracy    {} -> {}{}".format(*evaluations, where))
    print(f"written to {output}")
    if stale:
        print(f"left over from an earlier conversion: {', '.join(stale)}")
    if quantized is None:
        print(page_of(output))


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
        raise SeparableValueError(f"--memory {text}: expected a number of bytes, such as 4GB or 512MB") from None
    if size < 2**20:
        raise SeparableValueError(f"--memory {text}: at least 1MB is needed")
    return size
