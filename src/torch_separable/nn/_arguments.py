"""Check the arguments of layers: each message names the argument, its value and the rule that it breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from torch_separable.errors import SeparableValueError

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def whole(name: str, value: object, least: int = 1) -> int:
    """Return ``value`` if it is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SeparableValueError(f"{name}={value!r}: must be a whole number, at least {least}")
    return value


def per_dimension(name: str, value: object, dimensions: int, least: int = 1) -> tuple[int, ...]:
    """Return one integer for each spatial dimension; a single integer is repeated."""
    if isinstance(value, tuple | list):
        if len(value) != dimensions:
            raise SeparableValueError(
                f"{name}={value!r}: must be one whole number, or {dimensions} of them, one for each spatial dimension"
            )
        return tuple(whole(name, entry, least) for entry in value)
    return (whole(name, value, least),) * dimensions


def odd_kernel(kernel_size: object, dimensions: int) -> tuple[int, ...]:
    """Return the kernel size in each dimension, which must be odd."""
    kernel = per_dimension("kernel_size", kernel_size, dimensions)
    if any(extent % 2 == 0 for extent in kernel):
        raise SeparableValueError(f"kernel_size={kernel_size!r}: must be odd, so that padding keeps the size")
    return kernel


def divides(name: str, value: int, of: str, number: int) -> None:
    """Require that ``value`` divides ``number``, the value of the argument ``of``."""
    if number % value:
        raise SeparableValueError(f"{name}={value} does not divide {of}={number}: {of} must be a multiple of {name}")


def one_of(name: str, value: object, allowed: Iterable[str]) -> None:
    """Require that ``value`` is one of the strings ``allowed``."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise SeparableValueError(f"{name}={value!r}: must be one of {', '.join(map(repr, allowed))}")


def flag(name: str, value: object) -> None:
    """Require a bool."""
    if not isinstance(value, bool):
        raise SeparableValueError(f"{name}={value!r}: must be True or False")


def callable_or_none(name: str, value: object) -> None:
    """Require a callable that builds a layer, or None."""
    if isinstance(value, nn.Module):
        kind = type(value).__name__
        raise SeparableValueError(f"{name}={kind}(…): must be a callable that builds a layer, such as nn.{kind}")
    if value is not None and not callable(value):
        raise SeparableValueError(f"{name}={value!r}: must be None, or a callable that returns a module")


def built(name: str, make: Callable[..., object], *arguments: object, device: Any, dtype: Any) -> nn.Module:
    """Call ``make`` and require that it returns a module."""
    rule = f"must take {'the number of channels' if arguments else 'no arguments'} and return a module"
    try:
        layer = make(*arguments)
    except TypeError as error:
        raise SeparableValueError(f"{name}={make!r}: {rule}, but it raised: {error}") from error
    if not isinstance(layer, nn.Module):
        raise SeparableValueError(f"{name}={make!r}: {rule}, but it returned {layer!r}")
    return layer.to(device, dtype)


def placement(device: Any, dtype: Any) -> dict[str, Any]:
    """Check device and dtype of parameters, and return them as keyword arguments of a layer."""
    if device is not None:
        try:
            torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise SeparableValueError(f"device={device!r}: must be a device, such as 'cpu' or 'cuda:0'") from error
    if dtype is not None and not (isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype.is_complex)):
        raise SeparableValueError(f"dtype={dtype!r}: must be a floating-point type, such as torch.float32")
    return {"device": device, "dtype": dtype}


def window(
    dimensions: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any, padding_mode: Any
) -> dict[str, Any]:
    """Check kernel size, stride, padding and dilation, and return them as keyword arguments of ``torch.nn.ConvNd``."""
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
