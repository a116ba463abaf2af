"""The frontier as an SVG picture: quality against milliseconds, a line through the points that nothing dominates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from torch_separable.pareto.points import Frontier, Point

_WIDTH, _HEIGHT = 760, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 20, 88
# Distinguishable for colour-blind readers (Okabe and Ito); every engine also has its own shape.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_TICKS = 5


def draw(frontier: Frontier) -> str:
    """Return a self-contained SVG document; names from networks and engines are escaped."""
    points = frontier.points
    x_of = _scale([point.milliseconds for point in points], _LEFT, _WIDTH - _RIGHT, floor=0.0)
    y_of = _scale([point.quality for point in points], _HEIGHT - _BOTTOM, _TOP)
    engines = list(dict.fromkeys(point.engine for point in points))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'font-family="sans-serif" font-size="12"><title>{escape(_words(frontier))}</title>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        *_axes(frontier, x_of, y_of),
        _line(frontier.best, x_of, y_of),
        *(_mark(frontier, point, engines, x_of, y_of) for point in points),
        *_labels(frontier.best, x_of, y_of),
        *_legend(engines),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


class _scale:  # noqa: N801 - it is called like a function
    """A linear map from values to pixels, with round ticks."""

    def __init__(self, values: Sequence[float], begin: float, end: float, floor: float | None = None) -> None:
        low, high = min(values), max(values)
        low = low if floor is None else floor
        if high <= low:
            low, high = low - 0.5, high + 0.5
        self.step = _round_step((high - low) / _TICKS)
        self.low = math.floor(low / self.step) * self.step
        self.high = math.ceil(high / self.step + 0.05) * self.step
        self.begin, self.end = begin, end

    def __call__(self, value: float) -> float:
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        return [self.low + i * self.step for i in range(round((self.high - self.low) / self.step) + 1)]


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is not below ``least``.

    Example:
        >>> _round_step(0.03), _round_step(0.7), _round_step(1.1)
        (0.05, 1.0, 2.0)
    """
    digit = 10.0 ** math.floor(math.log10(least))
    return next(round(factor * digit, 12) for factor in (1, 2, 5, 10) if factor * digit >= least * (1 - 1e-9))


def _axes(frontier: Frontier, x_of: _scale, y_of: _scale) -> list[str]:
    bottom, share = _HEIGHT - _BOTTOM, frontier.quality != "metric"
    lines = []
    for tick in x_of.ticks():
        x = x_of(tick)
        lines.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#e5e5e5"/>')
        lines.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:.4g}</text>')
    for tick in y_of.ticks():
        y, text = y_of(tick), f"{100 * tick:.4g} %" if share else f"{tick:.4g}"
        lines.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#e5e5e5"/>')
        lines.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    lines.append(f'<text x="{middle:.0f}" y="{bottom + 38}" text-anchor="middle">milliseconds</text>')
    lines.append(
        f'<text x="16" y="{(_TOP + bottom) / 2:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 16 {(_TOP + bottom) / 2:.0f})">{escape(frontier.quality)}</text>'
    )
    return lines


def _line(best: Sequence[Point], x_of: _scale, y_of: _scale) -> str:
    """A staircase: between two points the slower one's quality is not reached yet."""
    path = [f"M{x_of(best[0].milliseconds):.1f} {y_of(best[0].quality):.1f}"]
    for point in best[1:]:
        path.append(f"H{x_of(point.milliseconds):.1f}V{y_of(point.quality):.1f}")
    return f'<path d="{"".join(path)}" fill="none" stroke="#444" stroke-dasharray="4 3"/>'


def _mark(frontier: Frontier, point: Point, engines: Sequence[str], x_of: _scale, y_of: _scale) -> str:
    title = f"{point.title}: {point.milliseconds:.3g} ms, {frontier.value(point)}"
    shape = _shape(engines.index(point.engine), x_of(point.milliseconds), y_of(point.quality), point in frontier.best)
    return f"<g>{shape}<title>{escape(title)}</title></g>"


def _shape(engine: int, x: float, y: float, filled: bool) -> str:
    """A circle, square, triangle or diamond; hollow where another point dominates it."""
    colour = _COLOURS[engine % len(_COLOURS)]
    style = f'fill="{colour if filled else "#fff"}" stroke="{colour}" stroke-width="2"'
    kind = engine % 4
    if kind == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" {style}/>'
    if kind == 1:
        return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" {style}/>'
    corners = [(0, -6), (5.5, 4.5), (-5.5, 4.5)] if kind == 2 else [(0, -6), (6, 0), (0, 6), (-6, 0)]
    return f'<polygon points="{" ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)}" {style}/>'


def _labels(best: Sequence[Point], x_of: _scale, y_of: _scale) -> list[str]:
    """Name the points that nothing dominates; towards the middle, so that no name leaves the picture."""
    labels = []
    for point in best:
        x, y = x_of(point.milliseconds), y_of(point.quality)
        left = x > _WIDTH / 2
        anchor = "end" if left else "start"
        name = escape(f"{point.form} {point.precision}")
        labels.append(f'<text x="{x + (-9 if left else 9):.1f}" y="{y + 14:.1f}" text-anchor="{anchor}">{name}</text>')
    return labels


def _legend(engines: Sequence[str]) -> list[str]:
    parts, x = [], float(_LEFT)
    for i, engine in enumerate(engines):
        parts.append(_shape(i, x + 6, _HEIGHT - 24, True))
        parts.append(f'<text x="{x + 18:.0f}" y="{_HEIGHT - 20}">{escape(engine)}</text>')
        x += 40 + 7 * len(engine)
    return parts


def _words(frontier: Frontier) -> str:
    named = "; ".join(f"{p.title}: {p.milliseconds:.3g} ms, {frontier.value(p)}" for p in frontier.best)
    return f"{frontier.quality} against milliseconds. Undominated: {named}. {frontier.conditions()}."
