"""Copies of networks, which nothing that is done to them leads back from."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from torch_separable.errors import SeparableError

Network = TypeVar("Network", bound=nn.Module)


def copied(model: Network) -> Network:
    """Return a deep copy of a network: weights, buffers, hooks and whatever else it holds.

    Raises:
        SeparableError: it holds something that cannot be copied, as a lock, an open file, or a tensor that a pass with
            gradients left; the message names it.

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
    """The first thing in a network that cannot be copied, and what to do about it."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_modules"):
                continue
            where = ".".join(part for part in (path, name) if part)
            if any(isinstance(leaf, Tensor) and leaf.grad_fn is not None for leaf in tree_leaves(value)):
                return (
                    f"{where} holds what a pass with gradients left there. Run the network once under torch.no_grad(), "
                    f"or set {where} to None"
                )
            try:
                with torch.no_grad():
                    copy.deepcopy(value)
            except Exception as error:
                first = (str(error).splitlines() or [type(error).__name__])[0]
                return f"{where}, of type {type(value).__name__} ({first}): take it out of the network first"
    return None
