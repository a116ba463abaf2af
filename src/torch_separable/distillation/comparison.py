"""How far the outputs of one network are from those of another, over images of any number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torch_separable._console.notebook import table
from torch_separable._console.progress import progress_bar
from torch_separable._network.all_outputs import floating_outputs, prediction_output, rows_by_image, select_outputs
from torch_separable._network.checks import as_network, device_of, precision_of
from torch_separable._network.outputs import evaluating, predictions
from torch_separable.data.image_data import ImageData
from torch_separable.errors import SeparableError
from torch_separable.nn.rank_by_rank import rank_by_rank

Selection = Sequence[str] | Mapping[str, float]

# An output is constant if its variance is below this share of its mean square: float64 sums of float32 values.
_CONSTANT = 1e-12


@dataclass(frozen=True)
class Comparison:
    """How far the outputs of a network are from those of a reference.

    Attributes:
        output_error: weighted mean of ``output_errors``.
        output_errors: for each output, the mean squared difference divided by the output's variance over the images.
        agreement: share of rows (images, or positions) for which both predict the same class. Of several outputs, the
            one called ``logits`` or ``out`` is compared, or else the first.
        count: number of images.

    Example:
        >>> print(Comparison(0.015, {"0": 0.01, "1": 0.02}, 0.99, 1000))
        outputs changed by 1.5 % of their variance (0: 1 %, 1: 2 %), same prediction for 99.0 % of 1000 images
    """

    output_error: float
    output_errors: Mapping[str, float]
    agreement: float
    count: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures by name, as JSON types."""
        return {**vars(self), "output_errors": dict(self.output_errors)}

    def __str__(self) -> str:
        each = ", ".join(f"{name}: {100 * error:.3g} %" for name, error in self.output_errors.items())
        listed = f" ({each})" if len(self.output_errors) > 1 else ""
        return (
            f"outputs changed by {100 * self.output_error:.3g} % of their variance{listed}, same prediction for "
            f"{100 * self.agreement:.1f} % of {self.count} images"
        )

    def _repr_html_(self) -> str:
        rows = [(f"change of {name}", f"{100 * error:.3g} %") for name, error in self.output_errors.items()]
        return table((), [*rows, ("same prediction", f"{100 * self.agreement:.1f} % of {self.count:,}")])


def compare_networks(
    model: Callable[..., Any],
    reference: Callable[..., Any],
    data: ImageData,
    batch_size: int,
    outputs: Selection | None,
    *,
    progress: bool,
) -> Comparison:
    """Run both networks on all images and compare every floating-point output. See `evaluate`.

    Raises:
        SeparableError: an output differs in shape between the networks or batches, is not finite, or none varies.
        SeparableValueError: ``outputs`` names an output that does not exist.
    """
    sums: dict[str, _Sums] = {}
    weights: dict[str, float] = {}
    same = predicted = 0
    with ExitStack() as stack:
        networks = [_prepared(network, stack) for network in (reference, model)]
        stack.enter_context(torch.inference_mode())
        advance = stack.enter_context(progress_bar("comparing", len(data), shown=progress))
        for images, _ in data.batches(batch_size):
            theirs, ours = (floating_outputs(run(images)) for run in networks)
            weights = weights or select_outputs(list(theirs), outputs)
            for name in weights:
                rows = _rows(name, theirs, ours, len(images))
                total_of = sums.setdefault(name, _Sums())
                if total_of.rows and total_of.values.numel() != rows[0].shape[1]:
                    raise SeparableError(
                        f"output {name!r} has {total_of.values.numel():,} values for some images and "
                        f"{rows[0].shape[1]:,} for others, so it has no variance. Name other outputs with outputs=[...]"
                    )
                total_of.add(*rows)
            name = prediction_output(weights)
            agreed = predictions(rows_by_image(ours[name], len(images)).cpu()) == predictions(
                rows_by_image(theirs[name], len(images)).cpu()
            )
            same, predicted = same + int(agreed.sum()), predicted + agreed.numel()
            advance(steps=len(images))
    varying = {name: each for name, each in sums.items() if each.variance > 0}
    if not varying:
        raise SeparableError(
            f"no output of the reference varies over the images of {data.name} ({', '.join(sums)}): the change cannot "
            "be related to a variance. Give other images or name other outputs"
        )
    errors = {name: each.difference / each.variance for name, each in varying.items()}
    total = sum(weights[name] for name in errors)
    error = sum(weights[name] * errors[name] for name in errors) / total
    return Comparison(error, errors, same / predicted, len(data))


class _Sums:
    """Sums over rows, from which the variance of one output and the mean squared difference follow."""

    def __init__(self) -> None:
        self.rows = 0
        self.values: Tensor = torch.zeros(())
        self.squares: Tensor = torch.zeros(())
        self.squared_difference = 0.0

    def add(self, reference: Tensor, other: Tensor) -> None:
        """Add rows (rows, features) in float64; the first rows shift the sums, against cancellation."""
        if not self.rows:
            self.shift = reference.mean(0)
            self.values, self.squares = torch.zeros_like(self.shift), torch.zeros_like(self.shift)
        centred = reference - self.shift
        self.values += centred.sum(0)
        self.squares += centred.square().sum(0)
        self.squared_difference += float((other - reference).square().sum())
        self.rows += len(reference)

    @property
    def difference(self) -> float:
        """Mean squared difference of all values."""
        return self.squared_difference / (self.rows * self.values.numel())

    @property
    def variance(self) -> float:
        """Variance over the rows, averaged over the features; 0 for a constant output."""
        mean = self.values / self.rows
        variance = float((self.squares / self.rows - mean.square()).mean())
        magnitude = float((self.shift + mean).square().mean()) + variance
        return variance if variance > _CONSTANT * magnitude else 0.0


def _rows(
    name: str, reference: Mapping[str, Tensor], other: Mapping[str, Tensor], images: int
) -> tuple[Tensor, Tensor]:
    """Return an output of both networks as rows (rows, features) in float64, or raise an error that names it."""
    for which, found in (("reference", reference), ("network", other)):
        if name not in found:
            raise SeparableError(f"output {name!r} is missing for some images in the {which}: name others in outputs=")
    shapes = [tuple(found[name].shape) for found in (reference, other)]
    if shapes[0] != shapes[1]:
        raise SeparableError(
            f"output {name!r} has shape {shapes[1]} in the network and {shapes[0]} in the reference, so it cannot be "
            "compared. Name outputs whose shape does not depend on the images with outputs=[...]"
        )
    theirs, ours = (
        rows_by_image(found[name], images).detach().cpu().double().flatten(1) for found in (reference, other)
    )
    masked = (ours == theirs) & ~theirs.isfinite()  # attention masks are infinite in both networks
    theirs, ours = theirs.masked_fill(masked, 0.0), ours.masked_fill(masked, 0.0)
    if not bool(theirs.isfinite().all() and ours.isfinite().all()):
        raise SeparableError(f"output {name!r} contains NaN or infinity: name others with outputs=[...]")
    return theirs, ours


def _prepared(network: Callable[..., Any], stack: ExitStack) -> Callable[[Tensor], object]:
    """Return a function of images on the CPU; an ``nn.Module`` runs in evaluation mode on its own device."""
    if callable(network) and not isinstance(network, nn.Module):  # a compiled network
        return network
    module = as_network(network)
    stack.enter_context(evaluating(module))
    stack.enter_context(rank_by_rank(module))
    where: dict[str, Any] = {"device": device_of(module), "dtype": precision_of(module)}
    return lambda images: module(images.to(**where))
