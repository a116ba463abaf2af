"""How a network is built: the name of a function and plain arguments, as they stand on a command line or in a file.

What a file names is not trusted: `Network.check` lets pass only arguments that are plain and small, `Network.require`
only functions of ``torch_separable.models`` and those that the caller allows, and `bounded` stops a network that grows
far beyond its weights.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import math
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
_SLACK = 8  # a network may make layers that it then throws away, as a head for other classes
_C = TypeVar("_C", bound=type[nn.Module])
_F = TypeVar("_F", bound=Callable[..., nn.Module])

# Networks by the name of the function that builds them; `register` adds to it, and importing the package fills it.
NETWORKS: dict[str, Callable[..., nn.Module]] = {}
_CLASSES: set[str] = set()  # the classes of those networks, which `records_init_args` adds


@dataclass(frozen=True)
class Network:
    """How to build a network, and what it takes.

    Attributes:
        model: ``package.module:function``, or a name of ``torch_separable.models.NETWORKS``.
        arguments: the function's, by name: numbers, words, and lists and objects of them.
        input_shape: of one input without the batch, (C, H, W); ``None`` where it is not known.

    Example:
        >>> Network("resnet20", {"num_classes": 7}).build().linear.out_features
        7
    """

    model: str
    arguments: dict[str, Any] = field(default_factory=dict)
    input_shape: tuple[int, ...] | None = None

    @classmethod
    def of(cls, given: object, arguments: Mapping[str, Any] | None, input_shape: Iterable[int] | None) -> Network:
        """Read a function or its name, or complete a network that is one already.

        Raises:
            SeparableError: there is no name by which the function could be found again.
        """
        shape = None if input_shape is None else tuple(input_shape)
        if isinstance(given, Network):
            own = given.arguments if arguments is None else arguments
            return cls(given.model, dict(own), shape or given.input_shape)
        if isinstance(given, str):
            return cls(given, dict(arguments or {}), shape)
        module, name = getattr(given, "__module__", ""), getattr(given, "__qualname__", "")
        if is_built_in(f"{_MODELS}:{name}") and module.startswith(f"{_MODELS}."):
            module = _MODELS  # and not the file in it
        if not module or not name or "<" in name or module == "__main__":
            raise SeparableError(
                f"network={given!r} cannot be found again by its name: give a function or class of a module that can "
                'be imported, or network="package.module:function", and its arguments as arguments={...}'
            )
        return cls(f"{module}:{name}", dict(arguments or {}), shape)

    def build(self) -> nn.Module:
        """Call the function; the network remembers by ``built_by`` how it was built.

        Raises:
            SeparableError: no such module or function, the arguments do not fit, or the result is no network.
        """
        return build_network(self)

    def check(self, where: str) -> None:
        """Require what may stand in a file: a name of the right form, and plain, small arguments.

        Args:
            where: what begins the message.

        Raises:
            SeparableError: naming the first thing that is something else.
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
                    f"{where} has the argument {key}={_short(value)}: {reason}. What cannot be said in small numbers "
                    "and words belongs into a function of your own that takes no such argument"
                )
        shape = self.input_shape
        if shape is not None and not (shape and all(type(n) is int and 0 < n <= 2**20 for n in shape)):
            raise SeparableError(
                f"{where} has input_shape={_short(shape)}: expected positive whole numbers, as 3,32,32"
            )

    def require(self, where: str, allow: Iterable[str] | str) -> None:
        """Require that the function is of ``torch_separable.models``, or that the caller allows it.

        Args:
            where: what begins the message.
            allow: modules, with what is below them, or single functions as ``package.module:function``.

        Raises:
            SeparableError: it is not allowed; the message says how to allow it.
        """
        place, colon, name = self.model.partition(":")
        if not colon:
            find_function(self.model)  # among our own
        if is_built_in(self.model) or self.model in _listed(allow) or (_is_below(place, allow) and "." not in name):
            return
        remedy = place if "." not in name else self.model
        raise SeparableError(
            f"{where} is built by {self.model}, which would have to be imported, and importing runs its code: if you "
            f'trust it, allow it as allow=("{remedy}",)'
        )

    def require_home(self, where: str, allow: Iterable[str] | str) -> None:
        """Require that the function was written in a module that is allowed, and not merely imported there.

        A module that says ``from os import system`` has a function ``system``, too.

        Raises:
            SeparableError: it is another module's; the message says how to allow it.
        """
        if is_built_in(self.model) or self.model in _listed(allow):
            return
        home = getattr(find_function(self.model), "__module__", None)
        if not isinstance(home, str) or not _is_below(home, allow):
            raise SeparableError(
                f"{where} is built by {self.model}, which is a function of {home}: if you trust it, allow just it as "
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
    except ValueError:  # a whole number of too many digits to print
        text = "a huge number"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _objection(value: object, depth: int, budget: list[int]) -> str | None:
    """Say why a value may not stand in a file; ``budget[0]`` more values may be looked at."""
    budget[0] -= 1
    if budget[0] < 0:
        return f"it holds more than {_MOST} values"
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int):
        return None if abs(value) <= _LARGEST else f"it is beyond {_LARGEST}"
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
            return "an object's keys are words"
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        return next((reason for part in inner if (reason := _objection(part, depth - 1, budget))), None)
    return f"a {type(value).__name__} is neither a number nor words"


