"""Build networks from a function's name and plain arguments, as given on a command line or in a file.

A file is not trusted: `Network.check` accepts only plain, small arguments, `Network.require` only functions of
``torch_separable.models`` and those that the caller allows, and `bounded` stops a network that becomes much larger than
its weights.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from torch_separable.errors import SeparableError

_MODELS = "torch_separable.models"
_LARGEST, _LONGEST, _MOST, _DEEPEST = 2**31, 200, 1000, 4
_SLACK = 8  # a constructor may build layers that it replaces, such as a head for other classes
_C = TypeVar("_C", bound=type[nn.Module])
_F = TypeVar("_F", bound=Callable[..., nn.Module])

# Functions that build networks, by name; `register` adds them when the package is imported.
NETWORKS: dict[str, Callable[..., nn.Module]] = {}
_CLASSES: set[str] = set()  # the classes of those networks, added by `records_init_args`


@dataclass(frozen=True)
class Network:
    """How to build a network, and the shape of its input.

    Attributes:
        model: ``package.module:function``, or a name in ``torch_separable.models.NETWORKS``.
        arguments: the function's arguments by name: numbers, strings, and lists and dicts of them.
        input_shape: shape of one input without the batch dimension, (C, H, W); ``None`` if unknown.

    Example:
        >>> Network("resnet20", {"num_classes": 7}).build().linear.out_features
        7
    """

    model: str
    arguments: dict[str, Any] = field(default_factory=dict)
    input_shape: tuple[int, ...] | None = None

    @classmethod
    def of(cls, given: object, arguments: Mapping[str, Any] | None, input_shape: Iterable[int] | None) -> Network:
        """Make a `Network` from a function, its name, or another `Network`, whose missing fields are filled in.

        Raises:
            SeparableError: the function cannot be imported by its name.
        """
        shape = None if input_shape is None else tuple(input_shape)
        if isinstance(given, Network):
            own = given.arguments if arguments is None else arguments
            return cls(given.model, dict(own), shape or given.input_shape)
        if isinstance(given, str):
            return cls(given, dict(arguments or {}), shape)
        module, name = getattr(given, "__module__", ""), getattr(given, "__qualname__", "")
        if is_built_in(f"{_MODELS}:{name}") and module.startswith(f"{_MODELS}."):
            module = _MODELS  # the public package instead of the file
        if not module or not name or "<" in name or module == "__main__":
            raise SeparableError(
                f"network={given!r} cannot be imported by its name: give a function or class of an importable module, "
                'or network="package.module:function", and its arguments as arguments={...}'
            )
        return cls(f"{module}:{name}", dict(arguments or {}), shape)

    def build(self) -> nn.Module:
        """Call the function, and record this `Network` in the result's ``built_by``.

        Raises:
            SeparableError: the module or function does not exist, the call fails, or it does not return a module.
        """
        return build_network(self)

    def check(self, where: str) -> None:
        """Require a well-formed name and plain, small arguments, as a file may hold them.

        Args:
            where: beginning of the message.

        Raises:
            SeparableError: naming the first violation.
        """
        place, colon, name = self.model.partition(":")
        if not all(_is_name(part) for part in (*place.split("."), *(name.split(".") if colon else ()))):
            raise SeparableError(f"{where} names the model {_short(self.model)}: expected package.module:function")
        for key in self.arguments:
            if not isinstance(key, str) or not _is_name(key):
                raise SeparableError(f"{where} has an argument {_short(key)}: expected a name without a leading _")
        budget = [_MOST]
        for key, value in self.arguments.items():
            reason = _objection(value, _DEEPEST, budget)
            if reason:
                raise SeparableError(
                    f"{where} has the argument {key}={_short(value)}: {reason}. Write a function that sets this "
                    "argument itself, and name that function as the model"
                )
        shape = self.input_shape
        if shape is not None and not (shape and all(type(n) is int and 0 < n <= 2**20 for n in shape)):
            raise SeparableError(
                f"{where} has input_shape={_short(shape)}: expected positive whole numbers, such as 3,32,32"
            )

    def require(self, where: str, allow: Iterable[str] | str) -> None:
        """Require that the function belongs to ``torch_separable.models`` or is allowed by the caller.

        Args:
            where: beginning of the message.
            allow: modules, which include their submodules, or functions as ``package.module:function``.

        Raises:
            SeparableError: it is not allowed; the message says how to allow it.
        """
        place, colon, name = self.model.partition(":")
        if not colon:
            find_function(self.model)  # raises if it is none of NETWORKS
        if is_built_in(self.model) or self.model in _listed(allow) or (_is_below(place, allow) and "." not in name):
            return
        remedy = place if "." not in name else self.model
        raise SeparableError(
            f"{where} is built by {self.model}, and importing it would run its code: if you trust it, pass "
            f'allow=("{remedy}",)'
        )

    def require_home(self, where: str, allow: Iterable[str] | str) -> None:
        """Require that the function is defined in an allowed module, not merely imported there.

        A module with ``from os import system`` has an attribute ``system`` as well.

        Raises:
            SeparableError: it is defined elsewhere; the message says how to allow it.
        """
        if is_built_in(self.model) or self.model in _listed(allow):
            return
        home = getattr(find_function(self.model), "__module__", None)
        if not isinstance(home, str) or not _is_below(home, allow):
            raise SeparableError(
                f"{where} is built by {self.model}, which is defined in {home}: if you trust it, pass "
                f'allow=("{self.model}",)'
            )


def _is_name(text: str) -> bool:
    return text.isidentifier() and not text.startswith("_")


def _listed(allow: Iterable[str] | str) -> tuple[str, ...]:
    return (allow,) if isinstance(allow, str) else tuple(allow)


def _is_below(place: str, allow: Iterable[str] | str) -> bool:
    return any(place == module or place.startswith(f"{module}.") for module in _listed(allow))


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python converts to text
        text = "a huge number"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _objection(value: object, depth: int, budget: list[int]) -> str | None:
    """Return why a file may not hold a value, or None; at most ``budget[0]`` more values are inspected."""
    budget[0] -= 1
    if budget[0] < 0:
        return f"it holds more than {_MOST} values"
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int):
        return None if abs(value) <= _LARGEST else f"its magnitude exceeds {_LARGEST}"
    if isinstance(value, float):
        return None if math.isfinite(value) else "it is not finite"
    if isinstance(value, str):
        if len(value) > _LONGEST:
            return f"it is longer than {_LONGEST} characters"
        if any(mark in value for mark in "/\\") or value.startswith(("~", ".")) or not value.isprintable():
            return "it could be the path of a file"
        return None
    if isinstance(value, list | tuple | dict):
        if depth == 0:
            return f"it is nested more than {_DEEPEST} deep"
        if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
            return "its keys must be strings"
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        return next((reason for part in inner if (reason := _objection(part, depth - 1, budget))), None)
    return f"a {type(value).__name__} is neither a number nor a string"


@contextmanager
def bounded(values: int, tensors: int) -> Iterator[None]:
    """Stop the construction of a network that has many times more parameters and buffers than expected.

    Tensors are counted when they are registered. The layers of ``torch.nn`` register them before they write to them, so
    a huge tensor occupies no memory yet.

    Args:
        values: expected number of values in all parameters and buffers.
        tensors: expected number of parameters and buffers.

    Raises:
        SeparableError: the network exceeds about eight times as many.
    """
    left = [_SLACK * values + 2**20, _SLACK * tensors + 1000]
    builder = threading.get_ident()

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is None or threading.get_ident() != builder:
            return
        left[0] -= tensor.numel()
        left[1] -= 1
        if min(left) < 0:
            raise SeparableError(
                f"its network is much larger than its weights, which hold {values:,} values in {tensors:,} tensors: "
                "the model's name or arguments do not belong to these weights"
            )

    hooks: list[Any] = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def register(function: _F) -> _F:
    """Add a function that builds a network to `NETWORKS`; use it as a decorator."""
    NETWORKS[function.__name__] = function
    return function


def records_init_args(cls: _C) -> _C:
    """Record each instance's constructor arguments in ``built_by``; use it as a class decorator."""
    _CLASSES.add(cls.__name__)
    initialise = cls.__init__
    signature = inspect.signature(initialise)

    @functools.wraps(initialise)
    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it replaces the class's __init__
        initialise(self, *args, **kwargs)
        if type(self) is cls:  # a subclass may have other arguments
            arguments = dict(signature.bind(self, *args, **kwargs).arguments)
            del arguments["self"]
            vars(self)["built_by"] = Network(f"{_MODELS}:{cls.__name__}", arguments)

    cls.__init__ = __init__  # type: ignore[method-assign]
    return cls


