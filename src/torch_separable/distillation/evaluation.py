"""How often a network is right."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_separable._console.notebook import table
from torch_separable._console.progress import progress_bar
from torch_separable._network.checks import as_network, precision_of
from torch_separable._network.outputs import evaluating, logits_of
from torch_separable.data.image_data import ImageData
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.nn.rank_by_rank import rank_by_rank


@dataclass(frozen=True)
class Evaluation:
    """The result of ``evaluate``.

    Attributes:
        correct: images whose largest logit is that of their label.
        count: images tried.
        loss: mean cross-entropy, in nats.

    Example:
        >>> print(Evaluation(correct=973, count=1000, loss=0.0912))
        97.30 % of 1000, loss 0.0912
    """

    correct: int
    count: int
    loss: float

    @property
    def accuracy(self) -> float:
        """Share of images that are classified right, 0..1."""
        return self.correct / self.count

    def to_dict(self) -> dict[str, float | int]:
        """The numbers by name, for JSON."""
        return {"correct": self.correct, "count": self.count, "accuracy": self.accuracy, "loss": self.loss}

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.2f} % of {self.count}, loss {self.loss:.4f}"

    def _repr_html_(self) -> str:
        right = f"{100 * self.accuracy:.2f} % ({self.correct:,} of {self.count:,})"
        return table((), [("accuracy", right), ("loss", f"{self.loss:.4f}")])


def evaluate(model: Callable[..., Any], data: ImageData, batch_size: int = 256, *, progress: bool = True) -> Evaluation:
    """Classify every image of ``data`` and compare with its label.

    The network runs in evaluation mode, on the device and in the precision of its parameters; each module's mode is
    restored.

    Args:
        model: takes images (n, C, H, W) and returns logits (n, classes), or an object with ``.logits``; what `compile`
            returned is tried like the network itself.
        data: labelled images.
        batch_size: images in one pass; it decides speed and memory, not the result.
        progress: whether a bar may appear on a terminal after two seconds.

    Raises:
        SeparableError: ``data`` has no labels, the network cannot take its images, the logits have another shape or
            too few classes, or are not finite.

    Example:
        >>> import torch
        >>> data = ImageData("two", "test", torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0, 1]), ("a", "b"))
        >>> brightness = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 2, bias=False))
        >>> with torch.no_grad():
        ...     _ = brightness[1].weight.copy_(torch.tensor([[-1.0], [1.0]]))
        >>> evaluate(brightness, data).accuracy
        1.0
    """
    require_images(data, "data")
    require_labels(data, "evaluation")
    if batch_size < 1:
        raise SeparableValueError(f"batch_size={batch_size}: must be at least 1")
    total = torch.zeros(2, dtype=torch.float64)
    with ExitStack() as stack:
        where: dict[str, Any] = {}
        if isinstance(model, nn.Module) or not callable(model):
            network = as_network(model)
            stack.enter_context(evaluating(network))
            stack.enter_context(rank_by_rank(network))
            where = {"device": device_of(network), "dtype": precision_of(network)}
        stack.enter_context(torch.inference_mode())
        advance = stack.enter_context(progress_bar("evaluating", len(data), shown=progress))
        for images, labels in data.batches(batch_size):
            total += _count(logits_for(model, images.to(**where), data).cpu(), labels, data)
            advance(steps=len(images))
    return evaluation_of(total, len(data))


def evaluation_of(total: Tensor, count: int) -> Evaluation:
    """The result from the sums (correct, loss) over ``count`` images."""
    correct, loss = total.tolist()
    return Evaluation(round(correct), count, loss / count)


def logits_for(model: Callable[[Tensor], Any], images: Tensor, data: ImageData, name: str = "network") -> Tensor:
    """Run ``model`` on images (n, C, H, W) of ``data``; if it cannot take them, say so with their shape."""
    try:
        return logits_of(model(images))
    except SeparableError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise SeparableError(
            f"the {name} cannot take images of shape {tuple(images.shape)} (N, C, H, W) of {data.name}: {first}"
        ) from error


def require_images(data: object, name: str) -> None:
    """Refuse what is no `ImageData`."""
    if not isinstance(data, ImageData):
        raise SeparableValueError(
            f"{name} is a {type(data).__name__}: expected an ImageData, as load_data(...) returns, or made of tensors: "
            "ImageData(name, split, images, labels)"
        )


def require_labels(data: ImageData, purpose: str) -> None:
    """Refuse unlabelled data for a ``purpose`` that needs labels."""
    if not data.labelled:
        raise SeparableError(f"{data.name} ({data.split}) has no labels: {purpose} needs them")


def _count(logits: Tensor, labels: Tensor, data: ImageData) -> Tensor:
    if logits.ndim != 2 or len(logits) != len(labels) or logits.shape[1] < len(data.classes):
        raise SeparableError(
            f"the network gives logits of shape {tuple(logits.shape)} for {len(labels)} images of {data.name}: "
            f"must be ({len(labels)}, {len(data.classes)}), one number for each of its classes"
        )
    if not logits.isfinite().all():
        raise SeparableError(
            f"the network gives NaN or infinite logits on {data.name}: its weights are of a failed training"
        )
    correct = (logits.argmax(1) == labels).sum()
    loss = F.cross_entropy(logits.float(), labels, reduction="sum")
    return torch.stack([correct.double(), loss.double()])


def device_of(model: nn.Module) -> torch.device:
    """Where the network's first parameter is; the CPU for a network without any."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device
