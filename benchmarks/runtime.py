"""Time the runtime beside PyTorch, ONNX Runtime and OpenVINO.

    python benchmarks/runtime.py measure                        # on an idle machine: about 20 minutes
    python benchmarks/runtime.py measure --networks mobilenet_v1-1.0-224 --peers openvino,onnxruntime
    python benchmarks/runtime.py measure --isa avx2             # every engine limited to AVX2
    python benchmarks/runtime.py operations                     # MobileNetV1's: the roofline of docs/kernels.md
    python benchmarks/runtime.py show

Each engine runs in its own process at its fastest settings; the processes take turns. Results are written to
``benchmarks/results/runtime.json`` network by network, under the network's name, the processor and the instruction set.
A second run measures only what is missing. ``python docs/make_benchmarks.py`` renders them as docs/benchmarks.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import torch_separable as ts
from provenance import provenance
from torch_separable._network.weights_file import load_weights
from torch_separable._system.files import read_json, write_json
from torch_separable.artifacts.run_directory import machine
from torch_separable.bench import ENGINES, benchmark
from torch_separable.bench.engines import OURS
from torch_separable.bench.randomize import randomize_batch_norms
from torch_separable.conversion import Budget
from torch_separable.runtime.native.instruction_sets import chosen_set, instruction_sets

RESULTS = Path(__file__).resolve().parent / "results" / "runtime.json"
CHECKPOINT = "resnet20-12fca82f.th"


@dataclass(frozen=True)
class Entry:
    """A network to time: its builder, that of its dense twin, and the image size."""

    make: Callable[[], nn.Module]
    size: int
    dense: Callable[[], nn.Module] | None = None


def converted() -> nn.Module:
    """Build ResNet-20 at half of its MACs. The seed fixes weights and images, and so the plan."""
    torch.manual_seed(0)
    dense, images = randomize_batch_norms(ts.models.resnet20(), examples(32)), examples(32)
    return ts.convert(dense, images, budget=Budget(macs=0.5)).model


NETWORKS = {
    "mobilenet_v1-1.0-224": Entry(ts.models.mobilenet_v1, 224, ts.models.conv_mobilenet),
    "mobilenet_v1-0.25-128": Entry(lambda: ts.models.mobilenet_v1(0.25), 128, lambda: ts.models.conv_mobilenet(0.25)),
    "mobilenet_v2-1.0-224": Entry(ts.models.mobilenet_v2, 224),
    "efficientnet_lite0-224": Entry(ts.models.efficientnet_lite0, 224),
    "resnet20-32": Entry(ts.models.resnet20, 32),
    "resnet20-32, converted": Entry(converted, 32, ts.models.resnet20),
}
# Environment variables that limit engines to an instruction set. ONNX Runtime has none and is left out then.
LIMITS = {
    "avx2": {
        "TORCH_SEPARABLE_ISA": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "DNNL_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
    }
}

HEADS = ("batch", "threads", "precision", "ours, ms", "peer, ms", "fastest peer", "speedup", "realized")

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


def examples(size: int) -> Tensor:
    return torch.randn(16, 3, size, size, generator=torch.Generator().manual_seed(0))


def ready(make: Callable[[], nn.Module], size: int, checkpoints: Path | None) -> nn.Module:
    """Build a network, with trained weights if the folder has them."""
    network = make()
    if make is converted:
        return network.eval()  # it has its own weights
    if isinstance(network, ts.models.CifarResNet) and checkpoints is not None and (checkpoints / CHECKPOINT).exists():
        load_weights(network, checkpoints / CHECKPOINT)
        return network.eval()
    return randomize_batch_norms(network, examples(size))


@app.command()
def measure(
    networks: Annotated[str, typer.Option(help="Networks, separated by semicolons.")] = ";".join(NETWORKS),
    peers: Annotated[str | None, typer.Option(help="Engines, separated by commas; inductor takes minutes.")] = None,
    threads: Annotated[str | None, typer.Option(help="Thread counts, such as 1,2; by default 1 and all cores.")] = None,
    batches: Annotated[str, typer.Option(help="Batch sizes, such as 1,8.")] = "1,8",
    rounds: Annotated[int, typer.Option(help="Rounds per engine.")] = 20,
    isa: Annotated[str | None, typer.Option(help="Limit every engine to an instruction set: avx2.")] = None,
    checkpoints: Annotated[Path | None, typer.Option(help="Folder with the weights of ResNet-20.")] = None,
) -> None:
    """Time the networks that are not yet in the results."""
    os.environ.update(LIMITS[isa] if isa else {})
    wanted = [key for key, engine in ENGINES.items() if not engine.slow] if peers is None else [OURS, *peers.split(",")]
    if isa:
        wanted = [key for key in wanted if key != "onnxruntime"]
    for name in networks.split(";"):
        entry = NETWORKS[name]

        def run(entry: Entry = entry, name: str = name) -> dict[str, Any]:
            done = benchmark(
                ready(entry.make, entry.size, checkpoints),
                examples(entry.size)[:1],
                name=name,
                dense=None if entry.dense is None else ready(entry.dense, entry.size, checkpoints),
                engines=wanted,
                threads=None if threads is None else [int(n) for n in threads.split(",")],
                batches=[int(n) for n in batches.split(",")],
                rounds=rounds,
            )
            print(done, flush=True)
            return done.to_dict()

        # Several generations report the same name: mark processors that support more than the chosen set.
        limited = ", limited" if isa and next(iter(instruction_sets())) != isa else ""
        once(f"{name}, {machine()['processor']}, {chosen_set().name}{limited}", run)
    show()


def once(key: str, run: Callable[[], dict[str, Any]]) -> None:
    """Measure an entry that is not yet in the results, and store it with machine and provenance."""
    if key not in measured():
        entry = {**run(), "machine": machine(), "provenance": provenance()}
        write_json(RESULTS, dict(sorted({**measured(), key: entry}.items())))  # another run may have written meanwhile


def measured() -> dict[str, Any]:
    return dict(read_json(RESULTS, "results")) if RESULTS.exists() else {}


@app.command()
def operations(threads: Annotated[int, typer.Option(help="Number of threads.")] = 1) -> None:
    """Time each operation of MobileNetV1 1.0-224 on its own, for the roofline."""
    entry = NETWORKS["mobilenet_v1-1.0-224"]
    compiled = ts.compile(ready(entry.make, entry.size, None), examples(entry.size)[:1], threads=threads)
    explained = compiled.explain()
    print(explained)
    entry = {**explained.to_dict(), "machine": machine(), "provenance": provenance()}
    write_json(RESULTS.with_name("operations.json"), entry)


@app.command()
def show(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Print the results."""
    results = measured()
    if as_json:
        print(json.dumps(results, indent=2))
        return
    console = Console()
    for key, entry in results.items():
        table = Table(*HEADS, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        table.title, table.title_justify = key, "left"
        for case in entry["cases"]:
            for precision in ("float32", "bfloat16"):
                if any(timing["precision"] == precision for timing in case["timings"]):
                    table.add_row(*_row(case, precision))
        console.print(table)
    console.print("speedup: fastest peer ms ÷ ours. realized: (dense ms ÷ ours) ÷ (dense MACs ÷ MACs).")


def _row(case: dict[str, Any], precision: str) -> Sequence[str]:
    times = sorted((t for t in case["timings"] if t["precision"] == precision), key=lambda t: t["milliseconds"])
    ours = next((t for t in times if t["engine"].startswith(OURS)), None)
    peer = next((t for t in times if not t["engine"].startswith(OURS)), None)
    speedup = case["ratio"][precision]
    realized = case["realized_speedup"] if precision == "float32" else None
    return (
        str(case["batch"]),
        str(case["threads"]),
        precision,
        "–" if ours is None else f"{ours['milliseconds']:.3g}",
        "–" if peer is None else f"{peer['milliseconds']:.3g}",
        "" if peer is None else peer["title"],
        "–" if speedup is None else f"{speedup:.2f}",
        "" if realized is None else f"{realized:.2f}",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    app(args=None if arguments is None else list(arguments))


if __name__ == "__main__":
    main()
