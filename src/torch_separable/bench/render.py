"""A benchmark as a table for the terminal."""

from __future__ import annotations

import io
from typing import get_args

from rich import box
from rich.console import Console
from rich.table import Table

from torch_separable.bench.benchmark import Benchmark, Case
from torch_separable.bench.engines import Precision

_WIDTH = 80


def benchmark_table(done: Benchmark) -> str:
    """Return every case as a table of its engines, the fastest first, and what it amounts to in a sentence."""
    out = io.StringIO()
    console = Console(file=out, width=_WIDTH, color_system=None, markup=False, emoji=False, highlight=False)
    shape = "x".join(map(str, done.input_shape))
    console.print(f"{done.network}, {shape}, {done.macs:,} MACs; medians of {done.rounds} rounds in turn")
    for case in done.cases:
        console.print(_case_table(case))
        for sentence in _sentences(done, case):
            console.print(f" {sentence}")
    for problem in done.problems:
        console.print(f" {problem}")
    text = "\n".join(line.rstrip() for line in out.getvalue().splitlines()).rstrip()
    return text if done.dense is None else f"{text}\n\n{benchmark_table(done.dense)}"


def _case_table(case: Case) -> Table:
    many = "" if case.threads == 1 else "s"
    table = Table(
        box=box.SIMPLE_HEAD, title=f"\n{case.threads} thread{many}, batch {case.batch}", title_justify="left",
        pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    table.add_column("engine", no_wrap=True)
    for head in ("ms", "middle half", "we are", "GFLOP/s", "of peak", "error"):
        table.add_column(head, justify="right", no_wrap=True)
    for timing in sorted(case.timings, key=lambda t: t.milliseconds):
        ours = case.ours(timing.precision)
        gflops = case.gflops(timing)
        share = "" if case.peak is None or timing.precision != "float32" else f"{100 * gflops / case.peak.gflops:.0f} %"
        low, high = timing.quartiles
        table.add_row(
            timing.title,
            f"{timing.milliseconds:.3g}",
            f"{low:.3g}–{high:.3g}",
            "" if ours is None or timing.is_ours else f"{timing.milliseconds / ours.milliseconds:.2f}x",
            f"{gflops:.0f}" if gflops >= 10 else f"{gflops:.2g}",
            share,
            f"{timing.error:.0e}",
        )
    return table


def _sentences(done: Benchmark, case: Case) -> list[str]:
    said = []
    for precision in get_args(Precision):
        ratio, peer = case.ratio(precision), case.fastest_peer(precision)
        if ratio is not None and peer is not None:
            said.append(f"{precision}: {ratio:.2f}x the speed of the fastest peer, {peer.title}.")
    kept = done.promise_kept(case)
    if kept is not None:
        said.append(f"{100 * kept:.0f} % of the promise of fewer MACs is kept.")
    if case.peak is not None:
        said.append(f"Peak measured here: {case.peak.gflops:.0f} GFLOP/s ({case.peak.instruction_set}).")
    return said
