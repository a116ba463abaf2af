"""Checks of the arguments that blocks take: each message names the argument, its value and the rule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch_separable.errors import SeparableValueError

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def whole(name: str, value: object, least: int = 1) -> int:
    """Return ``value`` where it is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SeparableValueError(f"{name}={value!r}: must be a whole number, at least {least}")
    return value


def per_dimension(name: str, value: object, dimensions: int, least: int = 1) -> tuple[int, ...]:
    """Return one number for each spatial dimension; a single one is repeated."""
    if isinstance(value, tuple | list):
        if len(value) != dimensions:
            raise SeparableValueError(
                f"{name}={value!r}: must be one whole number, or {dimensions} of them, one for each spatial dimension"
            )
        return tuple(whole(name, entry, least) for entry in value)
    return (whole(name, value, least),) * dimensions


def divides(name: str, value: int, of: str, number: int) -> None:
    """Require that ``value`` divides ``number``."""
    if number % value:
        raise SeparableValueError(f"{name}={value} does not divide {of}={number}: {of} must be a multiple of {name}")


def one_of(name: str, value: object, allowed: Iterable[str]) -> None:
    """Require that ``value`` is one of the words ``allowed``."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise SeparableValueError(f"{name}={value!r}: must be one of {', '.join(map(repr, allowed))}")


def flag(name: str, value: object) -> None:
    """Require a bool."""
    if not isinstance(value, bool):
        raise SeparableValueError(f"{name}={value!r}: must be True or False")


def callable_or_none(name: str, value: object) -> None:
    """Require something that builds a layer, or None."""
    if value is not None and not callable(value):
        raise SeparableValueError(f"{name}={value!r}: must be None, or a callable that returns a module")


def window(
    dimensions: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any, padding_mode: Any
) -> dict[str, Any]:
    """Check what says where a kernel is applied, and return it as keyword arguments of ``torch.nn.ConvNd``."""
    one_of("padding_mode", padding_mode, PADDING_MODES)
    stride = per_dimension("stride", stride, dimensions)
    if isinstance(padding, str):
        one_of("padding", padding, ("same", "valid"))
        if padding == "same" and any(step != 1 for step in stride):
            raise SeparableValueError(f"padding='same' with stride={stride}: 'same' is defined for stride 1 only")
    else:
        padding = per_dimension("padding", padding, dimensions, least=0)
    return {
        "kernel_size": per_dimension("kernel_size", kernel_size, dimensions),
        "stride": stride,
        "padding": padding,
        "dilation": per_dimension("dilation", dilation, dimensions),
        "padding_mode": padding_mode,
    }
