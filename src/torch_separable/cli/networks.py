"""From the name of a network on the command line to the network."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from torch_separable import models
from torch_separable.errors import SeparableError
from torch_separable.files import load_weights
from torch_separable.models import NETWORKS


def build_network(model: str, arguments: dict[str, Any], weights: Path | None = None) -> nn.Module:
    """Call the function that ``model`` names, and load weights.

    Args:
        model: ``package.module:function``, importable here or from the current folder; or a name of
            ``torch_separable.models.NETWORKS``.
        arguments: the function's.
        weights: a file for the network.

    Raises:
        SeparableError: no such module or function, the arguments do not fit, the result is no network, or the weights
            are not its.
    """
    function = find_function(model)
    try:
        network = function(**arguments)
    except SeparableError:
        raise
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
        raise SeparableError(f"model {model} cannot be built with {given}: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise SeparableError(
            f"model {model} returned an object of type {type(network).__name__}: expected an nn.Module"
        )
    if weights is not None:
        load_weights(network, weights)
    return network


def is_built_in(model: str) -> bool:
    """Whether a name stands for a network of ``torch_separable.models``, so that nothing else is imported for it."""
    place, _, name = model.partition(":")
    return model in NETWORKS or (place == models.__name__ and name in models.__all__)


def find_function(model: str) -> Callable[..., Any]:
    """Import the function that a name stands for."""
    place, colon, name = model.partition(":")
    if not colon:
        if model in NETWORKS:
            return NETWORKS[model]
        near = difflib.get_close_matches(model, NETWORKS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(NETWORKS)}."
        raise SeparableError(f"no network is called {model}: {hint} Name your own as package.module:function")
    if not all(part.isidentifier() for part in (*place.split("."), *name.split("."))):
        raise SeparableError(f"model {model} is not of the form package.module:function")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(place)
    except SeparableError:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or place
        if place == missing or place.startswith(f"{missing}."):
            raise SeparableError(
                f"model {model}: there is no module {missing} here or among the installed packages"
            ) from error
        raise SeparableError(f"model {model}: {place} needs {missing}, which is not installed") from error
    except Exception as error:
        raise SeparableError(f"model {model}: {place} cannot be imported: {type(error).__name__}: {error}") from error
    function: Any = module
    for part in name.split("."):
        if not hasattr(function, part):
            near = difflib.get_close_matches(part, [n for n in dir(function) if not n.startswith("_")], n=1)
            hint = f"did you mean {near[0]}?" if near else "give the function in it that returns the network"
            raise SeparableError(f"model {model}: {place} has no {name}; {hint}")
        function = getattr(function, part)
    if not callable(function):
        raise SeparableError(f"model {model}: {name} is of type {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]
