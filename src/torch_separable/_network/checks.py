"""What functions that take a network accept, and what they say of anything else."""

from __future__ import annotations

import torch
from torch import nn

from torch_separable.errors import SeparableError, SeparableValueError


def as_network(model: object, name: str = "model") -> nn.Module:
    """Return ``model`` if it is a network whose layers can be seen.

    Raises:
        SeparableValueError: it is something else, or scripted; ``name`` is what the message calls it.

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
                f"{f'layer {path!r} of the {name}' if path else f'the {name}'} is scripted or traced, which hides its "
                "layers: give the module before torch.jit.script"
            )
    return model


def precision_of(model: nn.Module) -> torch.dtype | None:
    """The type of all floating-point weights of a network; ``None`` where they have several, or there are none."""
    types = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return types.pop() if len(types) == 1 else None


def require_float32(model: nn.Module, name: str, purpose: str) -> None:
    """Refuse a network all of whose weights have another precision.

    Raises:
        SeparableError: naming the precision, and ``purpose``, which needs float32.
    """
    precision = precision_of(model)
    if precision not in (None, torch.float32):
        of = str(precision).removeprefix("torch.")
        raise SeparableError(f"the {name} is in {of}: {purpose} needs float32, {name}.float()")
