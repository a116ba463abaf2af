"""From the name of a network on the command line to the network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import nn

from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.models.registry import Network, is_built_in


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


def converted_network(
    folder: Path, model: str | None, arguments: dict[str, Any], weights: Path | None, teacher: Path | None = None
) -> tuple[nn.Module, nn.Module]:
    """Build the converted network of a folder, and its dense one.

    Nothing that a folder names is imported but the networks of ``torch_separable.models``; others the caller names.
    """
    from torch_separable._network.weights_file import load_weights
    from torch_separable.artifacts import run_directory

    network = run_directory.read_network(folder)
    if model is None and not is_built_in(network.model):
        raise SeparableError(
            f"{folder} was made of {network.model}, which would have to be imported: if you trust it, "
            f"give --model {network.model}"
        )
    network = Network(model or network.model, {**network.arguments, **arguments}, network.input_shape)
    look_here(network.model)
    dense = run_directory.build_dense(folder, network)
    if teacher is not None:
        load_any_weights(dense, teacher)
    converted = run_directory.load_converted(folder, dense)
    if weights is not None:
        load_weights(converted, weights)
    return converted, dense


def network_or_folder(
    model: str, made_of: str | None, arguments: dict[str, Any], weights: Path | None
) -> tuple[nn.Module, nn.Module | None, tuple[int, ...] | None]:
    """Build what MODEL names, or load a folder of convert, which knows its dense network and its input shape."""
    from torch_separable.artifacts import run_directory

    folder = Path(model)
    if folder.is_dir():
        return *converted_network(folder, made_of, arguments, weights), run_directory.read_network(folder).input_shape
    if made_of is not None:
        raise SeparableValueError(f"there is no folder {model}: --model goes with a folder that convert wrote")
    return build_network(model, arguments, weights), None, None
