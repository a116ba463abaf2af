"""Fold batch norms into the convolutions before them, in a captured graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

_aten = torch.ops.aten
_CONVOLUTIONS = {
    _aten.conv1d.default,
    _aten.conv1d.padding,
    _aten.conv2d.default,
    _aten.conv2d.padding,
    _aten.conv3d.default,
    _aten.conv3d.padding,
}


def fold_batch_norms(module: fx.GraphModule) -> int:
    """Fold every batch norm that is the only reader of a convolution into its weights; return their number.

    In evaluation mode a batch norm is the affine function ``γ (y − μ) / √(σ² + ε) + β`` of each channel, which can be
    part of the convolution's kernel and bias. Convolutions whose weights are computed in the graph are not changed.

    Args:
        module: a captured module in evaluation mode, ``torch.export.export(...).module()``; it is changed in place.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
        >>> captured = torch.export.export(net, (torch.zeros(1, 3, 8, 8),)).module(check_guards=False)
        >>> fold_batch_norms(captured)
        1
    """
    folded = 0
    for norm in list(module.graph.nodes):
        conv = _convolution_before(norm)
        if conv is not None:
            _fold(module, conv, norm)
            folded += 1
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return folded


def _convolution_before(norm: fx.Node) -> fx.Node | None:
    if norm.target is not _aten.batch_norm.default or norm.kwargs or norm.args[5]:
        return None
    conv = norm.args[0]
    if not isinstance(conv, fx.Node) or conv.target not in _CONVOLUTIONS or len(conv.users) != 1:
        return None
    tensors = [*conv.args[1:2], _bias_of(conv), *norm.args[1:5]]
    stored = all(tensor is None or (isinstance(tensor, fx.Node) and tensor.op == "get_attr") for tensor in tensors)
    return conv if stored and isinstance(norm.args[3], fx.Node) else None


def _bias_of(conv: fx.Node) -> Any:
    return conv.args[2] if len(conv.args) > 2 else conv.kwargs.get("bias")


def _fold(module: fx.GraphModule, conv: fx.Node, norm: fx.Node) -> None:
    kernel: Any = conv.args[1]
    weight = _value(module, kernel)
    assert weight is not None
    gamma, beta, mean, variance = (_value(module, tensor) for tensor in norm.args[1:5])
    assert mean is not None
    assert variance is not None
    eps: Any = norm.args[7]
    scale = (variance + eps).rsqrt()
    if gamma is not None:
        scale = scale * gamma
    bias = _value(module, _bias_of(conv))
    shift = (-mean if bias is None else bias - mean) * scale
    if beta is not None:
        shift = shift + beta

    layer, _, name = str(kernel.target).rpartition(".")
    owner = module.get_submodule(layer)
    path = f"{layer}." if layer else ""
    shared = len(kernel.users) > 1 or _uses(module, str(kernel.target)) > 1
    # The module's `bias` may belong to another convolution, or have another reader.
    own = getattr(_bias_of(conv), "target", None) == f"{path}bias" and _uses(module, f"{path}bias") == 1
    taken = getattr(owner, "bias", None) is not None and not own
    suffix = f"_{norm.name}" if shared or taken else ""  # other readers need the original: add a new parameter
    dtype = _stored(module, kernel).dtype
    with module.graph.inserting_before(conv):
        for key, value in ((name, weight * scale.view(-1, *[1] * (weight.dim() - 1))), ("bias", shift)):
            setattr(owner, key + suffix, nn.Parameter(value.to(dtype), requires_grad=False))
        folded = tuple(module.graph.get_attr(f"{path}{key}{suffix}") for key in (name, "bias"))
    conv.args = (conv.args[0], *folded, *conv.args[3:])
    conv.kwargs = {key: value for key, value in conv.kwargs.items() if key != "bias"}
    norm.replace_all_uses_with(conv)
    module.graph.erase_node(norm)


def _uses(module: fx.GraphModule, target: str) -> int:
    return sum(len(node.users) for node in module.graph.nodes if node.op == "get_attr" and node.target == target)


def _stored(module: fx.GraphModule, node: Any) -> torch.Tensor:
    layer, _, name = str(node.target).rpartition(".")
    tensor: torch.Tensor = getattr(module.get_submodule(layer), name)
    return tensor.detach()


def _value(module: fx.GraphModule, node: Any) -> torch.Tensor | None:
    return None if node is None else _stored(module, node).double()
