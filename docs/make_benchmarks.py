"""Write docs/benchmarks.md from benchmarks/results/*.json: ``python docs/make_benchmarks.py``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results"

# Processors of several generations report the same name, and older entries lack family and model.
PROCESSORS = {
    ("AMD EPYC (family 26, model 2)", "avx512bf16"): "AMD Zen 5",
    ("AMD EPYC (family 26, model 2)", "avx2, limited"): "AMD Zen 5",
    ("AMD EPYC", "avx512bf16"): "AMD Zen 4",
    ("AMD EPYC", "avx2, limited"): "AMD Zen 4",
    ("Intel(R) Xeon(R) Processor", "avx512"): "Intel Emerald Rapids",
    ("Intel(R) Xeon(R) Processor", "avx2"): "Intel Emerald Rapids",
    ("AMD EPYC", "avx2"): "AMD Zen 3",
}
INSTRUCTION_SETS = {
    "avx512bf16": "AVX-512 with BF16",
    "avx512": "AVX-512",
    "avx2": "AVX2",
    "avx2, limited": "every engine limited to AVX2",
}
LIMITED = {("Intel(R) Xeon(R) Processor", "avx2")}  # this processor has AVX-512
NETWORKS = {
    "mobilenet_v1-1.0-224": "MobileNetV1 1.0, 224×224",
    "mobilenet_v1-0.25-128": "MobileNetV1 0.25, 128×128",
    "mobilenet_v2-1.0-224": "MobileNetV2 1.0, 224×224",
    "efficientnet_lite0-224": "EfficientNet-Lite0, 224×224",
    "resnet20-32": "ResNet-20, 32×32",
    "resnet20-32, converted": "ResNet-20 at half of its MACs, 32×32",
}
ENGINES = {
    "separable": "ours",
    "openvino": "OpenVINO",
    "onnxruntime": "ONNX Runtime",
    "channels_last": "PyTorch, channels last",
    "eager": "PyTorch",
    "separable_bf16": "ours, bf16",
    "openvino_bf16": "OpenVINO, bf16",
    "autocast": "PyTorch autocast, bf16",
}
KINDS = {
    "ours": "ours",
    "svd": "SVD",
    "svd + batch norm": "SVD + BN",
    "torch-pruning": "Torch-Pruning",
    "torch-pruning + batch norm": "Torch-Pruning + BN",
}
WIDE_SPREAD = 0.1  # of the median: twice what repeated runs on an idle machine show
INTRODUCTION = """\
# Benchmarks

`make docs` generates this page from `benchmarks/results/*.json`; do not edit it. Commands run from the root of the
repository; FOLDER holds the pretrained CIFAR-10 checkpoints. [Limitations](limitations.md) lists what has not been
measured.

## Speed

Median milliseconds for one batch. Each engine runs in its own process at its fastest settings. The processes take
turns, and their outputs are compared before anything is timed.

- **speedup**: the time of the fastest other engine in the same precision, divided by ours. Below 1 the other engine is
  faster.
- **realized**: the share of the MAC reduction that becomes speedup, (dense time ÷ our time) ÷ (dense MACs ÷ MACs). The
  dense network is Conv MobileNet or the unconverted ResNet-20, timed with its fastest engine.
- † marks a time whose interquartile range is above 10 % of the median: the machine was not quiet.
"""
ACCURACY = """\
## Accuracy

Top-1 accuracy in % on all 10,000 test images of CIFAR-10, for the pretrained ResNet-20 and ResNet-56. MACs are those of
the whole network. Ranks, orders and schedules are chosen on training images. [Conversion](conversion.md) explains the
method.
"""


def read(name: str) -> dict[str, Any]:
    """The results in a file of benchmarks/results."""
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return document


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    Example:
        >>> print(table(["a", "b"], [["1", "2"]]))
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    lines = ["| " + " | ".join(row) + " |" for row in (heads, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])


def milliseconds(value: float) -> str:
    """A time with three significant digits below 100 ms."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def ratio(value: float | None) -> str:
    """A ratio with two decimals, or a dash where nothing was compared."""
    return "–" if value is None else f"{value:.2f}"


def unique(values: Iterable[str]) -> list[str]:
    """The different values, sorted."""
    return sorted(set(values))


