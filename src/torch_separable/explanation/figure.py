"""The figure of an explanation: channels as sheets, filters as blocks, groups as colours.

The same drawing is written as SVG, PNG and PDF, in an oblique projection from above. A sheet is one channel; a filter
has one slab for each channel that it reads, in that channel's colour.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch_separable._system.files import replacing
from torch_separable.errors import MissingExtraError, SeparableValueError
from torch_separable.explanation.arithmetic import count, share, times
from torch_separable.explanation.layout import Fan, arrange, slabs
from torch_separable.explanation.stages import Stage

if TYPE_CHECKING:
    from torch_separable.explanation.explanation import Explanation

# Okabe and Ito's colours, distinct for every common colour blindness; in greyscale the labels tell groups apart.
_PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
_NEUTRAL = "#8A8F98"
_INK = "#20242B"

# The oblique projection: one unit of depth moves a point right and up by so much.
_RIGHT, _UP = 0.5, 0.4
_INCHES = 0.56
_FONT, _TITLE = 9.0, 11.0
_LETTER, _LINE = 0.145, 0.4  # mean letter width and line height at _FONT, in units of the drawing
_SLAB = 0.16
_MOST_CELLS = 8
_METADATA: dict[str, dict[str, str | None]] = {
    "svg": {"Date": None, "Creator": "torch-separable"},
    "png": {"Software": "torch-separable"},
    "pdf": {"CreationDate": None, "Creator": "torch-separable", "Producer": None},
}


def save(explanation: Explanation, path: Path) -> None:
    """Write the figure to ``path`` in the format of its suffix, atomically."""
    form = path.suffix.lower().removeprefix(".")
    if form not in _METADATA:
        raise SeparableValueError(f"cannot save a figure as {path.name!r}: the suffix must be one of .svg, .png, .pdf")
    content = render(explanation, form)
    with replacing(path) as aside:
        aside.write_bytes(content)


def render(explanation: Explanation, form: str) -> bytes:
    """Return the content of the figure's file; equal explanations give equal bytes.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("the figure needs matplotlib: pip install 'torch-separable[figures]'") from error
    settings: dict[Any, Any] = {
        "svg.hashsalt": "torch-separable",
        "svg.fonttype": "none",
        "pdf.fonttype": 42,
        "font.family": ["sans-serif"],
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": _FONT,
    }
    with matplotlib.rc_context(settings):
        metadata = _METADATA[form] | ({"Title": explanation.title} if form != "pdf" else {})
        content = io.BytesIO()
        _Drawing(explanation).figure.savefig(content, format=form, dpi=200, metadata=metadata)
        return content.getvalue()


