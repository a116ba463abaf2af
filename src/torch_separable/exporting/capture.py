"""Capture a network as the graph from which every exported file is written."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from torch_separable._network.copying import copied
from torch_separable._network.outputs import logits_of
from torch_separable._network.weights import refresh_weights
from torch_separable.errors import SeparableError
from torch_separable.exporting.fold import fold_batch_norms


class Logits(nn.Module):
    """A network wrapped to return only its logits, as a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits."""
        return logits_of(self.model(images))


def prepared(model: nn.Module, input_shape: Sequence[int]) -> nn.Module:
    """Return a copy of a network for export: on the CPU, in evaluation mode and float32, with a tensor as output.

    Raises:
        SeparableError: it does not accept images of this shape.
    """
    refresh_weights(model)
    ready = copied(model).cpu().float().eval().requires_grad_(False)
    example = torch.zeros(2, *input_shape)
    try:
        with torch.no_grad():
            output = ready(example)
    except Exception as error:
        raise SeparableError(
            f"{type(model).__name__} does not take images of shape {tuple(example.shape)}: {_first_line(error)}. Give "
            "the shape of one image as input_shape (--input)"
        ) from error
    if isinstance(output, Tensor):
        return ready
    logits = logits_of(output)
    others = (
        [name for name, value in dict(output).items() if value is not logits] if isinstance(output, Mapping) else []
    )
    if others:
        warnings.warn(
            f"{type(model).__name__} returns {', '.join(others)} besides its logits: only the logits are exported",
            stacklevel=3,
        )
    return Logits(ready)


def capture(model: nn.Module, input_shape: Sequence[int], batch: int | None) -> ExportedProgram:
    """Capture a network with ``torch.export``, and fold batch norms into convolutions.

    Args:
        model: the result of `prepared`.
        input_shape: shape of one image, (C, H, W).
        batch: batch size; ``None`` for a dynamic one.

    Raises:
        SeparableError: the network cannot be captured, or only for a fixed batch size.
    """
    name = type(model.model if isinstance(model, Logits) else model).__name__
    example = torch.zeros(2 if batch is None else batch, *input_shape)
    dynamic = ({0: Dim("batch", min=1)},) if batch is None else None
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            captured = torch.export.export(model, (example,), dynamic_shapes=dynamic)
            graph = captured.module(check_guards=False)
            fold_batch_norms(graph)
            return torch.export.export(graph, (example,), dynamic_shapes=dynamic)
    except Exception as error:
        line = _first_line(error)
        if batch is None and _is_captured(model, example):
            raise SeparableError(
                f"{name} can be exported only for batches of a fixed size: {line}. Give batch=N (--batch N)"
            ) from error
        raise SeparableError(
            f"{name} cannot be exported: torch.export says {line}. Its forward may not branch on the values of tensors "
            "or leave PyTorch"
        ) from error


def _is_captured(model: nn.Module, example: Tensor) -> bool:
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            torch.export.export(model, (example,))
    except Exception:
        return False
    return True


def _first_line(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line.partition(" For more information")[0].rstrip(".:!")
