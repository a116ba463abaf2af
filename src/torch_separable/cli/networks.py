"""From the name of a network on the command line to the network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import nn

from torch_separable.networks import Network, is_built_in


def build_network(
    model: str, arguments: dict[str, Any], weights: Path | None = None, *, trained: bool = False
) -> nn.Module:
    """Call the function that ``model`` names, and load weights.

    Args:
        model: ``package.module:function``, importable here or from the current folder; or a name of
            ``torch_separable.models.NETWORKS``.
        arguments: the function's.
        weights: a file for the network, under its own names or another package's.
        trained: whether random weights are worth a warning.

    Raises:
        SeparableError: no such module or function, the arguments do not fit, the result is no network, or the weights
            are not its.
    """
    look_here(model)
    network = Network(model, arguments).build()
    if weights is not None:
        load_any_weights(network, weights)
    elif trained and is_built_in(model):
        print(f"separable: {model} is untrained: its weights are random without --weights FILE", file=sys.stderr)
    return network


def load_any_weights(network: nn.Module, weights: Path) -> None:
    """Load a file, and say on standard error whose names it has where they are another package's."""
    from torch_separable.importing import import_weights
    from torch_separable.importing.load import OWN

    layout = import_weights(network, weights).layout
    if layout != OWN:
        print(f"separable: {weights} has the names of {layout}", file=sys.stderr)


def look_here(model: str) -> None:
    """Let modules of the current folder be found, where a model is named by its module."""
    if ":" in model and "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
