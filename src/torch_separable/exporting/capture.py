"""Capture a network as the graph from which every exported file is written."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from torch_separable._network.all_outputs import tensors_in
from torch_separable._network.copying import copied
from torch_separable._network.outputs import holds_logits, logits_of
from torch_separable._network.weights import refresh_weights
from torch_separable.errors import SeparableError
from torch_separable.exporting.fold import fold_batch_norms
from torch_separable.runtime.modules import unfuse_modules

LOGITS = "logits"  # name of an output that is a tensor itself
# Batch sizes that are tried after the network has failed on another, to say which it accepts.
_BATCHES = (1, 2, 4, 8, 16, 32)


class Tensors(nn.Module):
    """A network wrapped to take only images and return the tensors in its output, as a tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images (N, C, H, W) to the tensors, in the order of their names."""
        return tuple(tensor for _, tensor in tensors_in(self.model(images)))


class Logits(nn.Module):
    """A network wrapped to take only images and return only its logits, as a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits."""
        return logits_of(self.model(images))


@dataclass(frozen=True)
class Ready:
    """A network ready for export.

    Attributes:
        network: maps images to one tensor, or to a tuple of tensors.
        outputs: names of the tensors.
    """

    network: nn.Module
    outputs: tuple[str, ...]

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of a copy of the images, which the network may modify in place."""
        with torch.no_grad():
            output = self.network(images.clone())
        return (output,) if isinstance(output, Tensor) else output


def prepared(model: nn.Module, input_shape: Sequence[int], batch: int | None) -> Ready:
    """Return a copy of a network for export: on the CPU, in evaluation mode and float32, with one tensor as input.

    Its output is a tensor if the network returns one, or something that holds logits. Otherwise it returns all
    tensors in the network's output.

    Wrappers of ``torch.compile`` and ``nn.DataParallel`` are removed, and layers of `fuse_modules` replaced by ordinary
    ones, because their operator exists only in this package.

    Args:
        model: the network.
        input_shape: shape of one image, (C, H, W).
        batch: the batch size to export for; ``None`` for a dynamic one.

    Raises:
        SeparableError: it does not accept a batch of such images; the message says which batch sizes it accepts.
    """
    refresh_weights(model)
    ready = copied(_unwrapped(model)).cpu().float().eval().requires_grad_(False)
    unfuse_modules(ready)
    example = torch.zeros(batch or 2, *input_shape)
    try:
        with torch.no_grad():
            output = ready(example)
    except Exception as error:
        accepted = [str(size) for size in _BATCHES if _accepts(ready, torch.zeros(size, *input_shape))]
        remedy = f". It accepts batches of {', '.join(accepted)}: give one as batch (--batch)" if accepted else ""
        raise SeparableError(
            f"{type(model).__name__} does not take images of shape {tuple(example.shape)}: {_first_line(error)}{remedy}"
        ) from error
    if isinstance(output, Tensor):
        return Ready(ready if _takes_one_argument(ready) else Logits(ready), (LOGITS,))
    if not holds_logits(output):
        names = tuple(_identifier(name) for name, _ in tensors_in(output))
        if not names or len(set(names)) < len(names):
            found = "no tensor" if not names else f"several tensors with the same name ({', '.join(names)})"
            raise SeparableError(
                f"{type(model).__name__} returns {type(output).__name__}, which holds {found}: wrap it in a module "
                "that returns tensors, a list of tensors or a mapping from names to tensors"
            )
        return Ready(Tensors(ready), names)
    logits = logits_of(output)
    others = (
        [name for name, value in dict(output).items() if value is not logits] if isinstance(output, Mapping) else []
    )
    if others:
        warnings.warn(
            f"{type(model).__name__} returns {', '.join(others)} besides its logits: only the logits are exported",
            stacklevel=3,
        )
    return Ready(Logits(ready), (LOGITS,))


