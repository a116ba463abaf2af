"""Check that a network's weights are finite, and refresh the weights that hooks compute before each call."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from torch_separable.errors import SeparableError

# Hooks that compute the weight before each call. A parametrization (`torch.nn.utils.parametrize`) needs none.
COMPUTES_WEIGHT = (WeightNorm, SpectralNorm, BasePruningMethod)


def check_weights(model: nn.Module) -> None:
    """Check that all parameters and buffers are finite; buffers that may hold a mask may be infinite.

    Raises:
        SeparableError: naming the first parameter or buffer that is not finite, that is uninitialized, or that is a
            tensor subclass, as quantization libraries use them.
    """
    free = buffers_that_may_be_infinite(model)
    named: Any = (*model.named_parameters(), *model.named_buffers())
    for name, tensor in named:
        if is_traceable_wrapper_subclass(tensor):
            raise SeparableError(
                f"{name} is a {type(tensor).__name__}, a tensor subclass that stores other tensors: give the network "
                "with plain floating-point weights, from before it was quantized or sharded"
            )
        if is_lazy(tensor):
            raise SeparableError(f"{name} is uninitialized: load the weights, or run the network on an image first")
        if tensor.is_floating_point() and (tensor.isnan() if name in free else ~tensor.isfinite()).any():
            raise SeparableError(f"{name} holds NaN or infinity: load weights that are finite")


def buffers_that_may_be_infinite(model: nn.Module) -> set[str]:
    """Return the names of buffers that may hold infinities, as masks do: all but the statistics of batch norms."""
    return {
        f"{name}.{buffer}" if name else buffer
        for name, module in model.named_modules()
        if not isinstance(module, nn.modules.batchnorm._BatchNorm)
        for buffer in module._buffers
    }


def refresh_weights(model: nn.Module) -> None:
    """Recompute the weights that hooks compute before each call: ``weight_norm``, ``spectral_norm`` and pruning.

    Between calls such a weight is a plain attribute. It may be out of date, and it may be part of an autograd graph,
    in which case the network cannot be copied.
    """
    with torch.no_grad():
        for module in model.modules():
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, SpectralNorm):
                    setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))
                elif isinstance(hook, COMPUTES_WEIGHT):
                    hook(module, ())