def provenance(entries: Sequence[dict[str, Any]]) -> str:
    """Dates, commits and versions of some entries, and the commands that measured them."""
    sources = [entry["provenance"] for entry in entries]
    commits: dict[str, set[str]] = {}
    for source in sources:
        commits.setdefault(source["date"], set()).add(f"`{source['commit']}`")
    dated = [f"{date} ({', '.join(sorted(of))})" for date, of in sorted(commits.items())]
    machines = [entry["machine"] for entry in entries]
    versions = [f"Python {v}" for v in unique(m["python"] for m in machines)]
    versions += [f"PyTorch {v}" for v in unique(m["torch"] for m in machines)]
    for package, title in {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}.items():
        found = unique(s["versions"][package] for s in sources if package in s.get("versions", {}))
        versions += [f"{title} {v}" for v in found]
    commands = "\n".join(f"    {command}" for command in unique(source["command"] for source in sources))
    return f"Measured on {', '.join(dated)} with {', '.join(versions)}.\n\n{commands}"


def machines() -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Entries by processor and instruction set, in the order of `PROCESSORS`; processors not listed there come last."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {key: [] for key in PROCESSORS}
    for name, entry in read("runtime").items():
        place = (entry["machine"]["processor"], name.partition(f"{entry['machine']['processor']}, ")[2])
        found.setdefault(place, []).append(entry)
    return {place: entries for place, entries in found.items() if entries}


def speeds(place: tuple[str, str], entries: list[dict[str, Any]]) -> str:
    """The section of one processor and instruction set."""
    instructions = "avx2, limited" if place in LIMITED else place[1]
    title = f"### {PROCESSORS.get(place, place[0])}, {INSTRUCTION_SETS.get(instructions, instructions)}"
    cases = [case for entry in entries for case in entry["cases"]]
    measured = {timing["engine"] for case in cases for timing in case["timings"]}
    narrow = any(case["ratio"]["bfloat16"] for case in cases)
    columns: list[tuple[str, Any]] = [(ENGINES[e], e) for e in ENGINES if e in measured and "bf16" not in ENGINES[e]]
    columns += [("speedup", lambda case: ratio(case["ratio"]["float32"]))]
    if any(case["realized_speedup"] for case in cases):
        columns += [("realized", lambda case: ratio(case["realized_speedup"]))]
    columns += [(ENGINES[e], e) for e in ENGINES if e in measured and "bf16" in ENGINES[e]]
    if narrow:
        columns += [("speedup, bf16", lambda case: ratio(case["ratio"]["bfloat16"]))]
    rows = []
    for network, name in NETWORKS.items():
        for entry in entries:
            for case in entry["cases"] if entry["network"] == network else ():
                timings = {timing["engine"]: timing for timing in case["timings"]}
                cells = [time(timings.get(c)) if isinstance(c, str) else c(case) for _, c in columns]
                rows.append([name, str(case["batch"]), str(case["threads"]), *cells])
    heads = ["network", "batch", "threads", *(head for head, _ in columns)]
    return "\n\n".join([title, peaks(cases) + provenance(entries), table(heads, rows)])


def time(timing: dict[str, Any] | None) -> str:
    """The cell of one engine: its time, marked where the runs differ widely."""
    if timing is None:
        return "–"
    low, high = timing["quartiles"]
    noisy = high - low > WIDE_SPREAD * timing["milliseconds"]
    return milliseconds(timing["milliseconds"]) + (" †" if noisy else "")


def peaks(cases: list[dict[str, Any]]) -> str:
    """The measured peak of multiply-adds by number of threads: the median over the runs."""
    found: dict[int, list[float]] = {}
    for case in cases:
        if case["peak"]:
            found.setdefault(case["threads"], []).append(case["peak"]["gflops"])
    told = [f"{sorted(p)[len(p) // 2]:.0f} GFLOP/s with {n} thread{'s' * (n > 1)}" for n, p in sorted(found.items())]
    return f"Measured float32 peak: {', '.join(told)}. " if told else ""


def accuracies(results: dict[str, Any]) -> list[str]:
    """Training-free accuracies beside those of the peers."""
    parts = []
    for network, title in (("resnet20", "ResNet-20"), ("resnet56", "ResNet-56")):
        dense = results[f"dense {network}"]
        found = {key.split(" ")[2]: key for key in results if key.startswith(f"free {network} ")}
        keys = {divisor: [f"free {network} {divisor} {kind}" for kind in KINDS] for divisor in found}
        rows = [
            [divisor, *(f"{results[key]['accuracy']:.2f}" if key in results else "–" for key in of)]
            for divisor, of in sorted(keys.items(), key=lambda item: float(item[0]))
        ]
        entries = [dense, *(results[key] for of in keys.values() for key in of if key in results)]
        parts += [f"### {title} converted without training (dense: {dense['accuracy']:.2f} %)", provenance(entries)]
        parts.append(table(["MACs ÷", *KINDS.values()], rows))
    note = (
        "Converted with 1,024 unlabelled training images. SVD: singular value decomposition of the weights, its ranks "
        "allocated within the budget as ours are. BN: batch norms re-estimated afterwards. Torch-Pruning 1.6: group "
        "magnitude, global, inner channels of each block; – where that reaches no network of this size."
    )
    return [note, *parts]


