"""Render an explanation as text of at most 80 columns, and as HTML for notebooks."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from torch_separable._console.notebook import table
from torch_separable.explanation.arguments import Subject
from torch_separable.explanation.arithmetic import Alternative, count, depth_multiplier, share, times
from torch_separable.explanation.stages import Stage

if TYPE_CHECKING:
    from torch_separable.explanation.explanation import Explanation

WIDTH = 80
_MOST_GROUPS = 6
_MOST_ALTERNATIVES = 12
_HEADER = ("layer", "weights", "parameters", "MACs", "of dense")


def title(subject: Subject) -> str:
    """Describe the layer in one line, such as "Grouped convolution 4 → 8, 3×3, 2 groups".

    Example:
        >>> from torch_separable.cost.formulas import ConvSpec
        >>> from torch_separable.explanation.arguments import read
        >>> title(read(ConvSpec(4, 8, (3, 3), groups=2), (8, 8), {}))
        'Grouped convolution 4 → 8, 3×3, 2 groups'
    """
    first, last = subject.stages[0], subject.stages[-1]
    channels = f"{first.spec.in_channels} → {last.spec.out_channels}"
    if subject.order is None:
        kind = first.name + (" transposed" if first.spec.transposed else "")
        groups = f", {first.spec.groups} groups" if first.spec.groups > 1 else ""
        return f"{kind.capitalize()} convolution {channels}, {_kernel(first)}{groups}"
    spatial = first if subject.order == "depthwise_first" else last
    kind = "Depthwise separable" + (" transposed" if spatial.spec.transposed else "")
    rank = depth_multiplier(subject)
    multiplier = f", depth multiplier {rank}" if rank > 1 else ""
    order = subject.order.replace("_", " ")
    return f"{kind} convolution {channels}, {_kernel(spatial)}, {order}{multiplier}"


def _kernel(stage: Stage) -> str:
    size = times(stage.spec.kernel_size)
    return size if len(stage.spec.kernel_size) > 1 else f"kernel {size}"


def render(explanation: Explanation) -> str:
    """Render the explanation as text of at most 80 columns."""
    shapes = f"input {_shape(explanation.input_shape)}, output {_shape(explanation.output_shape)}"
    lines = [*_wrap(explanation.title), *_wrap(shapes)]
    for number, stage in enumerate(explanation.stages):
        heading = f"{number + 1}. {stage.name}" if len(explanation.stages) > 1 else "Working"
        lines += ["", *_wrap(f"{heading}: {_describe(stage)}")]
        for step in explanation.steps:
            if step.part == stage.name:
                lines += _worked(step.title, step.symbols, step.numbers, step.result_text)
        lines += ["", "  Which filter reads which channels (numbered from 0)", *_links(stage)]
    if len(explanation.stages) > 1:
        lines += ["", "Together"]
        for step in explanation.steps:
            if step.part == "together":
                lines += _worked(step.title, step.symbols, step.numbers, step.result_text)
    lines += ["", "Side by side", *_table(explanation.alternatives)]
    for note in explanation.notes:
        lines += ["", *_wrap(note)]
    return "\n".join(lines)


def _wrap(line: str, indent: int = 0, hanging: int = 0) -> list[str]:
    return textwrap.wrap(
        line,
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + hanging),
        break_on_hyphens=False,
    )


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _describe(stage: Stage) -> str:
    spec = stage.spec
    words = [f"{spec.in_channels} → {spec.out_channels} channels", f"kernel {times(spec.kernel_size)}"]
    for name, usual in (("stride", 1), ("padding", 0), ("dilation", 1), ("output_padding", 0)):
        value = getattr(spec, name)
        if name == "padding" and stage.same_padding:
            words.append("padding same")
        elif set(value) != {usual}:
            words.append(f"{name.replace('_', ' ')} {value[0] if len(set(value)) == 1 else times(value)}")
    words.append(f"groups {spec.groups}")
    return ", ".join(words) + ("" if spec.bias else ", no bias")


def _worked(title: str, symbols: str, numbers: str, result: str) -> list[str]:
    one = f"{symbols} = {numbers} = {result}"
    lines = ["", *_wrap(title, 2)]
    if len(one) + 4 <= WIDTH:
        return [*lines, f"    {one}"]
    return [*lines, *_wrap(symbols, 4, 4), *_wrap(f"= {numbers}", 6, 4), *_wrap(f"= {result}", 6, 4)]


def _links(stage: Stage) -> Iterable[str]:
    rows: list[Sequence[str]] = [("group", "reads input", "filters", "writes output")]
    for group in elide(stage.spec.groups, _MOST_GROUPS):
        if group is None:
            rows.append(("…", "…", "…", "…"))
        else:
            link = stage.links[group]
            rows.append((str(group), _span(link.inputs), _span(link.filters), _span(link.outputs)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["    " + "   ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _span(channels: range) -> str:
    return f"{channels[0]}" if len(channels) == 1 else f"{channels[0]}–{channels[-1]}"


def elide(total: int, most: int, head: int | None = None) -> list[int | None]:
    """Choose which of ``total`` items to show: all up to ``most``, else the first few, ``None`` and the last.

    Example:
        >>> elide(4, 4), elide(32, 4), elide(32, 4, head=1)
        ([0, 1, 2, 3], [0, 1, None, 31], [0, None, 31])
    """
    if total <= most:
        return list(range(total))
    return [*range(most - 2 if head is None else head), None, total - 1]


def _table(alternatives: Sequence[Alternative]) -> Iterable[str]:
    rows = [_HEADER, *(_cells(each) for each in _shown(alternatives))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    for row in rows:
        name, *numbers = row
        yield "  " + "  ".join([name.ljust(widths[0]), *map(str.rjust, numbers, widths[1:])]).rstrip()


def _shown(alternatives: Sequence[Alternative]) -> Iterable[Alternative | None]:
    """Yield the alternatives; of many numbers of groups the first, the last and the chosen one, ``None`` for gaps."""
    single = [each for each in alternatives if len(each.stages) == 1]
    spare = _MOST_ALTERNATIVES // 2
    kept = [each.chosen or i < spare or i >= len(single) - 2 for i, each in enumerate(single)]
    gap = False
    for each, keep in zip(single, kept, strict=True):
        if keep:
            yield each
        elif not gap:
            yield None
        gap = not keep
    yield from (each for each in alternatives if len(each.stages) > 1)


def _cells(alternative: Alternative | None) -> tuple[str, ...]:
    if alternative is None:
        return ("  …", "", "", "", "")
    numbers = (alternative.weights, alternative.parameters, alternative.macs)
    name = ("▸ " if alternative.chosen else "  ") + alternative.name
    return (name, *map(_narrow, numbers), share(alternative.share))


def _narrow(value: int) -> str:
    """Format a count in at most 11 characters, rounded to four significant digits if it is longer."""
    text = count(value)
    return text if len(text) <= 11 else f"{value:.3e}"


def render_html(explanation: Explanation) -> str:
    """Render the explanation as HTML: the figure, the worked arithmetic and the alternatives."""
    parts = [f"<h4>{escape(explanation.title)}</h4>"]
    if importlib.util.find_spec("matplotlib") is None:
        parts.append("<p>The figure needs <code>pip install 'torch-separable[figures]'</code>.</p>")
    else:
        svg = explanation.svg()
        parts.append(svg[svg.index("<svg") :])
    working = [(step.part, step.title, step.symbols, step.numbers, step.result_text) for step in explanation.steps]
    parts.append(table(("part", "what", "formula", "with numbers", "result"), working))
    costs = [
        (each.name, count(each.weights), count(each.parameters), count(each.macs), share(each.share))
        for each in explanation.alternatives
    ]
    right = [False, True, True, True, True]
    parts.append(table(_HEADER, costs, right=right, marked=[each.chosen for each in explanation.alternatives]))
    parts += [f"<p>{escape(note)}</p>" for note in explanation.notes]
    return "\n".join(parts)
