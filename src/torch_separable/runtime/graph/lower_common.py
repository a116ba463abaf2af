"""What the readers of operators share: how arguments are found, and how an operator is handed to PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from torch_separable.runtime.graph.ir import Pair


class Unsupported(Exception):  # noqa: N818 - it carries a reason to `lower`, and never leaves it
    """PyTorch has to run an operator, called as it is; the message is the reason."""


def pair(value: Any) -> Pair:
    """Read a number or a list of one or two as (vertical, horizontal)."""
    values = [value] if isinstance(value, int) else list(value)
    return (int(values[0]), int(values[-1]))


def arguments(node: fx.Node, names: tuple[str, ...], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return an operator's arguments by name, with the defaults of those that were not given."""
    given = dict(zip(names, node.args, strict=False))
    return {**defaults, **given, **node.kwargs}
