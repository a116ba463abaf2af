"""``separable bench``: time a network in several inference engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from torch_separable.cli.arguments import (
    DenseModel,
    InputSize,
    Json,
    Model,
    ModelArgs,
    Quiet,
    Weights,
    image_shape,
    keyword_arguments,
    output_path,
    print_json,
    whole_numbers,
)
from torch_separable.errors import SeparableValueError


def bench(
    model: Model,
    size: InputSize = None,
    made_of: DenseModel = None,
    model_arg: ModelArgs = None,
    weights: Weights = None,
    dense: Annotated[
        str | None, typer.Option(help="Its dense counterpart, named like MODEL; by default that of the folder.")
    ] = None,
    dense_arg: Annotated[
        list[str] | None, typer.Option("--dense-arg", metavar="K=V", help="Like --model-arg, for the dense network.")
    ] = None,
    threads: Annotated[str | None, typer.Option(help="Numbers of threads, as 1,2; by default one and all.")] = None,
    batch: Annotated[str, typer.Option(help="Images in a call, as 1,8.")] = "1,8",
    peers: Annotated[
        str | None,
        typer.Option(
            help="Engines to compare with, separated by commas: eager, channels_last, autocast, inductor, "
            "onnxruntime, openvino, openvino_bf16, separable_bf16. By default all but inductor, which takes minutes; "
            "bfloat16 engines only if the processor has instructions for it."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of each engine, of about 0.1 s each.")] = 20,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", parser=output_path, metavar="PATH", help="Folder for the results and the report page."
        ),
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Time a network in several engines, alternating, each in its own process with its fastest settings.

    MODEL may also be a folder written by convert. Without --weights, batch norms get the statistics of random images.

    Example: **separable bench mobilenet_v1 --input 3,224,224 --dense conv_mobilenet --peers eager,openvino**
    """
    import torch

    from torch_separable.artifacts import run_directory
    from torch_separable.bench import benchmark
    from torch_separable.bench.engines import OURS
    from torch_separable.bench.randomize import randomize_batch_norms
    from torch_separable.cli.model_argument import build_network, network_or_folder
    from torch_separable.cli.report import page_of
    from torch_separable.cost import analyze
    from torch_separable.runtime import available, compile

    if output is not None:
        run_directory.check_place(output)
    if dense_arg and dense is None:
        raise SeparableValueError(f"--dense-arg {dense_arg[0]} needs --dense, which names the network")
    network, twin, own = network_or_folder(model, made_of, keyword_arguments("--model-arg", model_arg), weights)
    shape = image_shape(size, own)
    examples = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
    if twin is not None:
        if dense is not None:
            raise SeparableValueError(f"--dense {dense}: the folder {model} already names its dense network")
    else:
        analyze(network, examples[:1])  # raises a readable error if the network fails on this shape
        if weights is None:
            network = randomize_batch_norms(network, examples)
        if dense is not None:
            twin = randomize_batch_norms(build_network(dense, keyword_arguments("--dense-arg", dense_arg)), examples)
    done = benchmark(
        network,
        examples[:1],
        name=model,
        dense=twin,
        engines=None if peers is None else [OURS, *peers.split(",")],
        threads=None if threads is None else whole_numbers("--threads", threads),
        batches=whole_numbers("--batch", batch),
        rounds=rounds,
        progress=not (quiet or json),
    )
    results: dict[str, Any] = {
        "kind": "bench",
        "title": f"{model}: inference engines compared",
        "bench": done.to_dict(),
    }
    first = done.cases[0]
    if available() and first.ours() is not None:
        operations = compile(network, examples[: first.batch], threads=first.threads).explain()
        results["operations"] = operations.to_dict()
    if output is not None:
        run_directory.write_results(output, results, {"rounds": rounds, "input": list(shape)})
    if json:
        print_json(results)
        return
    print(done)
    if output is not None:
        print(page_of(output))