def built_by(model: nn.Module) -> Network | None:
    """Return how a network was built, if it was built by ``torch_separable.models`` or `Network.build`."""
    network = vars(model).get("built_by")
    return network if isinstance(network, Network) else None


def is_built_in(model: str) -> bool:
    """Whether a name is that of a network of ``torch_separable.models``, so that no other module is imported."""
    place, _, name = model.partition(":")
    return model in NETWORKS or (place == _MODELS and (name in NETWORKS or name in _CLASSES))


def build_network(network: Network) -> nn.Module:
    """Build the network: see `Network.build`."""
    function, model = find_function(network.model), network.model
    try:
        built = function(**network.arguments)
    except SeparableError:
        raise
    except Exception as error:
        given = ", ".join(f"{key}={_short(value)}" for key, value in network.arguments.items()) or "no arguments"
        raise SeparableError(f"model {model} cannot be built with {given}: {type(error).__name__}: {error}") from error
    if not isinstance(built, nn.Module):
        raise SeparableError(f"model {model} returned an object of type {type(built).__name__}: expected an nn.Module")
    vars(built)["built_by"] = network
    return built


def _suggestion(model: str) -> str:
    """Name the networks that may be meant: all whose names begin like this, else the most similar ones, else all."""
    near = [name for name in NETWORKS if name.startswith(model)] or difflib.get_close_matches(model, NETWORKS, n=3)
    if not near:
        return f"known networks are {', '.join(NETWORKS)}."
    return f"did you mean {' or '.join(filter(None, (', '.join(near[:-1]), near[-1])))}?"


