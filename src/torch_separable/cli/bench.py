"""``separable bench``: time a network in several inference engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

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
            "onnxruntime, openvino, openvino_bf16, separable_bf16, onnxruntime_int8, openvino_int8, separable_int8. By "
            "default all but inductor, which takes minutes; bfloat16 engines only if the processor has instructions "
            "for it, int8 engines only with --precision int8 or a quantized network."
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Only engines in these precisions, separated by commas: float32, bfloat16, int8. int8 quantizes the "
            "network on random images, which shows its speed and not its accuracy; a folder written by quantize is "
            "timed as it is."
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
    from torch_separable.bench.randomize import randomize_batch_norms
    from torch_separable.cli.model_argument import build_network, network_or_folder
    from torch_separable.cli.report import page_of
    from torch_separable.cost import analyze
    from torch_separable.quantization import QuantizedNetwork, quantize
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
    integer = None
    if isinstance(network, QuantizedNetwork):
        integer = network
    elif "int8" in (precision or peers or ""):
        calibration = torch.randn(64, *shape, generator=torch.Generator().manual_seed(1))
        integer = quantize(network, calibration, progress=not (quiet or json)).model
    done = benchmark(
        network,
        examples[:1],
        name=model,
        dense=twin,
        quantized=integer,
        engines=_engines(peers, precision, network, integer),
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
    if available() and (first.ours() or first.ours("int8")) is not None:
        timed = network if first.ours() is not None else integer
        assert timed is not None
        operations = compile(timed, examples[: first.batch], threads=first.threads, compare=False).explain()
        results["operations"] = operations.to_dict()
    if output is not None:
        run_directory.write_results(output, results, {"rounds": rounds, "input": list(shape)})
    if json:
        print_json(results)
        return
    print(done)
    if output is not None:
        print(page_of(output))


def _engines(peers: str | None, precision: str | None, network: nn.Module, quantized: nn.Module | None) -> list[str]:
    """Return the engines of the options: our own and the peers, by default all of the precisions."""
    from torch_separable.bench.engines import ENGINES, OURS
    from torch_separable.bench.harness import default_engines

    if precision is None:
        known = default_engines(network, quantized)
        ours = f"{OURS}_int8" if quantized is network else OURS
        return known if peers is None else [ours, *peers.split(",")]
    kinds = precision.split(",")
    possible = {engine.precision for engine in ENGINES.values()}
    if unknown := [kind for kind in kinds if kind not in possible]:
        raise SeparableValueError(f"--precision {unknown[0]}: must be among {', '.join(sorted(possible))}")
    wanted = [OURS, *peers.split(",")] if peers is not None else default_engines(network, quantized)
    if peers is not None:
        wanted += [key for key in ENGINES if key.startswith(f"{OURS}_")]
    chosen = [key for key in wanted if key not in ENGINES or ENGINES[key].precision in kinds]
    if not chosen:
        raise SeparableValueError(f"--precision {precision}: no engine of these precisions is among those to compare")
    return list(dict.fromkeys(chosen))
