"""Count the weights that a module stores, also those that are not plain parameters."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def stored_bytes(tensor: Tensor) -> int:
    """Return the bytes that a tensor stores.

    A wrapper subclass, such as the int8 weights of torchao, stores its inner tensors; its own dtype and shape are those
    of the tensor that it represents.

    Example:
        >>> import torch
        >>> stored_bytes(torch.zeros(2, 3))
        24
    """
    value: Any = tensor
    if is_traceable_wrapper_subclass(value):
        names, _ = value.__tensor_flatten__()
        return sum(stored_bytes(getattr(value, name)) for name in names)
    return tensor.numel() * tensor.element_size()


def packed_parameters(module: nn.Module) -> tuple[Tensor, ...]:
    """Return weight and bias of a quantized module of ``torch.ao``, which packs them outside of its parameters."""
    weight: Any = getattr(module, "weight", None)
    bias: Any = getattr(module, "bias", None)
    if not hasattr(module, "_packed_params") or not callable(weight) or not callable(bias):
        return ()
    return tuple(tensor for tensor in (weight(), bias()) if isinstance(tensor, Tensor))
