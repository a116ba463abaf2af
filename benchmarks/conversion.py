"""Measure conversion on CIFAR-10: accuracy at a share of the MACs, beside other methods.

    python benchmarks/conversion.py table --data npz:cifar10/ --checkpoints ../shared/data
    python benchmarks/conversion.py distill ...      # the same rows after distillation (hours)
    python benchmarks/conversion.py ablation ...
    python benchmarks/conversion.py speed
    python benchmarks/conversion.py training         # a training step, rank by rank and with the modules as they are
    python benchmarks/conversion.py latency          # budgets in milliseconds; needs an idle machine
    python benchmarks/conversion.py show             # print the results

Accuracies are those of all 10,000 test images; choices are made on training images. Each row is written to
``benchmarks/results/conversion.json`` once it is measured. A second run measures only what is missing, so a long run
may be interrupted. ``python docs/make_benchmarks.py`` renders the results as docs/benchmarks.md.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import torch_separable as ts
from conversion_networks import (
    KINDS,
    RATIOS,
    RESULTS,
    AveragedTeacher,
    Bench,
    Unreachable,
    candidates,
    macs_of,
    once,
    with_batch_norm,
)
from torch_separable._system.files import read_json
from torch_separable._system.timing import interleaved
from torch_separable.conversion import Budget
from torch_separable.nn.rank_by_rank import rank_by_rank
from torch_separable.runtime.native.instruction_sets import chosen_set

# Distillation schedules, chosen on held-out training images, for our networks and those of the peers.
SCHEDULES: dict[str, dict[str, Any]] = {
    "labels": {
        "optimizer": "adamw", "learning_rate": 1e-3, "batch_size": 64, "label_weight": 0.5, "feature_weight": 1.0,
    },
    # The schedule `labels` with batch norms that adapt to each batch, which allows larger steps.
    "adapting": {
        "optimizer": "adamw", "learning_rate": 3e-3, "batch_size": 64, "label_weight": 0.5, "feature_weight": 1.0,
        "frozen_norms": False,
    },
    # The schedule `adapting` with half the batch size.
    "small_batches": {
        "optimizer": "adamw", "learning_rate": 2e-3, "batch_size": 32, "label_weight": 0.5, "feature_weight": 1.0,
        "frozen_norms": False,
    },
    "mixtures": {
        "optimizer": "adamw", "learning_rate": 2e-3, "batch_size": 64, "feature_weight": 4.0,
        "augment": ("crop", "flip", "mixup"),
    },
}  # fmt: skip

Data = Annotated[str, typer.Option(help="CIFAR-10, as npz:FOLDER or folder:FOLDER with train and test.")]
Checkpoints = Annotated[Path, typer.Option(help="Folder with the weights of the dense networks.")]
Networks = Annotated[str, typer.Option(help="Networks, separated by commas.")]
Ratios = Annotated[str | None, typer.Option(help="MAC reductions, separated by commas.")]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


def chosen(networks: str, ratios: str | None) -> list[tuple[str, float]]:
    wanted = None if ratios is None else {float(text) for text in ratios.split(",")}
    return [(n, r) for n in networks.split(",") for r in RATIOS[n] if wanted is None or r in wanted]


@app.command()
def table(
    data: Data = "npz:cifar10",
    checkpoints: Checkpoints = Path("../shared/data"),
    networks: Networks = "resnet20,resnet56",
    ratios: Ratios = None,
    kinds: Annotated[str, typer.Option(help="Methods, separated by commas.")] = ",".join(KINDS),
) -> None:
    """Measure accuracies without training, from 1,024 unlabelled images."""
    bench = Bench(data, checkpoints)
    for name in networks.split(","):
        once(f"dense {name}", lambda name=name: {"accuracy": bench.accuracy(bench.dense(name))})  # type: ignore[misc]
    for name, ratio in chosen(networks, ratios):
        made = candidates(bench, name, ratio)
        for kind in kinds.split(","):

            def measure(make: Callable[[], nn.Module] = made[kind], name: str = name) -> dict[str, Any]:
                model = make()
                share = macs_of(model) / macs_of(bench.dense(name))
                return {"accuracy": bench.accuracy(model), "macs": round(share, 4)}

            try:
                once(f"free {name} {ratio:g} {kind}", measure)
            except Unreachable as reason:
                print(f"free {name} {ratio:g} {kind}: {reason}", flush=True)
    show()


@app.command()
def distill(
    data: Data = "npz:cifar10",
    checkpoints: Checkpoints = Path("../shared/data"),
    networks: Networks = "resnet20,resnet56",
    ratios: Ratios = None,
    epochs: Annotated[int, typer.Option(help="Epochs of distillation, at most 10.")] = 10,
    kinds: Annotated[str, typer.Option(help="Methods, separated by commas.")] = "ours,torch-pruning",
    schedule: Annotated[str, typer.Option(help=f"One of {', '.join(SCHEDULES)}.")] = "mixtures",
    helper: Annotated[
        str | None, typer.Option(help="A larger network, such as resnet56; the teacher averages both logits.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder for checkpoints, from which a killed run resumes.")] = Path(
        "runs/bench"
    ),
) -> None:
    """Measure accuracies after distillation, with the same schedule for each network."""
    bench, settings = Bench(data, checkpoints), SCHEDULES[schedule]
    helped = "" if helper is None else f", with {helper}"
    for name, ratio in chosen(networks, ratios):
        made = candidates(bench, name, ratio)
        for kind in kinds.split(","):

            def measure(
                make: Callable[[], nn.Module] = made[kind], name: str = name, ratio: float = ratio, kind: str = kind
            ) -> dict[str, Any]:
                folder = runs / f"{name}-{ratio:g}-{kind}-{schedule}-{epochs}{'' if helper is None else f'-{helper}'}"
                start, dense = time.monotonic(), bench.dense(name)
                teacher = dense if helper is None else AveragedTeacher(dense, bench.dense(helper))
                # Ours are compared where layers were converted; pruned ones at the layers that keep their channels.
                features = [n for n, _ in dense.named_modules() if n.endswith("conv2")] if kind != "ours" else None
                student = make()
                converted = bench.accuracy(student)
                model = ts.distill(
                    student, teacher, bench.train, epochs=epochs, output_dir=folder, features=features, **settings
                )
                minutes = (time.monotonic() - start) / 60
                accuracies = {"converted": converted, "accuracy": bench.accuracy(model)}
                return {**accuracies, "epochs": epochs, "minutes": round(minutes, 1)}

            once(f"distilled {name} {ratio:g} {kind}, {schedule}{helped}", measure)
    show()


@app.command()
def ablation(
    data: Data = "npz:cifar10", checkpoints: Checkpoints = Path("../shared/data"), networks: Networks = "resnet20"
) -> None:
    """Measure what each part of the method adds at half of the MACs."""
    bench = Bench(data, checkpoints)
    for name in networks.split(","):
        dense = bench.dense(name)
        statistics = ts.calibrate(dense, bench.images)
        budget = Budget(macs=0.5)
        rank = uniform_rank(dense, statistics, budget)
        svd = ts.plan(dense, statistics, rank=rank, order="depthwise_first", method="svd")
        uniform = ts.plan(dense, statistics, rank=rank, order="depthwise_first")

        def converted(plan: ts.Plan, dense: nn.Module = dense, statistics: Any = statistics, **options: bool) -> Any:
            return ts.apply(dense, plan, statistics, **options)

        def planned(dense: nn.Module = dense, statistics: Any = statistics, **options: Any) -> ts.Plan:
            return ts.plan(dense, statistics, budget=Budget(macs=0.5), **options)

        steps: dict[str, Callable[[], nn.Module]] = {
            f"1 SVD of the weights, depthwise first, rank {rank}": lambda svd=svd: converted(svd),
            "2 + batch norm re-estimated": lambda svd=svd: with_batch_norm(converted(svd), bench.images),
            "3 least squares on the outputs": lambda uniform=uniform: converted(
                uniform, sequential=False, rectifier=False, residual=False
            ),
            "4 + sequential": lambda uniform=uniform: converted(uniform, rectifier=False, residual=False),
            "5 + residual branches": lambda uniform=uniform: converted(uniform, rectifier=False),
            "6 + rectifier": lambda uniform=uniform: converted(uniform),
            "7 + budgeted ranks": lambda: converted(planned(order="depthwise_first")),
            "8 + both orders": lambda: converted(planned()),
            "9 + batch norm re-estimated": lambda: with_batch_norm(converted(planned()), bench.images),
        }
        for step, make in steps.items():

            def measure(make: Callable[[], nn.Module] = make, dense: nn.Module = dense) -> dict[str, Any]:
                model = make()
                return {"accuracy": bench.accuracy(model), "macs": round(macs_of(model) / macs_of(dense), 4)}

            once(f"ablation {name} {step}", measure)
    show()


def uniform_rank(dense: nn.Module, statistics: ts.Statistics, budget: Budget) -> int:
    """Return the largest uniform rank within the budget."""
    ranks = range(1, 9)
    shares = {}
    for rank in ranks:
        plan = ts.plan(dense, statistics, rank=rank, order="depthwise_first", method="svd")
        shares[rank] = 1 / plan.macs.ratio
    assert budget.macs is not None
    return max(rank for rank in ranks if shares[rank] <= budget.macs)


@app.command()
def speed(data: Data = "npz:cifar10", checkpoints: Checkpoints = Path("../shared/data")) -> None:
    """Measure the time and memory of converting ResNet-20, and a network of the size of ResNet-50."""

    def timed(model: nn.Module, images: Tensor, share: float) -> dict[str, Any]:
        start = time.monotonic()
        conversion = ts.convert(model, images, budget=Budget(macs=share))
        return {
            "seconds": round(time.monotonic() - start, 1),
            "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            "images": len(images),
            "parameters": conversion.report.parameters.dense,
            "agreement": round(conversion.report.agreement, 4),
        }

    def large() -> dict[str, Any]:
        torch.manual_seed(0)
        # The weights are random: time and memory are what is measured. Batch norms get statistics that fit them.
        images = torch.randn(256, 3, 224, 224)
        model = with_batch_norm(ts.models.resnet50(), images[:64])
        # Most of its arithmetic is 1x1 already: 0.573 is the least that can be reached.
        return timed(model, images, 0.75)

    bench = Bench(data, checkpoints)
    # The smaller first: memory is that of the process at its most.
    once("speed resnet20", lambda: timed(bench.dense("resnet20"), bench.images[:512], 0.5))
    once("speed resnet50-sized 224", large)
    show()


@app.command()
def latency(
    data: Data = "npz:cifar10",
    checkpoints: Checkpoints = Path("../shared/data"),
    threads: Annotated[int, typer.Option(help="Threads of PyTorch and of the compiled networks.")] = 1,
) -> None:
    """Measure latency budgets: the budget, the plan's prediction and the compiled network's time."""
    bench, threads_before = Bench(data, checkpoints), torch.get_num_threads()
    torch.set_num_threads(threads)
    dense = bench.dense("resnet20")
    statistics, image = ts.calibrate(dense, bench.images), bench.images[:1]
    compiled = ts.compile(dense, image)
    whole = interleaved({"dense": lambda: compiled(image)}, rounds=100)["dense"]
    for share in (0.8, 0.6, 0.5, 0.4):

        def measure(share: float = share) -> dict[str, Any]:
            chosen = ts.plan(dense, statistics, budget=Budget(latency_ms=share * whole))
            model = ts.apply(dense, chosen, statistics)
            separable = ts.compile(model, image)
            times = interleaved({"dense": lambda: compiled(image), "separable": lambda: separable(image)}, rounds=200)
            assert chosen.latency is not None
            return {
                "asked": round(share * whole, 4),
                "planned": round(chosen.latency.milliseconds.converted, 4),
                "measured": round(times["separable"], 4),
                "dense": round(times["dense"], 4),
                "macs": round(1 / chosen.macs.ratio, 4),
                "accuracy": bench.accuracy(model),
            }

        once(f"latency resnet20 {share:g}, {threads} threads, {chosen_set().name}", measure)
    torch.set_num_threads(threads_before)
    show()


@app.command()
def training(data: Data = "npz:cifar10", checkpoints: Checkpoints = Path("../shared/data")) -> None:
    """Time a training step of ResNet-20 at half of its MACs, rank by rank and with the modules as they are."""
    bench = Bench(data, checkpoints)
    student = ts.convert(bench.dense("resnet20"), bench.images[:256], budget=Budget(macs=0.5)).model
    student = student.train().to(memory_format=torch.channels_last)
    images = bench.images[:128].contiguous(memory_format=torch.channels_last)

    def step() -> None:
        student.zero_grad(set_to_none=True)
        student(images).logsumexp(1).sum().backward()

    def by_rank() -> None:
        with rank_by_rank(student):
            step()

    def measure() -> dict[str, Any]:
        times = interleaved({"as they stand": step, "rank by rank": by_rank}, rounds=15)
        return {name: round(milliseconds) for name, milliseconds in times.items()}

    once("training resnet20 2", measure)
    show()


@app.command()
def show() -> None:
    """Print the results."""
    results = read_json(RESULTS, "results") if RESULTS.exists() else {}
    console = Console()

    def accuracy(key: str) -> str:
        return f"{results[key]['accuracy']:.2f}" if key in results else "–"

    free = Table("network", "MACs ÷", *KINDS, title="Training-free, no labels: accuracy, %", title_justify="left")
    distilled = [f"{kind}, {schedule}" for kind in ("ours", "torch-pruning") for schedule in SCHEDULES]
    later = Table(
        "network", "MACs ÷", *distilled,
        title="After distillation: accuracy, % (epochs)", title_justify="left",
    )  # fmt: skip
    for name, ratio in ((name, ratio) for name, ratios in RATIOS.items() for ratio in ratios):
        dense = accuracy(f"dense {name}")
        head = [f"{name} ({dense})", f"{ratio:g}"]
        free.add_row(*head, *(accuracy(f"free {name} {ratio:g} {kind}") for kind in KINDS))
        keys = [f"distilled {name} {ratio:g} {column}" for column in distilled]
        epochs = [f" ({results[key]['epochs']})" if key in results else "" for key in keys]
        later.add_row(*head, *(accuracy(key) + n for key, n in zip(keys, epochs, strict=True)))
    console.print(free, later)
    for kind, heads in {
        "ablation": ("accuracy", "macs"),
        "speed": ("seconds", "peak_gb", "images", "parameters"),
        "training": ("as they stand", "rank by rank"),  # milliseconds of a step
        "latency": ("asked", "planned", "measured", "dense", "macs", "accuracy"),  # milliseconds of an image
    }.items():
        rows = Table(kind, *heads)
        for key, entry in results.items():
            if key.startswith(kind):
                rows.add_row(key.removeprefix(kind).strip(), *(str(entry[head]) for head in heads))
        console.print(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    app(args=None if arguments is None else list(arguments))


if __name__ == "__main__":
    main()
