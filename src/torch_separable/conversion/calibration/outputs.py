"""The outputs of a network over all calibration images, and how much other outputs differ from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from torch_separable._network.all_outputs import (
    floating_outputs,
    prediction_output,
    rows_by_image,
    select_outputs,
)
from torch_separable._network.outputs import evaluating, predictions
from torch_separable.conversion.calibration.forward import run_batch
from torch_separable.conversion.calibration.images import Batch, images_in
from torch_separable.conversion.calibration.processes import sum_over_processes
from torch_separable.errors import SeparableError
from torch_separable.nn.rank_by_rank import rank_by_rank

Selection = Sequence[str] | Mapping[str, float]

# An output is constant if its variance is below this share of its mean square: the square of float32's precision,
# with some reserve.
_CONSTANT = 1e-12


@dataclass(frozen=True)
class NetworkOutputs:
    """Outputs of the dense network, the reference that other outputs are compared with.

    Attributes:
        values: for each output its values, (rows, features) in float32 on the CPU. A row is an image, or one of several
            rows that the network makes of an image.
        shapes: for each output the shape of one row.
        variances: for each output the variance over the rows, averaged over the features.
        weights: weight of each output in `change`; outputs that do not vary have none. They sum to 1.
        images: number of images.
    """

    values: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    variances: Mapping[str, float]
    weights: Mapping[str, float]
    images: int

    def of_images(self, model: nn.Module, batches: Sequence[Batch]) -> NetworkOutputs:
        """Return the outputs of ``model`` for other images, with the variances and weights of these."""
        values = join_outputs(model, batches, run_outputs(model, batches), self.weights)
        return replace(self, values=values, images=sum(map(images_in, batches)))

    def changes(self, others: Mapping[str, Tensor], images: int | None = None) -> dict[str, float]:
        """Return for each output the mean squared difference from this reference, divided by the output's variance.

        Args:
            others: values of another network for the same images, by `join_outputs`.
            images: how many images they are for, from the first; all by default.
        """
        result = {}
        for name in self.weights:
            reference, other = self.values[name], others[name]
            if images is not None:
                reference = reference[: images * len(reference) // self.images]
            finite = reference.isfinite().all(0)  # masked values are infinite
            squared = (other - reference)[:, finite].square()
            total, count = sum_over_processes(
                squared.sum(dtype=torch.float64), torch.tensor(squared.numel(), dtype=torch.float64)
            )
            result[name] = float(total / count) / self.variances[name]
        return result

    def change(self, others: Mapping[str, Tensor], images: int | None = None) -> float:
        """Return the weighted mean of `changes`: 0 for equal outputs, about 2 for unrelated ones."""
        changes = self.changes(others, images)
        return sum(weight * changes[name] for name, weight in self.weights.items())

    def agreement(self, others: Mapping[str, Tensor]) -> float:
        """Return the share of rows (or of their positions) for which both predict the same class.

        Of several outputs, the one called ``logits`` or ``out`` is compared, or else the first.
        """
        name = prediction_output(self.weights)
        ours, theirs = (
            predictions(values.reshape(len(values), *self.shapes[name])) for values in (others[name], self.values[name])
        )
        return float((ours == theirs).float().mean())


def collect_outputs(model: nn.Module, batches: Sequence[Batch], selection: Selection | None = None) -> NetworkOutputs:
    """Run ``model`` in evaluation mode and return its outputs as a reference."""
    return as_reference(model, batches, run_outputs(model, batches), selection)


def run_outputs(model: nn.Module, batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
    """Run ``model`` in evaluation mode; return its floating-point outputs for each batch."""
    with evaluating(model), rank_by_rank(model), torch.no_grad():
        return [floating_outputs(run_batch(model, batch)) for batch in batches]


def as_reference(
    model: nn.Module,
    batches: Sequence[Batch],
    outputs: Sequence[Mapping[str, Tensor]],
    selection: Selection | None = None,
) -> NetworkOutputs:
    """Join the outputs of all batches as a reference.

    Args:
        model: the network, for messages.
        batches: the images.
        outputs: `floating_outputs` of each batch.
        selection: names or weights of the outputs to compare, see `select_outputs`; all by default.

    Raises:
        SeparableError: an output has another number of values in another batch, or no output varies over the images.
        SeparableValueError: ``selection`` names an output that does not exist.
    """
    weights = select_outputs(list(outputs[0]), selection)
    values = join_outputs(model, batches, outputs, weights)
    first = images_in(batches[0])
    shapes = {name: tuple(rows_by_image(outputs[0][name], first).shape[1:]) for name in weights}
    variances = {name: _variance(tensor) for name, tensor in values.items()}
    varying = {name: weight for name, weight in weights.items() if variances[name] > 0}
    if not varying:
        raise SeparableError(
            f"no output of {type(model).__name__} varies over the calibration images with finite values "
            f"({', '.join(weights)}), so a converted network cannot be compared with it"
        )
    total = sum(varying.values())
    return NetworkOutputs(
        values=values,
        shapes=shapes,
        variances=variances,
        weights={name: weight / total for name, weight in varying.items()},
        images=sum(map(images_in, batches)),
    )


def join_outputs(
    model: nn.Module,
    batches: Sequence[Batch],
    outputs: Sequence[Mapping[str, Tensor]],
    names: Mapping[str, object],
) -> dict[str, Tensor]:
    """Concatenate the outputs of all batches, (rows, features) in float32 on the CPU, for the given names."""
    result = {}
    for name in names:
        parts: list[Tensor] = []
        for i, (batch, returned) in enumerate(zip(batches, outputs, strict=True)):
            if name not in returned:
                raise _varies(model, name, f"is missing for batch {i} of the calibration images", batches, outputs)
            rows = rows_by_image(returned[name], images_in(batch)).detach().float().cpu().flatten(1)
            if parts and rows.shape[1] != parts[0].shape[1]:
                sizes = f"has {parts[0].shape[1]:,} values a row for batch 0 of the calibration images and "
                raise _varies(model, name, f"{sizes}{rows.shape[1]:,} for batch {i}", batches, outputs)
            parts.append(rows)
        result[name] = torch.cat(parts)
    return result


def _variance(values: Tensor) -> float:
    """Return the variance over the rows, averaged over the finite features; 0 for a constant output."""
    finite = values.isfinite().all(0)
    known = values if bool(finite.all()) else values[:, finite]
    variance, square, count = sum_over_processes(
        known.var(0, unbiased=False).sum(dtype=torch.float64) * len(known),
        known.square().sum(dtype=torch.float64),
        torch.tensor(known.numel(), dtype=torch.float64),
    )
    return float(variance / count) if float(variance) > _CONSTANT * float(square) else 0.0


def _varies(
    model: nn.Module,
    name: str,
    how: str,
    batches: Sequence[Batch],
    outputs: Sequence[Mapping[str, Tensor]],
) -> SeparableError:
    """Return the error for an output that cannot be joined, with advice that applies."""
    sizes = [
        {other: rows_by_image(tensor, images_in(batch)).shape[1:] for other, tensor in returned.items()}
        for batch, returned in zip(batches, outputs, strict=True)
    ]
    steady = [other for other in sizes[0] if all(each.get(other) == sizes[0][other] for each in sizes)]
    shapes = {
        tuple(tensor.shape[1:])
        for batch in batches
        for tensor in (batch.values() if isinstance(batch, Mapping) else [batch])
        if tensor.dim() > 2
    }
    if len(shapes) > 1:
        advice = "The images have several sizes: give images of one size"
    elif steady:
        advice = f"Compare the outputs that do not vary: outputs={steady!r}"
    else:
        advice = "Wrap the network in a module that returns its outputs before they are filtered"
    return SeparableError(f"output {name!r} of {type(model).__name__} {how}, so it cannot be compared. {advice}")