def find_function(model: str) -> Callable[..., Any]:
    """Import a function by its name.

    Raises:
        SeparableError: there is no such network, module or function.
    """
    place, colon, name = model.partition(":")
    if not colon:
        if model in NETWORKS:
            return NETWORKS[model]
        if "/" in model or os.sep in model:
            raise SeparableError(
                f"there is no folder {model}: give a folder written by convert, or the name of a network"
            )
        raise SeparableError(
            f"there is no network {model}: {_suggestion(model)} Name your own as package.module:function"
        )
    if not all(part.isidentifier() for part in (*place.split("."), *name.split("."))):
        raise SeparableError(f"model {model} is not of the form package.module:function")
    try:
        module = importlib.import_module(place)
    except SeparableError:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or place
        if place == missing or place.startswith(f"{missing}."):
            raise SeparableError(
                f"model {model}: no module {missing} in the current directory or among the installed packages"
            ) from error
        raise SeparableError(f"model {model}: {place} needs {missing}, which is not installed") from error
    except Exception as error:
        raise SeparableError(f"model {model}: {place} cannot be imported: {type(error).__name__}: {error}") from error
    function: Any = module
    for part in name.split("."):
        if not hasattr(function, part):
            near = difflib.get_close_matches(part, [n for n in dir(function) if not n.startswith("_")], n=1)
            hint = f"did you mean {near[0]}?" if near else "name a function in it that returns the network"
            raise SeparableError(f"model {model}: {place} has no {name}; {hint}")
        function = getattr(function, part)
    if not callable(function):
        raise SeparableError(f"model {model}: {name} is of type {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]