class _Drawing:
    """A figure while it is drawn, in units of about half an inch; heights are those of `layout`."""

    def __init__(self, explanation: Explanation) -> None:
        self._drawn = 0
        self.stages = explanation.stages
        self.sizes = [self.stages[0].input_size, *(stage.output_size for stage in self.stages)]
        self.sheets = [_extent(_cells(size), 0.36, 1.25) for size in self.sizes]
        self.blocks = [_extent(_cells(stage.spec.kernel_size), 0.26, 0.9) for stage in self.stages]
        heights = [
            depth * _UP + _SLAB * len(slabs(stage.spec.in_channels // stage.spec.groups))
            for (depth, _), stage in zip(self.blocks, self.stages, strict=True)
        ]
        sheet_pitch = max(depth for depth, _ in self.sheets) * _UP + 0.3
        self.layout = arrange(self.stages, sheet_pitch, [height + 0.3 for height in heights])
        self.top = self.layout.top + max(heights) / 2
        self.bottom = self.layout.bottom - max(heights) / 2
        self.headings = _headings(self.stages)
        self.captions = [_caption(stage) for stage in self.stages]
        self.centres = self._column_centres()
        self.title, self.totals = explanation.title, _totals(explanation)
        self._open()
        for stage in range(len(self.stages)):
            self._channel_column(stage)
            self._filter_column(stage)
        self._channel_column(len(self.stages))
        self._group_labels()
        self._words()

    def _column_centres(self) -> list[float]:
        """Return the columns' centres, with space for the arrows between them and for headings and captions."""
        extents = [self.sheets[0]]
        for block, sheet in zip(self.blocks, self.sheets[1:], strict=True):
            extents += [block, sheet]
        centres = [0.0]
        for column in range(1, len(extents)):
            arrows = 1.6 if column % 2 else 0.8
            drawn = (_width(extents[column - 1]) + _width(extents[column])) / 2 + arrows
            words = (_longest(self.headings[column - 1]) + _longest(self.headings[column])) / 2 + 0.3
            centres.append(centres[-1] + max(drawn, words))
        if len(self.stages) > 1:
            short = sum(map(_longest, self.captions)) / 2 + 0.3 - (centres[3] - centres[1])
            centres[3:] = [centre + max(0.0, short) for centre in centres[3:]]
        return centres

    def _sheet_x(self, column: int) -> tuple[float, float]:
        """Return the left and right end of a column of channels."""
        half = _width(self.sheets[column]) / 2
        return self.centres[2 * column] - half, self.centres[2 * column] + half

    def _block_x(self, stage: int) -> tuple[float, float]:
        """Return the left and right end of a column of filters."""
        half = _width(self.blocks[stage]) / 2
        return self.centres[2 * stage + 1] - half, self.centres[2 * stage + 1] + half

    def _numbers_width(self, column: int) -> float:
        """Return the width of the channel numbers beside a column."""
        return 0.2 + max(
            _words_width(str(item.index)) for item in self.layout.channels[column] if item.index is not None
        )

    def _open(self) -> None:
        """Create the axes, as large as their content."""
        from matplotlib.figure import Figure

        self.left = self._sheet_x(0)[0] - self._numbers_width(0)
        self.right = self._sheet_x(len(self.stages))[1] + self._numbers_width(-1)
        for stage, fans in zip(self.stages, self.layout.fans, strict=True):
            if stage.spec.groups > 1:
                label = 0.2 + max(_words_width(f"group {fan.group}") for fan in fans)
                if stage is self.stages[0]:
                    self.left -= label
                else:
                    self.right += label
        worded = [*zip(self.centres, self.headings, strict=True), *zip(self.centres[1::2], self.captions, strict=True)]
        worded.append(((self.left + self.right) / 2, self.totals))
        left = min(self.left, *(centre - _longest(words) / 2 for centre, words in worded)) - 0.2
        right = max(self.right, *(centre + _longest(words) / 2 for centre, words in worded)) + 0.2
        self.middle = (left + right) / 2
        letters = int((right - left) / (_LETTER * _TITLE / _FONT))
        whole_parts = self.title.replace(" ", "\N{NO-BREAK SPACE}").replace(",\N{NO-BREAK SPACE}", ", ")
        lines = textwrap.wrap(whole_parts, letters, break_on_hyphens=False)
        self.title_lines = [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]
        low = self.bottom - 0.5 - _LINE * (2 + len(self.totals) + bool(self.totals) * 0.5)
        high = self.top + 0.5 + _LINE * (2.4 + 1.2 * len(self.title_lines))
        self.figure = Figure(figsize=((right - left) * _INCHES, (high - low) * _INCHES))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(left, right), ylim=(low, high))
        self.axes.set_axis_off()

    def _words(self) -> None:
        """Write headings, captions, totals and the title."""
        for centre, words in zip(self.centres, self.headings, strict=True):
            self._lines(centre, self.top + 0.4 + _LINE, words, bold_first=True)
        for centre, words in zip(self.centres[1::2], self.captions, strict=True):
            self._lines(centre, self.bottom - 0.4, words)
        self._lines(self.middle, self.bottom - 0.4 - 2.5 * _LINE, self.totals, weight="bold")
        y = self.top + 0.5 + _LINE * (1.6 + 1.2 * len(self.title_lines))
        for number, line in enumerate(self.title_lines):
            self._text(self.middle, y - 1.2 * _LINE * number, line, size=_TITLE, weight="bold")

    def _lines(self, x: float, y: float, words: Sequence[str], bold_first: bool = False, **style: Any) -> None:
        for number, line in enumerate(words):
            weight = {"weight": "bold"} if bold_first and number == 0 else {}
            self._text(x, y - number * _LINE, line, **(style | weight))

    def _channel_column(self, column: int) -> None:
        """Draw the sheets of one column of channels, each with its number."""
        depth, width = self.sheets[column]
        left, right = self._sheet_x(column)
        for item in self.layout.channels[column]:
            if item.index is None:
                self._dots(self.centres[2 * column], item.y)
                continue
            self._box((left, item.y - depth * _UP / 2), (depth, width), 0.05, _cells(self.sizes[column]), item.colour)
            if column == 0:
                self._text(left - 0.12, item.y, str(item.index), ha="right")
            else:
                self._text(right + 0.1, item.y, str(item.index), ha="left")

    def _filter_column(self, stage: int) -> None:
        """Draw the blocks of one stage, the brackets around their input channels, and the arrows in and out."""
        spec = self.stages[stage].spec
        depth, width = self.blocks[stage]
        left, right = self._block_x(stage)
        shown = slabs(spec.in_channels // spec.groups)
        channel_colours = {item.index: item.colour for item in self.layout.channels[stage]}
        for fan in self.layout.fans[stage]:
            self._fan(stage, fan)
        for item in self.layout.filters[stage]:
            if item.index is None:
                self._dots(self.centres[2 * stage + 1], item.y)
                continue
            y = item.y - (len(shown) * _SLAB + depth * _UP) / 2
            for slab in reversed(shown):
                if slab is None:
                    self._box((left, y), (depth, width), _SLAB, None, None, gap=True)
                    self._text(left + width / 2, y + _SLAB / 2, "· · ·" if width > 0.5 else "··", weight="bold", size=7)
                else:
                    # a filter within one group has its colour; a filter over all groups has a slab in each colour
                    mixes = item.colour is None or spec.groups == 1
                    colour = channel_colours.get(slab) if mixes else item.colour
                    self._box((left, y), (depth, width), _SLAB, _cells(spec.kernel_size), colour, top=slab == 0)
                y += _SLAB
            self._arrow((right + 0.08, item.y), (self._sheet_x(stage + 1)[0] - 0.08, item.y), item.colour)

    def _fan(self, stage: int, fan: Fan) -> None:
        """Draw the arrows from a group's input channels to its filters."""
        depth, _ = self.sheets[stage]
        x = self._sheet_x(stage)[1] + (0.12 if stage == 0 else 0.05 + self._numbers_width(stage))
        high, low = fan.inputs
        if high > low:
            high, low = high + depth * _UP / 2, low - depth * _UP / 2
            self._line([x, x + 0.14, x + 0.14, x], [high, high, low, low], color=_shade(fan.colour), lw=1.1)
            x += 0.14
        for y in fan.filters:
            self._arrow((x, (high + low) / 2), (self._block_x(stage)[0] - 0.08, y), fan.colour)

    def _group_labels(self) -> None:
        """Label the groups: left of the input if the first stage is grouped, else right of the output."""
        for stage, fans in enumerate(self.layout.fans):
            if self.stages[stage].spec.groups == 1:
                continue
            for fan in fans:
                if stage == 0:
                    self._text(self.left, sum(fan.inputs) / 2, f"group {fan.group}", ha="left")
                else:
                    self._text(self.right, sum(fan.filters) / len(fan.filters), f"group {fan.group}", ha="right")

    def _box(
        self,
        corner: tuple[float, float],
        extent: tuple[float, float],
        height: float,
        cells: tuple[int, int] | None,
        colour: int | None,
        *,
        top: bool = True,
        gap: bool = False,
    ) -> None:
        """Draw a cuboid from its lower front left ``corner``; a visible ``top`` has a grid of rows and columns.

        A ``gap`` is white and stands for omitted slabs.
        """
        x, y = corner
        depth, width = extent
        right, up = depth * _RIGHT, depth * _UP
        z = y + height
        faces = (
            ([(x, y), (x + width, y), (x + width, z), (x, z)], 0.25),
            ([(x + width, y), (x + width + right, y + up), (x + width + right, z + up), (x + width, z)], 0.05),
            ([(x, z), (x + width, z), (x + width + right, z + up), (x + right, z + up)], 0.55),
        )
        for corners, white in faces:
            face = (1.0, 1.0, 1.0) if gap else _tint(_shade(colour), white)
            self._polygon(corners, facecolor=face, edgecolor=_INK, linewidth=0.5, joinstyle="round")
        if not top or cells is None or max(cells) > _MOST_CELLS:
            return
        rows, columns = cells
        for row in range(1, rows):
            start = x + row / rows * right
            self._line([start, start + width], [z + row / rows * up] * 2, color=_INK, lw=0.35)
        for column in range(1, columns):
            start = x + width * column / columns
            self._line([start, start + right], [z, z + up], color=_INK, lw=0.35)

    def _polygon(self, corners: Sequence[tuple[float, float]], **style: Any) -> None:
        from matplotlib.patches import Polygon

        self.axes.add_patch(Polygon(corners, closed=True, zorder=self._next(), **style))

    def _line(self, x: Sequence[float], y: Sequence[float], **style: Any) -> None:
        self.axes.plot(x, y, zorder=self._next(), **style)

    def _arrow(self, start: tuple[float, float], end: tuple[float, float], colour: int | None) -> None:
        style = {"arrowstyle": "-|>,head_width=0.14,head_length=0.28", "shrinkA": 0, "shrinkB": 0}
        self.axes.annotate("", end, start, arrowprops=style | {"color": _shade(colour), "lw": 0.8})

    def _dots(self, x: float, y: float) -> None:
        self._text(x, y, "⋮", weight="bold")

    def _text(self, x: float, y: float, text: str, ha: str = "center", **style: Any) -> None:
        self.axes.text(x, y, text, ha=ha, va="center", color=_INK, zorder=self._next(), **style)

    def _next(self) -> int:
        """Return the next z-order: later shapes cover earlier ones, where matplotlib would sort them by class."""
        self._drawn += 1
        return self._drawn


def _headings(stages: Sequence[Stage]) -> list[list[str]]:
    """Return each column's heading: its name and shape."""
    first = stages[0]
    headings = [["input", times((first.spec.in_channels, *first.input_size))]]
    for number, stage in enumerate(stages):
        shape = times((*stage.spec.kernel_size, stage.spec.in_channels // stage.spec.groups))
        headings.append(["filters" if len(stages) == 1 else stage.name, f"{stage.spec.out_channels} of {shape}"])
        name = "output" if number == len(stages) - 1 else "intermediate"
        headings.append([name, times((stage.spec.out_channels, *stage.output_size))])
    return headings


def _caption(stage: Stage) -> list[str]:
    """Return the caption of a column of filters: its cost."""
    factors = stage.spec.formula().split(" = ")[0]
    return [f"{factors} = {count(stage.spec.weights)} weights", f"{count(stage.macs)} MACs"]


def _totals(explanation: Explanation) -> list[str]:
    """Return the totals at the bottom: the sum of both stages, and its share of the dense layer."""
    stages = explanation.stages
    if len(stages) > 1:
        weights = " + ".join(count(stage.spec.weights) for stage in stages)
        macs = " + ".join(count(stage.macs) for stage in stages)
        return [
            f"{weights} = {count(explanation.weights)} weights",
            f"{macs} = {count(explanation.macs)} MACs, {share(explanation.share)} of the dense layer's",
        ]
    groups = stages[0].spec.groups
    return [f"1/{groups} of the dense layer's weights and MACs"] if groups > 1 else []


def _cells(size: Sequence[int]) -> tuple[int, int]:
    """Return the rows and columns of a channel or kernel as drawn: its last two dimensions."""
    return (1, size[0]) if len(size) == 1 else (size[-2], size[-1])


def _extent(cells: tuple[int, int], cell: float, most: float, least: float = 0.22) -> tuple[float, float]:
    """Return depth and width for rows and columns, to scale unless one would become invisible."""
    scale = min(cell, most / max(cells))
    return max(cells[0] * scale, least), max(cells[1] * scale, least)


def _width(extent: tuple[float, float]) -> float:
    """Return the projected width."""
    depth, width = extent
    return width + depth * _RIGHT


def _words_width(words: str) -> float:
    return _LETTER * len(words)


def _longest(lines: Sequence[str]) -> float:
    return max(map(_words_width, lines), default=0.0)


def _shade(colour: int | None) -> str:
    return _NEUTRAL if colour is None else _PALETTE[colour]


def _tint(colour: str, white: float) -> tuple[float, ...]:
    """Mix ``colour`` with a share of white."""
    return tuple(int(colour[i : i + 2], 16) / 255 * (1 - white) + white for i in (1, 3, 5))
