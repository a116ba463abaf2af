"""Explain one convolution: worked steps, alternatives and links, as text, JSON, HTML and a figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from torch_separable.cost.formulas import ConvSpec
from torch_separable.explanation import arithmetic, figure, text
from torch_separable.explanation.arguments import ConvArguments, read
from torch_separable.explanation.arithmetic import Alternative, Step
from torch_separable.explanation.stages import Link, Stage


@dataclass(frozen=True)
class Explanation:
    """The cost of one convolution, with its derivation and its alternatives.

    ``str()`` renders text of at most 80 columns; a notebook shows tables and the figure.

    Attributes:
        title: one line that describes the layer.
        stages: its convolutions in execution order: one, or two for a depthwise separable layer.
        steps: the worked arithmetic, stage by stage.
        alternatives: layers of the same channels with their costs, dense first.
        notes: parts of the layer that are not counted.
    """

    title: str
    stages: tuple[Stage, ...]
    steps: tuple[Step, ...]
    alternatives: tuple[Alternative, ...]
    notes: tuple[str, ...] = ()

    @property
    def chosen(self) -> Alternative:
        """The explained layer among the alternatives."""
        return next(each for each in self.alternatives if each.chosen)

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.chosen.weights

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return self.chosen.parameters

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one input."""
        return self.chosen.macs

    @property
    def share(self) -> float:
        """Multiply-accumulates divided by those of the standard convolution of the same channels."""
        return self.chosen.share

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape (C, ...) of the input."""
        return (self.stages[0].spec.in_channels, *self.stages[0].input_size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape (M, ...) of the output."""
        return (self.stages[-1].spec.out_channels, *self.stages[-1].output_size)

    @property
    def links(self) -> tuple[tuple[Link, ...], ...]:
        """For each stage, which filters read which of its input channels."""
        return tuple(stage.links for stage in self.stages)

    def __str__(self) -> str:
        return text.render(self)

    def _repr_html_(self) -> str:
        return text.render_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "title": self.title,
            "input_shape": list(self.input_shape),
            "output_shape": list(self.output_shape),
            **_costs(self.chosen),
            "stages": [_stage(stage) for stage in self.stages],
            "steps": [asdict(step) | {"result": _plain(step.result)} for step in self.steps],
            "alternatives": [{"name": each.name, "chosen": each.chosen, **_costs(each)} for each in self.alternatives],
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """Return `to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def svg(self) -> str:
        """Return the figure as an SVG document; equal explanations give equal text.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        return figure.render(self, "svg").decode()

    def save(self, path: str | Path) -> None:
        """Write the figure to ``path``, atomically, in the format of its suffix: .svg, .png or .pdf.

        Raises:
            SeparableValueError: the suffix is another one.
            SeparableError: the file cannot be written.
            MissingExtraError: matplotlib is not installed.
        """
        figure.save(self, Path(path))


def explain(
    layer: nn.Module | ConvSpec | None = None,
    input_shape: Sequence[int] | None = None,
    **arguments: Unpack[ConvArguments],
) -> Explanation:
    """Derive the cost of one convolution step by step, and compare it with its alternatives.

    Args:
        layer: a ``torch.nn`` convolution (also transposed), a depthwise separable one with children ``conv_dw`` and
            ``conv_pw`` (or ``depth_conv`` and ``point_conv``), or a `ConvSpec` of `torch_separable.cost`.
        input_shape: shape of the input without a batch dimension, (C, H, W) or (H, W).
        **arguments: instead of a layer, the arguments of ``torch.nn.Conv2d`` by name; also ``transposed`` and
            ``output_padding``, or ``order`` ("depthwise_first" or "pointwise_first") and ``depth_multiplier`` for a
            depthwise separable convolution. A single number as ``kernel_size`` means two dimensions, unless
            ``input_shape`` has one entry (one dimension) or four (three dimensions).

    Raises:
        SeparableValueError: the layer is of another kind, an argument breaks a rule of convolutions, or
            ``input_shape`` does not fit; the message says which.

    Example:
        >>> layer = explain(nn.Conv2d(4, 8, 3, padding=1, groups=2), (3, 3))
        >>> layer.weights, layer.parameters, layer.macs, layer.share
        (144, 152, 1296, 0.5)
        >>> layer.links[0][1]
        Link(group=1, inputs=range(2, 4), outputs=range(4, 8))
        >>> separable = explain(
        ...     in_channels=4, out_channels=8, kernel_size=3, padding=1, order="depthwise_first", input_shape=(4, 3, 3)
        ... )
        >>> separable.weights, separable.parameters, separable.macs
        (68, 80, 612)
        >>> for each in separable.alternatives:
        ...     print(f"{each.name:24} {each.weights:4} {each.share:6.1%}")
        standard, groups=1        288 100.0%
        grouped, groups=2         144  50.0%
        depthwise, groups=4        72  25.0%
        depthwise → pointwise      68  23.6%
        pointwise → depthwise     104  36.1%
    """
    subject = read(layer, input_shape, arguments)
    return Explanation(
        text.title(subject), subject.stages, arithmetic.steps(subject), arithmetic.alternatives(subject), subject.notes
    )


def _plain(result: int | float | tuple[int, ...]) -> int | float | list[int]:
    return list(result) if isinstance(result, tuple) else result


def _costs(alternative: Alternative) -> dict[str, int | float]:
    return {
        "weights": alternative.weights,
        "parameters": alternative.parameters,
        "macs": alternative.macs,
        "share_of_dense_macs": alternative.share,
    }


def _stage(stage: Stage) -> dict[str, Any]:
    spec = {name: _plain(value) for name, value in asdict(stage.spec).items()}
    return {
        "name": stage.name,
        **spec,
        "input_size": list(stage.input_size),
        "output_size": list(stage.output_size),
        "weights": stage.spec.weights,
        "parameters": stage.spec.parameters,
        "macs": stage.macs,
        "bytes_moved": stage.bytes_moved,
        "links": [
            {
                "group": link.group,
                "input_channels": list(link.inputs),
                "filters": list(link.filters),
                "output_channels": list(link.outputs),
            }
            for link in stage.links
        ],
    }
