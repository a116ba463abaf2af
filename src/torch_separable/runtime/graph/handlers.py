"""The operators that are lowered to nodes, each with its handler."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from torch_separable.runtime.graph import (
    lower_activation,
    lower_attention,
    lower_convolution,
    lower_elementwise,
    lower_norms,
    lower_pooling,
    lower_resample,
    lower_views,
)

if TYPE_CHECKING:
    from torch_separable.runtime.graph.lower import Lowering

aten = torch.ops.aten

Handler = Callable[["Lowering", fx.Node], None]

# Handlers that record the shape of their result themselves, or make a view that has none.
_RECORD_OWN_SHAPE: dict[Any, Handler] = {
    **lower_activation.HANDLERS,
    **lower_views.HANDLERS,
    **lower_elementwise.HANDLERS,
    **lower_resample.HANDLERS,
    **lower_norms.HANDLERS,
    **lower_attention.HANDLERS,
}
HANDLERS: dict[Any, Handler] = {**lower_convolution.HANDLERS, **lower_pooling.HANDLERS, **_RECORD_OWN_SHAPE}
RECORD_OWN_SHAPE = frozenset({*_RECORD_OWN_SHAPE, aten.linear.default})

# What may stand between the two convolutions of a separable layer without mixing channels.
CHANNELWISE = frozenset({*lower_activation.HANDLERS, aten.batch_norm.default})
