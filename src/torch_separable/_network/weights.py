"""The weights of any network: whether they are finite, and those that hooks compute before each call."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from torch_separable.errors import SeparableError

# Hooks that compute the weight before each call. A parametrization (`torch.nn.utils.parametrize`) needs none.
COMPUTES_WEIGHT = (WeightNorm, SpectralNorm, BasePruningMethod)


def check_weights(model: nn.Module) -> None:
    """Raise a SeparableError that names the first parameter or buffer holding NaN, or infinity where it has no use."""
    free = buffers_that_may_be_infinite(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise SeparableError(f"weights {name} do not exist yet: load them, or run the network on an image first")
        if tensor.is_floating_point() and (tensor.isnan() if name in free else ~tensor.isfinite()).any():
            raise SeparableError(f"weights {name} hold NaN or infinity: load the weights of a finished training")


def buffers_that_may_be_infinite(model: nn.Module) -> set[str]:
    """Names of the buffers in which infinities have their uses, as in masks: all but the statistics of batch norms."""
    return {
        f"{name}.{buffer}" if name else buffer
        for name, module in model.named_modules()
        if not isinstance(module, nn.modules.batchnorm._BatchNorm)
        for buffer in module._buffers
    }


def refresh_weights(model: nn.Module) -> None:
    """Compute anew the weights that hooks compute before each call: ``weight_norm``, ``spectral_norm`` and pruning.

    Between calls they are plain attributes, which may be older than what they are computed from, and which hang on a
    graph, so that the network cannot be copied.
    """
    with torch.no_grad():
        for module in model.modules():
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, SpectralNorm):
                    setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))
                elif isinstance(hook, COMPUTES_WEIGHT):
                    hook(module, ())
