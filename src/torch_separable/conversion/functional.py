"""Convolutions that a network calls as functions, which no module stands for."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from torch_separable._network.outputs import evaluating
from torch_separable.conversion.calibration.forward import run_batch
from torch_separable.conversion.calibration.images import Batch
from torch_separable.conversion.variants import CONVOLUTIONS

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class _Counter(TorchDispatchMode):
    """Counts convolutions with a spatial kernel outside of convolution modules."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inside = 0
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default and not self.inside:
            self.count += args[1][0, 0].numel() > 1
        return func(*args, **(kwargs or {}))

    def enter(self, *_: Any) -> None:
        self.inside += 1

    def leave(self, *_: Any) -> None:
        self.inside -= 1


def count_functional_convolutions(model: nn.Module, batch: Batch) -> int:
    """Return how many convolutions with a kernel above 1x1 a forward pass calls outside of ``nn.Conv`` modules.

    Exported graphs and networks that keep their weights as plain parameters call convolutions this way.

    Example:
        >>> class Functional(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        ...     def forward(self, x):
        ...         return torch.nn.functional.conv2d(x, self.weight)
        >>> count_functional_convolutions(Functional(), torch.zeros(1, 3, 8, 8))
        1
    """
    counter = _Counter()
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, (*CONVOLUTIONS, *_TRANSPOSED)):
                stack.callback(module.register_forward_pre_hook(counter.enter).remove)
                stack.callback(module.register_forward_hook(counter.leave, always_call=True).remove)
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(counter)
        run_batch(model, batch)
    return counter.count