@contextmanager
def bounded(values: int, tensors: int) -> Iterator[None]:
    """Stop a network that is being built once its parameters and buffers are many times as many as it should have.

    They are counted as each is registered, which ``torch.nn``'s layers do before they fill it, so that a huge one costs
    no memory.

    Args:
        values: what the network should have, about.
        tensors: as many of them.

    Raises:
        SeparableError: it has many more.
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
                f"its network is far larger than its weights: it should have about {values:,} values in {tensors:,} "
                f"tensors. The model's arguments are another network's"
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
    """Add a function that builds a network to `NETWORKS`: a decorator."""
    NETWORKS[function.__name__] = function
    return function


def records_init_args(cls: _C) -> _C:
    """Record in ``built_by`` how each instance of a network's class was built: a class decorator."""
    _CLASSES.add(cls.__name__)
    initialise = cls.__init__
    signature = inspect.signature(initialise)

    @functools.wraps(initialise)
    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it takes the place of one
        initialise(self, *args, **kwargs)
        if type(self) is cls:  # a subclass is built otherwise
            arguments = dict(signature.bind(self, *args, **kwargs).arguments)
            del arguments["self"]
            vars(self)["built_by"] = Network(f"{_MODELS}:{cls.__name__}", arguments)

    cls.__init__ = __init__  # type: ignore[method-assign]
    return cls


def built_by(model: nn.Module) -> Network | None:
    """Return how a network was built, where it remembers: one of ``torch_separable.models``, or of `Network.build`."""
    network = vars(model).get("built_by")
    return network if isinstance(network, Network) else None


def is_built_in(model: str) -> bool:
    """Whether a name stands for a network of ``torch_separable.models``, so that nothing else is imported for it."""
    place, _, name = model.partition(":")
    return model in NETWORKS or (place == _MODELS and (name in NETWORKS or name in _CLASSES))


def build_network(network: Network) -> nn.Module:
    """Call the function that a network names: see `Network.build`."""
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


def find_function(model: str) -> Callable[..., Any]:
    """Import the function that a name stands for.

    Raises:
        SeparableError: no such network, module or function.
    """
    place, colon, name = model.partition(":")
    if not colon:
        if model in NETWORKS:
            return NETWORKS[model]
        near = difflib.get_close_matches(model, NETWORKS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(NETWORKS)}."
        raise SeparableError(f"no network is called {model}: {hint} Name your own as package.module:function")
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