def prepared_for_logits(model: nn.Module, input_shape: Sequence[int], batch: int | None) -> nn.Module:
    """Return a copy of a network as `prepared` does, from one tensor to one tensor.

    Raises:
        SeparableError: as `prepared`, or it returns several tensors without logits among them.
    """
    ready = prepared(model, input_shape, batch)
    if len(ready.outputs) > 1:
        raise SeparableError(
            f"{type(model).__name__} returns {len(ready.outputs)} tensors ({', '.join(ready.outputs)}): expected a "
            "tensor, or an object with `.logits`. Wrap the network in a module that returns one of them"
        )
    if isinstance(ready.network, Tensors):
        return nn.Sequential(ready.network, _Only())
    return ready.network


class _Only(nn.Module):
    def forward(self, outputs: tuple[Tensor, ...]) -> Tensor:
        return outputs[0]


def _identifier(name: str) -> str:
    """Return the name of an output as files may hold it: keys and indices are joined by underscores."""
    joined = re.sub(r"\W", "_", name)
    return f"output_{joined}" if joined[:1].isdigit() else joined


def _unwrapped(model: nn.Module) -> nn.Module:
    inner: Any = getattr(model, "_orig_mod", model)  # the module that torch.compile wraps
    while isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = inner.module
    return inner  # type: ignore[no-any-return]


def _accepts(model: nn.Module, images: Tensor) -> bool:
    try:
        with torch.no_grad():
            model(images)
    except Exception:
        return False
    return True


def _takes_one_argument(model: nn.Module) -> bool:
    """Whether forward has a single, positional parameter: torch.export relates dynamic sizes to the signature."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    return len(parameters) == 1 and parameters[0].kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )


def capture(
    model: nn.Module, input_shape: Sequence[int], batch: int | None, *, dynamic_size: bool = False
) -> ExportedProgram:
    """Capture a network with ``torch.export``, and fold batch norms into convolutions.

    Args:
        model: the network of `prepared`.
        input_shape: shape of one image, (C, H, W).
        batch: batch size; ``None`` for a dynamic one.
        dynamic_size: whether the sizes of the image, all dimensions but batch and channels, are dynamic.

    Raises:
        SeparableError: the network cannot be captured, or only for a fixed batch size or image size.
    """
    name = type(model.model if isinstance(model, Logits | Tensors) else model).__name__
    example = torch.zeros(2 if batch is None else batch, *input_shape)
    dynamic: dict[int, Any] = {0: Dim("batch", min=1)} if batch is None else {}
    if dynamic_size:
        dynamic |= dict.fromkeys(range(2, example.dim()), Dim.DYNAMIC)
    try:
        return _captured(model, example, dynamic)
    except Exception as error:
        line = _first_line(error)
        if dynamic_size and _is_captured(model, example, {k: v for k, v in dynamic.items() if k == 0}):
            raise SeparableError(
                f"{name} can be exported only for images of a fixed size: {line}. Leave out dynamic_size "
                "(--dynamic-size)"
            ) from error
        if batch is None and _is_captured(model, example, {k: v for k, v in dynamic.items() if k > 0}):
            raise SeparableError(
                f"{name} can be exported only for batches of a fixed size: {line}. Give batch=N (--batch N)"
            ) from error
        raise SeparableError(
            f"{name} cannot be exported: torch.export says {line}. Its forward may not branch on the values of tensors "
            "or leave PyTorch"
        ) from error


def _captured(model: nn.Module, example: Tensor, dynamic: Mapping[int, Any]) -> ExportedProgram:
    shapes = (dict(dynamic),) if dynamic else None
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        captured = torch.export.export(model, (example,), dynamic_shapes=shapes)
        graph = captured.module(check_guards=False)
        fold_batch_norms(graph)
        return torch.export.export(graph, (example,), dynamic_shapes=shapes)


def _is_captured(model: nn.Module, example: Tensor, dynamic: Mapping[int, Any]) -> bool:
    try:
        _captured(model, example, dynamic)
    except Exception:
        return False
    return True


def _first_line(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line.partition(" For more information")[0].rstrip(".:!")
