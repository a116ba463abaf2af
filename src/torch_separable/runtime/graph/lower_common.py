"""Helpers of the operator handlers: reading arguments, refusing an operator, reordering channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from torch_separable.runtime.graph.ir import Pair


class Unsupported(Exception):  # noqa: N818 - it carries a reason to `lower`, and never leaves it
    """No kernel runs an operator, so it becomes a `TorchCall`; the message is the reason."""


def pair(value: Any) -> Pair:
    """Read a number or a list of one or two as (vertical, horizontal)."""
    values = [value] if isinstance(value, int) else list(value)
    return (int(values[0]), int(values[-1]))


def arguments(node: fx.Node, names: tuple[str, ...], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return an operator's arguments by name, with the defaults of those that were not given."""
    given = dict(zip(names, node.args, strict=False))
    return {**defaults, **given, **node.kwargs}


# The arguments of ``conv2d``, and the defaults of the optional ones.
CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
CONVOLUTION_DEFAULTS: dict[str, Any] = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def blocked(tensor: Tensor, blocks: int, dimension: int) -> Tensor:
    """Reorder a dimension of channels from interleaved (c · blocks + d) to ``blocks`` blocks (d · C + c)."""
    if blocks == 1:
        return tensor
    parts: Tensor = tensor.unflatten(dimension, (-1, blocks))
    return parts.transpose(dimension, dimension + 1).flatten(dimension, dimension + 1)
