"""What the student is taught: the teacher's logits, its inner features, the labels. One number for each image."""

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
    """Kullback-Leibler divergence of the student's from the teacher's softened classes, times temperature².

    Hinton et al., "Distilling the knowledge in a neural network", arXiv 1503.02531: the factor keeps the gradient's
    size when the temperature changes.

    Args:
        student: logits (n, classes, ...); positions after the classes are averaged.
        teacher: logits of the same shape.
        temperature: by which both are divided.

    Returns:
        One number, in nats, for each image (n,).

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
    """Squared distance of features relative to the teacher's squared length, averaged over the layers.

    Args:
        student: one tensor (n, ...) for each layer.
        teacher: the same of the teacher.

    Returns:
        One number for each image (n,); 1 is the distance of a student whose features are 0.
    """
    parts = []
    for ours, theirs in zip(student, teacher, strict=True):
        squared = _squared_length(theirs.float()).clamp_min(1e-12)
        parts.append(_squared_length(ours.float() - theirs.float()) / squared)
    return torch.stack(parts).mean(0)


class _SquaredLength(torch.autograd.Function):
    """Sum of the squares of each image's values, (n, ...) to (n,): in one pass each way, whatever the memory format.

    Features are large, and operators put together read and write them three times as often: flattening copies
    channels-last tensors, the norm's own gradient looks for zeros.
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
    """Names of the modules whose outputs are compared: ``names``, or all that the student has converted.

    A converted module has the same name in both networks and another type in the student; of nested ones, the outermost
    counts.

    Raises:
        SeparableValueError: a name is no module of both, or nothing is converted.
    """
    ours, theirs = dict(student.named_modules()), dict(teacher.named_modules())
    if names is not None:
        for name in names:
            for whose, modules in (("student", ours), ("teacher", theirs)):
                if name not in modules:
                    raise SeparableValueError(f"features names {name!r}, which is no module of the {whose}")
        return tuple(names)
    converted = [name for name in theirs if name and name in ours and type(ours[name]) is not type(theirs[name])]
    outermost = tuple(
        name for name in converted if not any(name.startswith(f"{outer}.") for outer in converted if outer != name)
    )
    if not outermost:
        raise SeparableValueError(
            "feature_weight is above 0, but no module of the student differs in type from the teacher's module of the "
            "same name: name the modules to compare by features=(...)"
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
                    f"module {name!r} returns {type(output).__name__}, not a tensor: leave it out of features"
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
