"""Deep copies of networks, with an error that names what cannot be copied."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from torch_separable.errors import SeparableError

Network = TypeVar("Network", bound=nn.Module)


def copied(model: Network) -> Network:
    """Return a deep copy of a network: parameters, buffers, hooks and all other attributes.

    Raises:
        SeparableError: an attribute cannot be copied, such as a lock, an open file, or a tensor that is part of an
            autograd graph; the message names it.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> copied(layer).weight is layer.weight
        False
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise SeparableError(f"{type(model).__name__} cannot be copied: {_culprit(model) or first}") from error


def _culprit(model: nn.Module) -> str | None:
    """Describe the first attribute that cannot be copied, and what to do about it."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_modules"):
                continue
            where = ".".join(part for part in (path, name) if part)
            if any(isinstance(leaf, Tensor) and leaf.grad_fn is not None for leaf in tree_leaves(value)):
                return (
                    f"{where} holds a tensor with a gradient history. Run the network once under torch.no_grad(), or "
                    f"set {where} to None"
                )
            try:
                with torch.no_grad():
                    copy.deepcopy(value)
            except Exception as error:
                first = (str(error).splitlines() or [type(error).__name__])[0]
                return f"{where}, of type {type(value).__name__} ({first}): remove it from the network first"
    return None
