"""The terms of the distillation loss, one value per image, and the hooks that collect intermediate features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torch_separable.errors import SeparableError, SeparableValueError


def logits_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return KL(teacher ‖ student) of the softened class probabilities, times temperature².

    Hinton et al., "Distilling the knowledge in a neural network", arXiv 1503.02531. The factor temperature² keeps the
    magnitude of the gradient independent of the temperature.

    Args:
        student: logits (N, classes, ...); dimensions after the classes are averaged.
        teacher: logits of the same shape.
        temperature: divisor of both logits.

    Returns:
        The divergence of each image in nats, (N,).

    Example:
        >>> import torch
        >>> logits = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
        >>> logits_divergence(logits, logits, temperature=2.0)
        tensor([0., 0.])
    """
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)
    return divergence.flatten(1).mean(1) * temperature**2 if divergence.ndim > 1 else divergence * temperature**2


def feature_distance(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return ‖student - teacher‖² / ‖teacher‖² of each image, averaged over the layers.

    Args:
        student: one tensor (N, ...) per layer.
        teacher: tensors of the same shapes.

    Returns:
        The distance of each image, (N,); 1 if all features of the student are 0.
    """
    parts = []
    for ours, theirs in zip(student, teacher, strict=True):
        squared = _squared_length(theirs.float()).clamp_min(1e-12)
        parts.append(_squared_length(ours.float() - theirs.float()) / squared)
    return torch.stack(parts).mean(0)


class _SquaredLength(torch.autograd.Function):
    """Sum of squares of each image, (N, ...) to (N,), in one pass over memory forward and backward.

    Features are large. Composed from PyTorch operators, the same result takes three times the memory traffic:
    flattening copies channels-last tensors, and the gradient of the norm searches for zeros.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        length: Tensor = torch.linalg.vector_norm(values, dim=tuple(range(1, values.ndim)))
        return length.square()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        values: Tensor = ctx.saved_tensors[0]
        scaled: Tensor = values * (2 * gradients[0]).view(-1, *[1] * (values.ndim - 1))
        return scaled


def _squared_length(values: Tensor) -> Tensor:
    length: Tensor = _SquaredLength.apply(values)  # type: ignore[no-untyped-call]
    return length


def matched_features(student: nn.Module, teacher: nn.Module, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the modules whose outputs are compared: ``names``, or all converted modules.

    A module counts as converted if its name occurs in both networks and its type differs. Of nested converted modules
    only the outermost is returned.

    Raises:
        SeparableValueError: a name is missing in one of the networks, or no module is converted.
    """
    ours, theirs = dict(student.named_modules()), dict(teacher.named_modules())
    if names is not None:
        for name in names:
            for whose, modules in (("student", ours), ("teacher", theirs)):
                if name not in modules:
                    raise SeparableValueError(f"features names {name!r}, but the {whose} has no module of that name")
        return tuple(names)
    converted = [name for name in theirs if name and name in ours and type(ours[name]) is not type(theirs[name])]
    outermost = tuple(
        name for name in converted if not any(name.startswith(f"{outer}.") for outer in converted if outer != name)
    )
    if not outermost:
        raise SeparableValueError(
            "feature_weight is above 0, but every module of the student has the same type as the teacher's module of "
            "that name: name the modules to compare with features=(...)"
        )
    return outermost


@contextmanager
def watching(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Yield a dictionary that holds the last output of each module in ``names`` after every forward pass."""
    seen: dict[str, Tensor] = {}
    modules = dict(model.named_modules())

    def keep(name: str) -> RemovableHandle:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not isinstance(output, Tensor):
                raise SeparableError(
                    f"module {name!r} returns {type(output).__name__}, not a tensor: remove it from features"
                )
            seen[name] = output

        handle: RemovableHandle = modules[name].register_forward_hook(hook)
        return handle

    handles = [keep(name) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
