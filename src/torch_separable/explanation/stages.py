"""Stages: a convolution with the size of its input.

A standard, grouped, depthwise or pointwise layer is one `Stage`, a depthwise separable layer is two. The arithmetic and
the figure are computed from stages, so they are the same for every kind of layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from torch_separable.cost.formulas import ConvSpec

Order = Literal["depthwise_first", "pointwise_first"]
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Link:
    """The channels of one group: its filters read only ``inputs`` and write ``outputs``.

    Channels are numbered from 0. Filter ``m`` writes output channel ``m``, so ``filters`` equals ``outputs``.

    Attributes:
        group: number of the group.
        inputs: input channels that the group's filters read.
        outputs: output channels that they write.
    """

    group: int
    inputs: range
    outputs: range

    @property
    def filters(self) -> range:
        """The group's filters, one for each output channel."""
        return self.outputs


@dataclass(frozen=True)
class Stage:
    """A convolution and the spatial size of its input.

    Attributes:
        name: standard, grouped, depthwise or pointwise.
        spec: the convolution.
        input_size: spatial size of its input.
        same_padding: whether the padding is "same"; with an even kernel it has one more zero at the end than at the
            beginning, which ``spec.padding`` cannot express.

    Example:
        >>> stage = Stage("grouped", ConvSpec(4, 8, (3, 3), padding=(1, 1), groups=2), (3, 3))
        >>> stage.macs, stage.output_size
        (1296, (3, 3))
        >>> stage.links[1]
        Link(group=1, inputs=range(2, 4), outputs=range(4, 8))
    """

    name: str
    spec: ConvSpec
    input_size: tuple[int, ...]
    same_padding: bool = False

    @property
    def output_size(self) -> tuple[int, ...]:
        """Spatial size of the output."""
        return self.input_size if self.same_padding else self.spec.output_size(self.input_size)

    @property
    def applications(self) -> int:
        """How often each weight is applied: once per output pixel (per input pixel if transposed)."""
        return math.prod(self.input_size if self.spec.transposed else self.output_size)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one input."""
        return self.spec.weights * self.applications

    @property
    def bytes_moved(self) -> int:
        """Bytes of input, parameters and output in float32, each moved once: the minimum for a single layer."""
        inputs = self.spec.in_channels * math.prod(self.input_size)
        outputs = self.spec.out_channels * math.prod(self.output_size)
        return FLOAT32_BYTES * (inputs + self.spec.parameters + outputs)

    @property
    def links(self) -> tuple[Link, ...]:
        """The input and output channels of each group."""
        inputs = self.spec.in_channels // self.spec.groups
        outputs = self.spec.out_channels // self.spec.groups
        return tuple(
            Link(group, range(group * inputs, (group + 1) * inputs), range(group * outputs, (group + 1) * outputs))
            for group in range(self.spec.groups)
        )


def single_stage(spec: ConvSpec, input_size: tuple[int, ...], same_padding: bool = False) -> Stage:
    """Return the stage of a single convolution, named after its kind."""
    if spec.is_depthwise:
        name = "depthwise"
    elif spec.groups > 1:
        name = "grouped"
    else:
        name = "pointwise" if spec.is_pointwise else "standard"
    return Stage(name, spec, input_size, same_padding)


def separable_stages(dense: Stage, order: Order, depth_multiplier: int = 1) -> tuple[Stage, Stage]:
    """Return the two stages of a depthwise separable convolution that replaces the ``dense`` one.

    Depthwise first, each of the ``C`` input channels has ``D`` filters, then a 1x1 convolution mixes the ``C·D``
    channels (MobileNet, arXiv 1704.04861). Pointwise first, a 1x1 convolution at the input's resolution returns ``M·D``
    channels, then each output channel is a filter over ``D`` of them (blueprint separable, BSConv, CVPR 2020).

    Example:
        >>> dense = single_stage(ConvSpec(4, 8, (3, 3), padding=(1, 1)), (3, 3))
        >>> [stage.spec.weights for stage in separable_stages(dense, "depthwise_first")]
        [36, 32]
        >>> [stage.spec.formula() for stage in separable_stages(dense, "pointwise_first", 2)]
        ['1·1·4·16 = 64 (+16 bias)', '3·3·(16/8)·8 = 144 (+8 bias)']
    """
    C, M = dense.spec.in_channels, dense.spec.out_channels
    middle = depth_multiplier * (C if order == "depthwise_first" else M)
    pointwise = ConvSpec(C, middle, (1,) * len(dense.spec.kernel_size), bias=dense.spec.bias)
    if order == "pointwise_first":
        first = Stage("pointwise", pointwise, dense.input_size)
        spatial = replace(dense.spec, in_channels=middle, groups=M)
        return first, Stage("depthwise", spatial, first.output_size, dense.same_padding)
    spatial = replace(dense.spec, out_channels=middle, groups=C)
    first = Stage("depthwise", spatial, dense.input_size, dense.same_padding)
    return first, Stage("pointwise", replace(pointwise, in_channels=middle, out_channels=M), first.output_size)
