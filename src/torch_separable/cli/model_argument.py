"""Build networks from their names on the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import nn

from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.models.registry import Network, is_built_in

_FACTORIES = {"timm": ("timm:create_model", "model_name"), "torchvision": ("torchvision.models:get_model", "name")}


def expand_name(model: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the function and the arguments for ``timm:NAME`` and ``torchvision:NAME``; other names are unchanged.

    Example:
        >>> expand_name("timm:resnet18", {"pretrained": True})
        ('timm:create_model', {'model_name': 'resnet18', 'pretrained': True})
    """
    package, _, name = model.partition(":")
    if package not in _FACTORIES or not name or model == _FACTORIES[package][0]:
        return model, arguments
    function, argument = _FACTORIES[package]
    return function, {argument: name, **arguments}


def build_network(
    model: str, arguments: dict[str, Any], weights: Path | None = None, *, trained: bool = False, ema: bool = False
) -> nn.Module:
    """Call the function named by ``model``, and load weights.

    Args:
        model: ``package.module:function``, importable from the environment or the current folder; or a name of
            ``torch_separable.models.NETWORKS``.
        arguments: keyword arguments of the function.
        weights: weights file, with the network's own names or those of another package.
        trained: whether to warn if the weights are random.
        ema: whether to load the averaged weights of a file that holds both.

    Raises:
        SeparableError: the module or function does not exist, it fails with these arguments, it does not return a
            network, or the weights do not match.
    """
    model, arguments = expand_name(model, arguments)
    look_here(model)
    network = Network(model, arguments).build()
    if weights is not None:
        load_any_weights(network, weights, ema=ema)
    elif ema:
        raise SeparableValueError("--ema needs --weights FILE, from which it selects the averaged weights")
    elif trained and is_built_in(model):
        print(f"separable: {model} has random weights, because --weights FILE is not given", file=sys.stderr)
    return network


def load_any_weights(network: nn.Module, weights: Path, *, ema: bool = False) -> None:
    """Load a file; name on standard error the package whose names it uses, and the weights that were selected."""
    from torch_separable.importing import import_weights
    from torch_separable.importing.load import OWN

    report = import_weights(network, weights, ema=ema)
    if report.layout != OWN:
        print(f"separable: {weights} uses the names of {report.layout}", file=sys.stderr)
    if report.selection:
        print(f"separable: {weights}: {report.selection}", file=sys.stderr)


def look_here(model: str) -> None:
    """Add the current folder to the module path if ``model`` names a module."""
    if ":" in model and "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def converted_network(
    folder: Path, model: str | None, arguments: dict[str, Any], weights: Path | None, teacher: Path | None = None
) -> tuple[nn.Module, nn.Module]:
    """Build the converted network of a folder and its dense network.

    A folder can only name networks of ``torch_separable.models``; other functions are imported only if the caller
    gives them as ``model``.
    """
    from torch_separable._network.weights_file import load_weights
    from torch_separable.artifacts import run_directory

    network = run_directory.read_network(folder)
    if model is None and not is_built_in(network.model):
        raise SeparableError(
            f"{folder} was converted from {network.model}, which would have to be imported: if you trust it, "
            f"give --model {network.model}"
        )
    if model is not None:
        model, arguments = expand_name(model, arguments)
    network = Network(model or network.model, {**network.arguments, **arguments}, network.input_shape)
    look_here(network.model)
    dense = run_directory.build_dense(folder, network)
    if teacher is not None:
        load_any_weights(dense, teacher)
    converted = run_directory.load_converted(folder, dense)
    if weights is not None:
        load_weights(converted, weights)
    return converted, dense


def network_of_folder(folder: Path, model: str | None, arguments: dict[str, Any], weights: Path | None) -> nn.Module:
    """Load the network of a folder, converted or quantized, to run it.

    Raises:
        SeparableError: options that build or change the network are given for a quantized one.
    """
    from torch_separable.artifacts.quantized_run import is_quantized, load_quantized

    if not is_quantized(folder):
        return converted_network(folder, model, arguments, weights)[0]
    given = {"--model": model, "--model-arg": arguments, "--weights": weights}
    for option, value in given.items():
        if value:
            raise SeparableValueError(f"{option} is given, but {folder} holds a quantized network, which is complete")
    return load_quantized(folder)


def network_or_folder(
    model: str, made_of: str | None, arguments: dict[str, Any], weights: Path | None
) -> tuple[nn.Module, nn.Module | None, tuple[int, ...] | None]:
    """Build the network named by MODEL, or load a folder; return it, its dense network and its input shape."""
    from torch_separable.artifacts import run_directory
    from torch_separable.artifacts.quantized_run import is_quantized, load_quantized

    folder = Path(model)
    if folder.is_dir() and is_quantized(folder):
        quantized = load_quantized(folder)
        return quantized, None, quantized.input_shape
    if folder.is_dir():
        return *converted_network(folder, made_of, arguments, weights), run_directory.read_network(folder).input_shape
    if made_of is not None:
        raise SeparableValueError(f"{model} is not a folder, but --model {made_of} needs a folder written by convert")
    return build_network(model, arguments, weights), None, None
