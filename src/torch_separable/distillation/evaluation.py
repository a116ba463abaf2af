"""Accuracy and loss of a network on labelled images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_separable._console.notebook import table
from torch_separable._console.progress import progress_bar
from torch_separable._network.checks import as_network, device_of, precision_of
from torch_separable._network.outputs import evaluating, logits_of
from torch_separable.data.collect import collect_images
from torch_separable.data.image_data import ImageData
from torch_separable.distillation.comparison import Comparison, Selection, compare_networks
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.nn.rank_by_rank import rank_by_rank


@dataclass(frozen=True)
class Evaluation:
    """The result of ``evaluate``.

    Attributes:
        correct: images whose largest logit is the one of their label.
        count: number of images.
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
        """Share of correctly classified images, 0..1."""
        return self.correct / self.count

    def to_dict(self) -> dict[str, float | int]:
        """Return the numbers by name, as JSON types."""
        return {"correct": self.correct, "count": self.count, "accuracy": self.accuracy, "loss": self.loss}

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.2f} % of {self.count}, loss {self.loss:.4f}"

    def _repr_html_(self) -> str:
        right = f"{100 * self.accuracy:.2f} % ({self.correct:,} of {self.count:,})"
        return table((), [("accuracy", right), ("loss", f"{self.loss:.4f}")])


@overload
def evaluate(model: Callable[..., Any], data: Any, batch_size: int = 256, *, progress: bool = True) -> Evaluation: ...


@overload
def evaluate(
    model: Callable[..., Any],
    data: Any,
    batch_size: int = 256,
    *,
    reference: Callable[..., Any],
    outputs: Selection | None = None,
    progress: bool = True,
) -> Comparison: ...


def evaluate(
    model: Callable[..., Any],
    data: Any,
    batch_size: int = 256,
    *,
    reference: Callable[..., Any] | None = None,
    outputs: Selection | None = None,
    progress: bool = True,
) -> Evaluation | Comparison:
    """Classify every image of ``data`` and compare the result with its label, or with the outputs of a reference.

    The network runs in evaluation mode, on the device and in the precision of its parameters; the mode of each module
    is restored afterwards. With a ``reference``, such as the dense network, no labels are needed, and the networks may
    return any structure of tensors: detectors, segmentation networks with auxiliary heads, recurrent networks.

    Args:
        model: takes images (N, C, H, W) and returns logits (N, classes) or an object with ``.logits``; also a network
            returned by `compile`.
        data: labelled images: an `ImageData`, or a ``DataLoader``, a data set or a sequence of (image, label).
        batch_size: images in one forward pass; affects speed and memory, not the result.
        reference: network whose outputs are compared instead of the labels.
        outputs: with a reference, names or weights of the outputs to compare, as in `convert`; by default all.
        progress: whether to show a progress bar on a terminal after two seconds.

    Returns:
        The accuracy and loss; with a reference, the change of the outputs relative to their variance.

    Raises:
        SeparableError: ``data`` has no labels, the network fails on its images, or the logits are not finite or have
            the wrong shape. With a reference: an output has another shape in the two networks, or none varies.

    Example:
        >>> import torch
        >>> data = ImageData("two", "test", torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0, 1]), ("a", "b"))
        >>> brightness = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 2, bias=False))
        >>> with torch.no_grad():
        ...     _ = brightness[1].weight.copy_(torch.tensor([[-1.0], [1.0]]))
        >>> evaluate(brightness, data).accuracy
        1.0
        >>> round(evaluate(lambda images: 1.1 * brightness(images), data, reference=brightness).output_error, 3)
        0.02
    """
    data = collect_images(data, name="data")
    if batch_size < 1:
        raise SeparableValueError(f"batch_size={batch_size}: must be at least 1")
    if reference is not None:
        return compare_networks(model, reference, data, batch_size, outputs, progress=progress)
    if outputs is not None:
        raise SeparableValueError("outputs= selects outputs to compare with a reference: give reference=... too")
    require_labels(data, "evaluation")
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
    """Return the evaluation for the sums (correct, loss) over ``count`` images."""
    correct, loss = total.tolist()
    return Evaluation(round(correct), count, loss / count)


def logits_for(model: Callable[[Tensor], Any], images: Tensor, data: ImageData, name: str = "network") -> Tensor:
    """Run ``model`` on images (N, C, H, W) of ``data``; if that fails, raise an error with their shape."""
    try:
        return logits_of(model(images))
    except SeparableError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise SeparableError(
            f"the {name} fails on images of shape {tuple(images.shape)} (N, C, H, W) of {data.name}: {first}"
        ) from error


def require_labels(data: ImageData, purpose: str) -> None:
    """Raise if ``data`` has no labels, naming the ``purpose`` that needs them."""
    if not data.labelled:
        raise SeparableError(f"{data.name} ({data.split}) has no labels: {purpose} needs them")


def _count(logits: Tensor, labels: Tensor, data: ImageData) -> Tensor:
    if logits.ndim != 2 or len(logits) != len(labels) or logits.shape[1] < len(data.classes):
        raise SeparableError(
            f"the network returns logits of shape {tuple(logits.shape)} for {len(labels)} images of {data.name}: "
            f"must be ({len(labels)}, {len(data.classes)}), one per class"
        )
    if not logits.isfinite().all():
        raise SeparableError(f"the network returns NaN or infinite logits on {data.name}: no accuracy can be measured")
    correct = (logits.argmax(1) == labels).sum()
    loss = F.cross_entropy(logits.float(), labels, reduction="sum")
    return torch.stack([correct.double(), loss.double()])
