"""Activations of one argument, and operators that return their input in evaluation mode."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from torch_separable.runtime.graph.ir import RELU, Activate, Activation, ActivationKind, Copy
from torch_separable.runtime.graph.lower_common import Unsupported

if TYPE_CHECKING:
    from torch_separable.runtime.graph.lower import Lowering

aten = torch.ops.aten


def _activation(make: Callable[..., Activation]) -> Callable[[Lowering, fx.Node], None]:
    def activation_handler(lowering: Lowering, node: fx.Node) -> None:
        activation = make(*node.args[1:], **node.kwargs)
        source, layout = lowering.operand(node.args[0])
        lowering.record(node.name, lowering.shapes[source], layout)
        lowering.nodes.append(Activate(node.name, source, node.name, activation))

    return activation_handler


def _clamp(low: float | None = None, high: float | None = None, **named: float | None) -> Activation:
    low, high = named.get("min", named.get("min_val", low)), named.get("max", named.get("max_val", high))
    return Activation(alpha=-math.inf if low is None else float(low), beta=math.inf if high is None else float(high))


def _gelu(approximate: str = "none") -> Activation:
    return Activation(ActivationKind.GELU if approximate == "none" else ActivationKind.GELU_TANH)


def _elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Activation:
    if scale != 1 or input_scale != 1:
        raise Unsupported("an exponential linear unit with scales, as selu")
    return Activation(ActivationKind.ELU, float(alpha))


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Activation:
    if beta != 1 or threshold < 20:
        raise Unsupported("softplus with a beta or a threshold of its own")
    return Activation(ActivationKind.SOFTPLUS)


def dropout_handler(lowering: Lowering, node: fx.Node) -> None:
    """``dropout``: the identity in evaluation mode."""
    if node.args[2]:
        raise Unsupported("dropout that is active in evaluation mode")
    identity_handler(lowering, node)


def identity_handler(lowering: Lowering, node: fx.Node) -> None:
    """An operator that returns its input."""
    source, layout = lowering.operand(node.args[0])
    if lowering.blocks.get(source, 1) > 1:
        lowering.record(node.name, lowering.shapes[source], layout)
        lowering.nodes.append(Copy(node.name, source, node.name))
    else:
        lowering.add_view(node, lowering.arrangement(node.args[0]))


_K = ActivationKind
_DROPOUTS = (
    aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.feature_dropout_.default,
)  # fmt: skip
HANDLERS: dict[Any, Callable[[Lowering, fx.Node], None]] = dict.fromkeys(_DROPOUTS, dropout_handler)
for _packet, _make in {
    "relu": lambda: RELU,
    "relu6": lambda: Activation(alpha=0.0, beta=6.0),
    "hardtanh": lambda low=-1.0, high=1.0, **named: _clamp(low, high, **named),
    "clamp": _clamp,
    "leaky_relu": lambda slope=0.01, **named: Activation(_K.LEAKY_RELU, named.get("negative_slope", slope)),
    "silu": lambda: Activation(_K.SILU),
    "hardswish": lambda: Activation(_K.HARDSWISH),
    "hardsigmoid": lambda: Activation(_K.HARDSIGMOID),
    "sigmoid": lambda: Activation(_K.SIGMOID),
    "gelu": _gelu,
    "tanh": lambda: Activation(_K.TANH),
    "elu": _elu,
    "softplus": _softplus,
    "mish": lambda: Activation(_K.MISH),
    "exp": lambda: Activation(_K.EXP),
    "abs": lambda: Activation(_K.ABSOLUTE),
    "sqrt": lambda: Activation(_K.SQUARE_ROOT),
}.items():
    for _form in (_packet, f"{_packet}_"):
        if hasattr(aten, _form):
            HANDLERS[getattr(aten, _form).default] = _activation(_make)
