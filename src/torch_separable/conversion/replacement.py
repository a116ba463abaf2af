"""Replace a convolution of a network by a depthwise separable layer, wherever the network holds it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from torch_separable._network.weights import COMPUTES_WEIGHT
from torch_separable.conversion.solvers.factorize import Factors
from torch_separable.conversion.variants import pads_same
from torch_separable.nn.separable import SEPARABLE

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def separable_layer(conv: Any, factors: tuple[Factors, ...], bias: Tensor | None) -> nn.Module:
    """Build the layer that replaces ``conv``, with its window, device, dtype, hooks, mode and ``requires_grad``.

    Args:
        conv: the dense convolution.
        factors: one entry for each group.
        bias: (M,); ``None`` for the dense layer's own.
    """
    layer: Any = _empty_layer(
        conv, factors[0].order, factors[0].rank, has_bias=bias is not None or conv.bias is not None
    )
    last = _copy_factors(layer, factors)
    if last.bias is not None:
        with torch.no_grad():
            last.bias.copy_(bias if bias is not None else conv.bias)
    # A computed weight is no parameter itself: it is trained if any parameter that it is computed from is.
    trained = any(p.requires_grad for name, p in conv.named_parameters() if name != "bias")
    layer.requires_grad_(trained)
    if last.bias is not None and conv.bias is not None:
        last.bias.requires_grad_(conv.bias.requires_grad)
    layer.train(conv.training)
    _copy_attributes(conv, layer)
    return layer  # type: ignore[no-any-return]


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a module everywhere ``model`` holds it: as a submodule, and in lists, tuples and dictionaries.

    A network may call a layer through a plain list that it keeps beside its submodules.
    """
    for parent in list(model.modules()):
        _replace_in(vars(parent), old, new)


def _replace_in(held: Any, old: nn.Module, new: nn.Module, within: tuple[Any, ...] = ()) -> Any:
    """Return ``held`` with ``new`` in place of ``old``. Lists and dictionaries are changed in place."""
    if held is old:
        return new
    if type(held) not in (tuple, list, dict, OrderedDict) or any(held is outer for outer in within):
        return held
    within = (*within, held)
    if type(held) is tuple:
        return tuple(_replace_in(value, old, new, within) for value in held)
    for key, value in list(held.items() if isinstance(held, dict) else enumerate(held)):
        replaced = _replace_in(value, old, new, within)
        if replaced is not value:
            held[key] = replaced
    return held


def _empty_layer(conv: Any, order: str, rank: int, has_bias: bool) -> Any:
    """Build the layer without initial values, which would cost time and change PyTorch's random state."""
    layer = SEPARABLE[len(conv.kernel_size)](
        conv.in_channels,
        conv.out_channels,
        tuple(conv.kernel_size),
        stride=tuple(conv.stride),
        padding=_padding_of(conv),
        dilation=tuple(conv.dilation),
        depth_multiplier=rank,
        bias=has_bias,
        padding_mode=conv.padding_mode,
        order=order,  # type: ignore[arg-type]
        groups=conv.groups,
        bias_between=False,
        device="meta",
        dtype=conv.weight.dtype,
    )
    return layer.to_empty(device=conv.weight.device)


def _padding_of(conv: Any) -> Any:
    if pads_same(conv):
        return "same"
    return conv.padding if isinstance(conv.padding, str) else tuple(conv.padding)


def _copy_factors(layer: Any, factors: tuple[Factors, ...]) -> Any:
    """Write the factors into the layer and return the convolution of it that runs last."""
    depthwise = torch.cat([f.depthwise for f in factors])
    pointwise = torch.cat([f.pointwise for f in factors])
    depthwise_first = factors[0].order == "depthwise_first"
    with torch.no_grad():
        layer.conv_dw.weight.copy_(depthwise.reshape(layer.conv_dw.weight.shape))
        if not depthwise_first:
            pointwise = pointwise.transpose(1, 2)
        layer.conv_pw.weight.copy_(pointwise.reshape(layer.conv_pw.weight.shape))
    return layer.conv_pw if depthwise_first else layer.conv_dw


def _copy_attributes(conv: Any, layer: Any) -> None:
    """Copy hooks and whatever else the network stored on its convolution, because it may ask for it."""
    base = next(kind for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(conv, kind))
    usual = {"weight", *vars(base(1, 1, 1, device="meta")), *vars(layer)}
    layer.__dict__.update({name: value for name, value in vars(conv).items() if name not in usual})
    for hooks in _HOOKS:
        kept = {i: h for i, h in getattr(conv, hooks).items() if not isinstance(h, COMPUTES_WEIGHT)}
        getattr(layer, hooks).update(kept)
    layer._is_full_backward_hook = conv._is_full_backward_hook
