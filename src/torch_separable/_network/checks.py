"""Checks of the networks that callers pass in."""

from __future__ import annotations

import torch
from torch import nn

from torch_separable.errors import SeparableError, SeparableValueError


def as_network(model: object, name: str = "model") -> nn.Module:
    """Return ``model`` if it is an ``nn.Module`` that is not scripted.

    Args:
        model: what the caller was given.
        name: the argument's name, for the message.

    Raises:
        SeparableValueError: ``model`` is no ``nn.Module``, or a module in it is scripted or traced.

    Example:
        >>> as_network([nn.ReLU()])
        Traceback (most recent call last):
        torch_separable.errors.SeparableValueError: model is a list: expected a network (torch.nn.Module)
    """
    if not isinstance(model, nn.Module):
        held = isinstance(getattr(model, "model", None), nn.Module)
        raise SeparableValueError(
            f"{name} is a {type(model).__name__}: expected a network (torch.nn.Module)"
            + (", as its .model is" if held else "")
        )
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise SeparableValueError(
                f"{f'layer {path!r} of the {name}' if path else f'the {name}'} is scripted or traced, so its layers "
                "cannot be read: pass the module from before torch.jit"
            )
    return model


def precision_of(model: nn.Module) -> torch.dtype | None:
    """Return the dtype that all floating-point parameters share; ``None`` if they differ or if there are none."""
    types = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return types.pop() if len(types) == 1 else None


def require_float32(model: nn.Module, name: str, purpose: str) -> None:
    """Refuse a network whose parameters all have one dtype other than float32.

    Args:
        model: the network.
        name: the argument's name, for the message.
        purpose: the operation that needs float32, for the message.

    Raises:
        SeparableError: naming the dtype and ``purpose``.
    """
    precision = precision_of(model)
    if precision not in (None, torch.float32):
        of = str(precision).removeprefix("torch.")
        raise SeparableError(f"the {name} is in {of}: {purpose} needs float32. Convert it with {name}.float()")


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first parameter, or the CPU if there is none."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device
