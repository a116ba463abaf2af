"""Deep copies of networks, whole or on write, with an error that names what cannot be copied."""

from __future__ import annotations

import copy
from collections import Counter
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
    return _copied(model, {})


def copied_on_write(model: Network) -> Network:
    """Return a deep copy whose tensors share memory with the original until one of the two is written to.

    PyTorch copies a tensor at the first write to it, whether that is in the copy or in the original. A tensor is copied
    at once if PyTorch does not own its memory (NumPy arrays, mapped files, shared memory), or if its memory overlaps
    with that of another tensor of the network. A NumPy array that was made of a tensor before writes to both.

    Raises:
        SeparableError: as `copied`.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> copy = copied_on_write(layer)
        >>> with torch.no_grad():
        ...     before = layer.bias.clone()
        ...     _ = layer.bias.add_(1)
        >>> torch.equal(copy.bias, before)
        True
    """
    tensors = {id(tensor): tensor for tensor in _tensors(model) if _is_plain(tensor)}
    users = Counter(tensor.untyped_storage()._cdata for tensor in tensors.values())
    return _copied(
        model,
        {
            key: shared
            for key, tensor in tensors.items()
            if users[tensor.untyped_storage()._cdata] == 1 and (shared := _lazy_clone(tensor)) is not None
        },
    )


def _tensors(model: nn.Module) -> list[Tensor]:
    """Return parameters, buffers and the tensors in attributes of all modules."""
    return [leaf for module in model.modules() for leaf in tree_leaves(vars(module)) if isinstance(leaf, Tensor)]


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is nothing but strided CPU memory, so that a lazy clone is a full copy."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and tensor.grad_fn is None
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or vars(tensor))
    )


def _lazy_clone(tensor: Tensor) -> Tensor | None:
    try:
        shared: Tensor = torch._lazy_clone(tensor.detach())
    except RuntimeError:  # PyTorch does not own the memory, so it cannot know of writes
        return None
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(shared, tensor.requires_grad)
    return shared.requires_grad_(tensor.requires_grad)


def _copied(model: Network, memo: dict[int, Tensor]) -> Network:
    try:
        return copy.deepcopy(model, memo)
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
