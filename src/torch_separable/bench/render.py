"""Tables of a benchmark for the terminal and for notebooks."""

from __future__ import annotations

import io
import shutil
from html import escape
from typing import get_args

from rich import box
from rich.console import Console
from rich.table import Table

from torch_separable._console import notebook
from torch_separable._system.text import printable
from torch_separable.bench.engines import Precision
from torch_separable.bench.harness import Benchmark, Case

_WIDTH = 80
_DROPPED = (
    "error",
    "GFLOP/s",
    "quartiles",
    "of peak",
    "÷ ours",
)  # in this order, on terminals that are too narrow for all columns
_HEADS = ("engine", "ms", "quartiles", "÷ ours", "GFLOP/s", "of peak", "error")


def benchmark_table(done: Benchmark) -> str:
    """Return one table per case, with the fastest engine first, followed by its ratios in sentences."""
    out = io.StringIO()
    width = min(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH)
    console = Console(file=out, width=width, color_system=None, markup=False, emoji=False, highlight=False)
    console.print(_title(done))
    for case in done.cases:
        console.print(_case_table(case, width))
        for sentence in _sentences(done, case):
            console.print(f" {sentence}")
    for problem in done.problems:
        console.print(f" {problem}")
    text = "\n".join(line.rstrip() for line in out.getvalue().splitlines()).rstrip()
    return text if done.dense is None else f"{text}\n\n{benchmark_table(done.dense)}"


def benchmark_html(done: Benchmark) -> str:
    """Return the same tables and sentences as HTML, with escaped names."""
    parts = [f"<p>{escape(_title(done))}</p>"]
    for case in done.cases:
        parts.append(f"<p>{_case_title(case)}</p>")
        parts.append(notebook.table(_HEADS, _rows(case), right=[False, *[True] * (len(_HEADS) - 1)]))
        parts += [f"<p>{escape(sentence)}</p>" for sentence in _sentences(done, case)]
    parts += [f"<p>{escape(problem)}</p>" for problem in done.problems]
    return "".join(parts) + ("" if done.dense is None else benchmark_html(done.dense))


def _title(done: Benchmark) -> str:
    shape = "x".join(map(str, done.input_shape))
    return f"{printable(done.network)}, {shape}, {done.macs:,} MACs; medians of {done.rounds} alternating rounds"


def _case_title(case: Case) -> str:
    return f"{case.threads} thread{'' if case.threads == 1 else 's'}, batch {case.batch}"


def _case_table(case: Case, width: int) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, title=f"\n{_case_title(case)}", title_justify="left", pad_edge=False, collapse_padding=True
    )
    rows = _rows(case)
    shown = list(range(len(_HEADS)))
    for name in _DROPPED:
        if sum(max(len(row[i]) for row in [_HEADS, *rows]) + 3 for i in shown) <= width:
            break
        shown.remove(_HEADS.index(name))
    for i in shown:
        table.add_column(_HEADS[i], justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[i] for i in shown))
    return table


def _rows(case: Case) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for timing in sorted(case.timings, key=lambda t: t.milliseconds):
        ours = case.ours(timing.precision)
        gflops = case.gflops(timing)
        share = case.share_of_peak(timing)
        low, high = timing.quartiles
        rows.append(
            (
                timing.title,
                f"{timing.milliseconds:.3g}",
                f"{low:.3g}–{high:.3g}",
                "" if ours is None or timing.is_ours else f"{timing.milliseconds / ours.milliseconds:.2f}x",
                f"{gflops:.0f}" if gflops >= 10 else f"{gflops:.2g}",
                "" if share is None else f"{100 * share:.0f} %",
                f"{timing.error:.0e}",
            )
        )
    return rows


def _sentences(done: Benchmark, case: Case) -> list[str]:
    sentences = []
    for precision in get_args(Precision):
        ratio, peer = case.ratio(precision), case.fastest_peer(precision)
        if ratio is not None and peer is not None:
            sentences.append(f"{precision}: {ratio:.2f}x the speed of the fastest peer, {peer.title}.")
    if (faster := case.int8_speedup) is not None:
        slower = f"slower than float32 on this machine: it takes {1 / faster:.2f}x as long"
        sentences.append(f"int8 is {f'{faster:.2f}x as fast as float32' if faster >= 1 else slower}.")
    realized = done.realized_speedup(case)
    if realized is not None:
        sentences.append(f"The measured speedup is {100 * realized:.0f} % of the MAC reduction.")
    if case.peak is not None and case.exceeds_peak:
        sentences.append(
            f"The peak measurement gave {case.peak.gflops:.0f} GFLOP/s, less than an engine reached: shares of the "
            "peak are not shown."
        )
    elif case.peak is not None:
        sentences.append(f"Measured peak: {case.peak.gflops:.0f} GFLOP/s ({case.peak.instruction_set}).")
    return [*sentences, *case.noise]
