"""The page about conversion: its figures of latency and of distillation are those that were measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "conversion.md").read_text(encoding="utf-8")
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "conversion.json").read_text(encoding="utf-8"))


def test_milliseconds_asked_for_planned_and_taken_are_the_measured_ones() -> None:
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) % \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    measured = [
        (
            f"{e['asked']:.3f}",
            f"{e['planned']:.3f}",
            f"{e['measured']:.3f}",
            f"{100 * e['macs']:.1f}",
            f"{e['accuracy']}",
        )
        for key, e in sorted(RESULTS.items(), reverse=True)
        if key.startswith("latency resnet20") and key.endswith("1 threads, avx512bf16")
    ]
    assert len(rows) == 4
    assert rows == measured


def test_accuracies_after_distillation_are_the_measured_ones() -> None:
    row = re.compile(r"^\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| (\d+), (\w+) \| [\d.]+ \|$", re.MULTILINE)
    for network, count in (("resnet20", 11), ("resnet56", 3)):
        table = PAGE.partition(f"| {network.replace('resnet', 'ResNet-')}, MACs ÷ | converted | distilled |")[2]
        rows = row.findall(table.partition("\n\n")[0])
        assert len(rows) == count
        for divisor, converted, distilled, epochs, schedule in rows:
            entry = RESULTS[f"distilled {network} {divisor} ours, {schedule}"]
            assert (f"{entry['accuracy']:.2f}", str(entry["epochs"])) == (distilled, epochs)
            assert f"{entry['converted']:.2f}" == converted


def test_what_a_larger_teacher_came_to_is_what_was_measured() -> None:
    entry = RESULTS["distilled resnet20 2 ours, adapting, with resnet56"]
    assert entry["epochs"] == 10
    assert f"ten epochs came to {entry['accuracy']:.2f} %" in PAGE


def test_accuracies_beside_torch_pruning_after_distillation_are_the_measured_ones() -> None:
    row = re.compile(r"^\| ([\d.]+) \| ([\d.]+) \((\d+)\) \| ([\d.]+) \((\d+)\) \|$", re.MULTILINE)
    for network, divisors in (("resnet20", ["1.5", "2", "3", "4"]), ("resnet56", ["2", "3", "4"])):
        rows = row.findall(PAGE.partition(f"| {network.replace('resnet', 'ResNet-')}, MACs ÷ | ours (epochs) |")[2])
        assert [row[0] for row in rows[: len(divisors)]] == divisors
        for divisor, *told in rows[: len(divisors)]:
            entries = [RESULTS[f"distilled {network} {divisor} {kind}, adapting"] for kind in ("ours", "torch-pruning")]
            assert told == [text for e in entries for text in (f"{e['accuracy']:.2f}", str(e["epochs"]))]


def test_accuracies_without_training_are_the_measured_ones() -> None:
    kinds = ("ours", "svd", "svd + batch norm", "torch-pruning", "torch-pruning + batch norm")
    for network, goals in (("resnet20", False), ("resnet56", True)):
        table = PAGE.partition(f"| {network.replace('resnet', 'ResNet-')} (dense ")[2].partition("\n\n")[0]
        rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
        assert len(rows) == (3 if goals else 5)
        for divisor, ours, *others in rows:
            told = [ours, *(others[1:] if goals else others)]
            keys = [f"free {network} {divisor} {kind}" for kind in kinds]
            assert told == [f"{RESULTS[key]['accuracy']:.2f}" if key in RESULTS else "–" for key in keys]
