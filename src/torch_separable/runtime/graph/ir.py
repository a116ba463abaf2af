"""The small intermediate form between a traced network and kernels: typed nodes on named values.

A value is an activation (N, C, H, W); vectors (N, C) are images of one pixel. Weights stand in the nodes, batch norms
folded into them. What no node describes stays a call of PyTorch: `TorchCall`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from torch import Tensor

Shape = tuple[int, int, int, int]
Pair = tuple[int, int]


class ActivationKind(IntEnum):
    """Numbers are those of ``ts_activation`` in the kernel library."""

    CLAMP = 0
    LEAKY_RELU = 1
    SILU = 2
    HARDSWISH = 3
    GELU = 4
    GELU_TANH = 5
    SIGMOID = 6
    HARDSIGMOID = 7


@dataclass(frozen=True)
class Activation:
    """An elementwise function; for clamps (ReLU, ReLU6, none) ``alpha`` and ``beta`` are the bounds."""

    kind: ActivationKind = ActivationKind.CLAMP
    alpha: float = -math.inf
    beta: float = math.inf

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing."""
        return self == IDENTITY

    def __str__(self) -> str:
        if self.kind is not ActivationKind.CLAMP:
            return self.kind.name.lower()
        if self.is_identity:
            return ""
        return {(0.0, math.inf): "relu", (0.0, 6.0): "relu6"}.get((self.alpha, self.beta), "clamp")


IDENTITY = Activation()
RELU = Activation(alpha=0.0)


@dataclass(frozen=True)
class Window:
    """Where a kernel is applied: (vertical, horizontal) each."""

    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    @property
    def is_pointwise(self) -> bool:
        """Whether every pixel is mapped by itself."""
        return self == Window()


@dataclass(frozen=True)
class Depthwise:
    """A depthwise stage: each channel filtered by ``multiplier`` kernels of its own.

    Attributes:
        weight: (multiplier, kernel entries, C).
        bias: (multiplier, C).
        window: where.
        activation: of its result.
    """

    weight: Tensor
    bias: Tensor
    window: Window
    activation: Activation = IDENTITY


@dataclass(frozen=True)
class Convolution:
    """A dense or pointwise convolution, a linear layer, or (with ``depthwise``) a depthwise separable convolution.

    Attributes:
        weight: (M, C, kernel height, kernel width); with ``depthwise`` (M, multiplier · C, 1, 1), multiplier outermost.
        bias: (M,).
        window: of the dense kernel; with ``depthwise`` that of one pixel.
        residual: value that is added before the activation.
        groups: of channels that do not see each other; then the weight is (M, C/groups, ...).
    """

    name: str
    input: str
    output: str
    weight: Tensor
    bias: Tensor
    window: Window
    activation: Activation = IDENTITY
    residual: str | None = None
    depthwise: Depthwise | None = None
    groups: int = 1


@dataclass(frozen=True)
class Filtering:
    """A depthwise convolution by itself.

    Attributes:
        depthwise: weights and window; the activation is this node's own.
        summed: False: ``multiplier`` outputs for each channel, in blocks, multiplier outermost. True: the input is
            ``multiplier`` blocks of channels, which are filtered and summed (the second half of pointwise-first).
    """

    name: str
    input: str
    output: str
    depthwise: Depthwise
    summed: bool = False
    residual: str | None = None

    @property
    def activation(self) -> Activation:
        """Of the result."""
        return self.depthwise.activation


@dataclass(frozen=True)
class Pool:
    """Maximum or average over windows."""

    name: str
    input: str
    output: str
    window: Window
    maximum: bool
    count_padding: bool = True
    activation: Activation = IDENTITY


@dataclass(frozen=True)
class Mean:
    """Mean over all pixels of each image."""

    name: str
    input: str
    output: str
    activation: Activation = IDENTITY


@dataclass(frozen=True)
class Add:
    """Sum of two values of one shape."""

    name: str
    input: str
    residual: str
    output: str
    activation: Activation = IDENTITY


@dataclass(frozen=True)
class Scale:
    """A value times one factor for each channel of each image (N, C, 1, 1), as squeeze-and-excite does."""

    name: str
    input: str
    residual: str
    output: str
    activation: Activation = IDENTITY


@dataclass(frozen=True)
class Activate:
    """An activation that could not be fused into what comes before."""

    name: str
    input: str
    output: str
    activation: Activation


@dataclass(frozen=True)
class Copy:
    """Every ``stride``-th pixel, ``before`` zero channels in front and zeros up to the output's channels behind."""

    name: str
    input: str
    output: str
    stride: Pair = (1, 1)
    before: int = 0


@dataclass(frozen=True)
class TorchCall:
    """An operator that PyTorch runs.

    Attributes:
        function: the operator.
        args: its arguments; `Reference` stands for a value.
        kwargs: as ``args``.
        reason: why no kernel does.
    """

    name: str
    output: str
    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    reason: str


@dataclass(frozen=True)
class Reference:
    """Stands for a value among the arguments of a `TorchCall`."""

    value: str


Native = Convolution | Filtering | Pool | Mean | Add | Scale | Activate | Copy
Node = Native | TorchCall


@dataclass(frozen=True)
class Program:
    """A network for inputs of one shape.

    Attributes:
        input: name and shape of the input.
        nodes: in the order of execution.
        shapes: of every value that kernels read or write, (N, C, H, W).
        blocks: values whose channels lie in several blocks, each of which begins at a multiple of the vector's lanes.
        vectors: values that the network sees as (N, C).
        outputs: names of what it returns.
        structure: how they are returned (a pytree specification).
        layers: the modules that nodes come from, by the nodes' names.
    """

    input: str
    nodes: tuple[Node, ...]
    shapes: Mapping[str, Shape]
    blocks: Mapping[str, int]
    vectors: frozenset[str]
    outputs: tuple[str, ...]
    structure: Any
    layers: Mapping[str, str] = field(default_factory=dict)


def inputs_of(node: Node) -> tuple[str, ...]:
    """Names of the values that a node reads."""
    if isinstance(node, TorchCall):
        from torch.utils._pytree import tree_leaves

        leaves = tree_leaves((node.args, dict(node.kwargs)), is_leaf=lambda leaf: isinstance(leaf, Reference))
        return tuple(leaf.value for leaf in leaves if isinstance(leaf, Reference))
    residual = getattr(node, "residual", None)
    return (node.input,) if residual is None else (node.input, residual)
