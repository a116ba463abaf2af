"""Run a network in evaluation mode, and read its output as one tensor of logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torch_separable.errors import SeparableError


def logits_of(output: object) -> Tensor:
    """Return the logits in a network's output: the tensor itself, or what ``.logits`` or ``["logits"]`` holds.

    Models of ``transformers`` return an object with ``.logits``; torchvision's segmentation networks return a mapping
    with the entry ``out``.

    Raises:
        SeparableError: the output holds no such tensor.

    Example:
        >>> import torch
        >>> logits_of({"logits": torch.zeros(2, 10), "boxes": torch.zeros(2, 4)}).shape
        torch.Size([2, 10])
    """
    found = _logits(output)
    if found is None:
        raise SeparableError(
            f"the network returned {type(output).__name__}, which holds no logits: expected a tensor, or an object "
            "with `.logits`; wrap the network in a module that returns the tensor"
        )
    return found


def holds_logits(output: object) -> bool:
    """Whether `logits_of` finds a tensor.

    Example:
        >>> import torch
        >>> holds_logits((torch.zeros(2, 10), torch.zeros(2, 4)))
        False
    """
    return _logits(output) is not None


def _logits(output: object) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    found = getattr(output, "logits", None)
    if found is None and isinstance(output, Mapping):
        found = output.get("logits", output.get("out"))
    return found if isinstance(found, Tensor) else None


def predictions(logits: Tensor) -> Tensor:
    """Return the class of each image, or of each position. A single logit means class True where it is above 0.

    Args:
        logits: (n, classes, ...), or (n,).

    Returns:
        (n, ...), without the class dimension.

    Example:
        >>> predictions(torch.tensor([[0.0, 2.0], [1.0, -1.0]])), predictions(torch.tensor([[3.0], [-3.0]]))
        (tensor([1, 0]), tensor([ True, False]))
    """
    if logits.dim() < 2:
        return logits > 0
    return logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode for the block, and restore modes and buffers afterwards.

    Only the ``training`` flag is set: a network's own ``train`` and ``eval`` may do more, such as merging adapters into
    weights. Buffers are restored because a forward pass may write them in evaluation mode as well, for example to count
    calls.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, None if buffer is None or is_lazy(buffer) or buffer.is_meta else buffer.detach().clone())
        for module, _ in modes
        for name, buffer in module._buffers.items()
    ]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, name, buffer, held in buffers:
            module._buffers[name] = buffer
            if buffer is not None and held is not None:
                _put_back(buffer, held)


def _put_back(buffer: Tensor, held: Tensor) -> None:
    with torch.no_grad(), torch.inference_mode(buffer.is_inference()):
        if buffer.layout != torch.strided or not torch.equal(buffer, held):
            buffer.copy_(held)
