"""The points of a frontier, and which of them nothing dominates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch_separable._console.notebook import table
from torch_separable._system.files import write_json, write_text

Quality = Literal["accuracy", "agreement", "metric"]


@dataclass(frozen=True)
class Point:
    """One network in one engine.

    Attributes:
        form: ``"dense"``, or the budget that it was converted within.
        engine: title of the engine.
        precision: ``"f32"``, ``"bf16"``, ``"int8"``, or ``"auto"`` where layers differ.
        milliseconds: median of all calls.
        quartiles: first and third quartile of the calls.
        quality: higher is better; accuracy and agreement are shares of the images.
        macs: multiply-accumulates for one image.
    """

    form: str
    engine: str
    precision: str
    milliseconds: float
    quartiles: tuple[float, float]
    quality: float
    macs: int

    @property
    def title(self) -> str:
        """Form, engine and precision."""
        return f"{self.form}, {self.engine} {self.precision}"


def undominated(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return the points than which no other is both as fast and as good, and better in one; the fastest first.

    Example:
        >>> make = lambda name, ms, quality: Point(name, "e", "f32", ms, (ms, ms), quality, 1)
        >>> [point.form for point in undominated([make("a", 1, 0.8), make("b", 2, 0.9), make("c", 3, 0.85)])]
        ['a', 'b']
    """
    best: list[Point] = []
    for point in sorted(points, key=lambda each: (each.milliseconds, -each.quality)):
        last = best[-1] if best else None
        same = last is not None and (point.milliseconds, point.quality) == (last.milliseconds, last.quality)
        if last is None or same or point.quality > last.quality:
            best.append(point)
    return tuple(best)


@dataclass(frozen=True)
class Frontier:
    """What a network costs and is worth in every form, precision and engine that was measured.

    Attributes:
        points: in the order of measurement.
        quality: what ``quality`` of the points is: accuracy (of labelled images), agreement (share of the images with
            the same predicted class as the dense network in float32), or the caller's metric.
        images: number of images that it was measured on; nothing was fitted to them.
        input_shape: of one image, (C, H, W).
        batch: images in a timed call.
        threads: number of threads of each engine.
        rounds: number of rounds in which all engines alternated.
        processor: name of the processor.
        noise: sentences on other processes during the measurement; empty on a quiet machine.
        problems: one sentence for each engine or form that was left out.
    """

    points: tuple[Point, ...]
    quality: Quality
    images: int
    input_shape: tuple[int, ...]
    batch: int
    threads: int
    rounds: int
    processor: str
    noise: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def best(self) -> tuple[Point, ...]:
        """The points that nothing dominates, the fastest first."""
        return undominated(self.points)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; each point says whether it is on the frontier."""
        best = self.best
        points = [{**asdict(point), "title": point.title, "undominated": point in best} for point in self.points]
        return {**asdict(self), "points": points}

    def write(self, folder: str | Path) -> tuple[Path, ...]:
        """Write ``frontier.json``, ``frontier.svg`` and ``frontier.html`` into a folder, and return their paths."""
        from torch_separable.pareto.chart import draw
        from torch_separable.pareto.page import html_page

        paths = tuple(Path(folder) / f"frontier.{end}" for end in ("json", "svg", "html"))
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        write_json(paths[0], self.to_dict())
        write_text(paths[1], draw(self))
        write_text(paths[2], html_page(self))
        return paths

    def value(self, point: Point) -> str:
        """Return the quality of a point as text."""
        return f"{point.quality:.4g}" if self.quality == "metric" else f"{100 * point.quality:.2f} %"

    def conditions(self) -> str:
        """Return the conditions of the measurement as one sentence."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        shape = "x".join(map(str, self.input_shape))
        return (
            f"{self.processor}, {threads}, batch {self.batch} of {shape}, medians of {self.rounds} alternating rounds; "
            f"{self.quality} on {self.images:,} images that nothing was fitted to"
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Return the cells of a table, the fastest point first; a star marks those that nothing dominates."""
        best = self.best
        return [
            (
                "*" if point in best else "",
                point.form,
                point.engine,
                point.precision,
                f"{point.macs:,}",
                f"{point.milliseconds:.3g}",
                self.value(point),
            )
            for point in sorted(self.points, key=lambda each: each.milliseconds)
        ]

    def heads(self) -> tuple[str, ...]:
        """Return the headings of `rows`."""
        return ("", "network", "engine", "precision", "MACs", "ms", self.quality)

    def __str__(self) -> str:
        rows = [self.heads(), *self.rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.rjust(wide) if i > 3 else cell.ljust(wide)
                for i, (cell, wide) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        notes = [self.conditions(), "* nothing measured is both as fast and as good", *self.noise, *self.problems]
        return "\n".join([*lines, "", *notes])

    def _repr_html_(self) -> str:
        best = {point.title for point in self.best}
        marked = [point.title in best for point in sorted(self.points, key=lambda each: each.milliseconds)]
        right = [False] * 4 + [True] * 3
        return table(self.heads(), self.rows(), right=right, marked=marked)
