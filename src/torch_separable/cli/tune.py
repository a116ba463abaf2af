"""``separable tune``: measure tile sizes and store the fastest for later calls of ``compile``."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import typer

from torch_separable.cli.arguments import (
    DenseModel,
    InputSize,
    Json,
    Model,
    ModelArgs,
    image_shape,
    keyword_arguments,
    print_json,
    whole_numbers,
)
from torch_separable.errors import SeparableValueError


def tune(
    model: Model,
    size: InputSize = None,
    made_of: DenseModel = None,
    model_arg: ModelArgs = None,
    threads: Annotated[str | None, typer.Option(help="Numbers of threads, as 1,2; by default one and all.")] = None,
    batch: Annotated[str, typer.Option(help="Images in a call, as 1,8.")] = "1",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, as the network will be compiled.")] = "float32",
    json: Json = False,
) -> None:
    """Measure the tile sizes of a network's convolutions on this machine, and store the fastest for **ts.compile**.

    MODEL may also be a folder written by convert. Shapes that were measured before are skipped; weights do not matter.
    The machine should be idle.

    Example: **separable tune mobilenet_v1 --input 3,224,224 --batch 1,8**
    """
    import torch

    from torch_separable._system.timing import interleaved, rounds_within
    from torch_separable.cli.model_argument import network_or_folder
    from torch_separable.runtime.engine import capture
    from torch_separable.runtime.native.instruction_sets import chosen_set
    from torch_separable.runtime.native.operations import FLOATS
    from torch_separable.runtime.planning.schedule import schedule
    from torch_separable.runtime.prepared import Prepared
    from torch_separable.runtime.profiling.autotune import Tuned, cache_file
    from torch_separable.runtime.profiling.autotune import tune as measure_tiles

    precisions = {str(precision).removeprefix("torch."): precision for precision in FLOATS}
    if dtype not in precisions:
        raise SeparableValueError(f"--dtype {dtype}: must be {' or '.join(precisions)}")
    counts = sorted({1, torch.get_num_threads()}) if threads is None else whole_numbers("--threads", threads)
    network, _, own = network_or_folder(model, made_of, keyword_arguments("--model-arg", model_arg), None)
    shape = image_shape(size, own)
    kernels = chosen_set(precisions[dtype])
    runs: list[dict[str, Any]] = []
    for images in whole_numbers("--batch", batch):
        x = torch.randn(images, *shape)
        program = capture(network, x)
        for count in counts:
            found: list[Tuned] = []
            tiles = measure_tiles(program, kernels, count, found.append)
            by_rule, tuned = (
                Prepared(schedule(program, kernels, count, known), kernels, count) for known in ({}, tiles)
            )
            calls = {"rule": partial(by_rule.run, x), "tuned": partial(tuned.run, x)}
            times = interleaved(calls, rounds=rounds_within(1, *calls.values(), fewest=5, most=200))
            runs.append(
                {"batch": images, "threads": count, "milliseconds": times, "found": [asdict(each) for each in found]}
            )
    if json:
        print_json({"file": str(cache_file()), "runs": runs})
        return
    for run in runs:
        changed = [each for each in run["found"] if each["rule"] != each["chosen"]]
        times = run["milliseconds"]
        print(
            f"batch {run['batch']}, threads {run['threads']}: {times['rule']:.3g} ms by rule, {times['tuned']:.3g} ms "
            f"tuned; {len(run['found'])} shapes measured, {len(changed)} changed"
        )
        for each in changed:
            (before, after), (rule, chosen) = each["milliseconds"], (each["rule"], each["chosen"])
            print(
                f"  {each['shape']}: tile {rule[0]}/{rule[1]} → {chosen[0]}/{chosen[1]}, {before:.3f} → {after:.3f} ms"
            )
    print(f"stored in {cache_file()}")