def ablation(results: dict[str, Any]) -> list[str]:
    """What each part of the method adds."""
    found = {key: entry for key, entry in results.items() if key.startswith("ablation resnet20 ")}
    rows = [[key.split(" ", 3)[3], f"{100 * e['macs']:.1f} %", f"{e['accuracy']:.2f}"] for key, e in found.items()]
    return [
        "### Ablation: ResNet-20 at half of its MACs",
        "A uniform rank cannot use the budget exactly: rank 3, at 44.6 % of the MACs, is the largest within it.",
        provenance(list(found.values())),
        table(["method", "MACs", "accuracy"], rows),
    ]


def latencies(results: dict[str, Any]) -> list[str]:
    """Milliseconds asked for, planned and measured."""
    found = [entry for key, entry in sorted(results.items(), reverse=True) if key.startswith("latency resnet20 ")]
    rows = [
        [*(f"{e[name]:.3f}" for name in ("asked", "planned", "measured", "dense")), f"{100 * e['macs']:.1f} %"]
        + [f"{e['accuracy']:.2f}"]
        for e in found
    ]
    return [
        "### Budgets in milliseconds: ResNet-20, one image, one thread, AMD Zen 4",
        provenance(found),
        table(["budget, ms", "planned", "measured", "dense", "MACs", "accuracy"], rows),
    ]


def distilled(results: dict[str, Any]) -> list[str]:
    """Accuracies after distillation, of ours and of Torch-Pruning's networks with the same schedule."""
    rows, entries = [], []
    for network, title in (("resnet20", "ResNet-20"), ("resnet56", "ResNet-56")):
        divisors = {key.split(" ")[2] for key in results if key.startswith(f"distilled {network} ")}
        for divisor in sorted(divisors, key=float):
            row = [title, divisor]
            for kind in ("ours", "torch-pruning"):
                entry = results.get(f"distilled {network} {divisor} {kind}, adapting")
                if entry is None:
                    row += ["–"] * 3
                else:
                    entries.append(entry)
                    row += [f"{entry['converted']:.2f}", f"{entry['accuracy']:.2f}", f"{entry['epochs']}"]
            rows.append(row)
    heads = ["network", "MACs ÷", "ours: converted", "distilled", "epochs"]
    heads += ["Torch-Pruning: pruned", "distilled", "epochs"]
    return [
        "### After distillation",
        "The dense network is the teacher; the schedule is `adapting` of `benchmarks/conversion.py`.",
        provenance(entries),
        table(heads, rows),
    ]


def costs(results: dict[str, Any]) -> list[str]:
    """Time and memory of a conversion, and of a step of training."""
    found = {key: entry for key, entry in results.items() if key.startswith("speed ")}
    titles = {"speed resnet20": "ResNet-20, 32×32", "speed resnet50-sized 224": "ResNet-50, 224×224, random weights"}
    rows = [
        [titles.get(key, key), f"{e['images']}", str(e["machine"]["threads"]), f"{e['seconds']:.1f} s"]
        + [f"{e['peak_gb']:.1f} GB"]
        for key, e in found.items()
    ]
    training = results["training resnet20 2"]
    return [
        "## Time and memory of a conversion",
        provenance(list(found.values())),
        table(["network", "images", "threads", "time", "peak memory"], rows),
        f"A training step of ResNet-20 at half of its MACs (batch 128, {training['machine']['threads']} threads) takes "
        f"{training['rank by rank']} ms rank by rank, as `distill` computes it, and {training['as they stand']:,} ms "
        "with the modules as they are.",
        provenance([training]),
    ]


def page() -> str:
    """The whole page."""
    results = read("conversion")
    parts = [INTRODUCTION.strip(), *(speeds(place, entries) for place, entries in machines().items())]
    parts += [ACCURACY.strip(), *accuracies(results), *ablation(results), *latencies(results), *distilled(results)]
    return "\n\n".join([*parts, *costs(results)]) + "\n"


def main() -> None:
    """Write it."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.name}: {len(page().splitlines())} lines")


if __name__ == "__main__":
    main()
