"""How far the outputs of a compiled network are from PyTorch's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torch_separable._console.notebook import table
from torch_separable._network.all_outputs import floating_outputs, prediction_output, select_outputs
from torch_separable._network.outputs import predictions
from torch_separable.errors import SeparableError


@dataclass(frozen=True)
class Verification:
    """How a compiled network compares with PyTorch on one input.

    Attributes:
        error: largest difference of the outputs, relative to the largest value of the same output.
        agreement: share of images (or of positions, where each has a prediction of its own) with the same largest
            value along the classes; for a single logit, with the same sign. Of several outputs, the one called
            ``logits`` or ``out`` is compared, or else the first.
        precision: that the network was compiled for: ``float32``, ``bfloat16``, or ``int8`` if it is quantized.
        errors: ``error`` of each floating-point output, by name.
    """

    error: float
    agreement: float
    precision: str = "float32"
    errors: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"{self.precision}: largest difference {self.error:.2g} of the outputs' scale{self._by_output()}; "
            f"same answer for {100 * self.agreement:.1f} %"
        )

    def _repr_html_(self) -> str:
        return table(
            (),
            [
                ("precision", self.precision),
                ("largest difference", f"{self.error:.2g} of the outputs' scale{self._by_output()}"),
                ("same answer", f"{100 * self.agreement:.1f} %"),
            ],
        )

    def _by_output(self) -> str:
        if len(self.errors) < 2:
            return ""
        return f" ({', '.join(f'{name}: {error:.2g}' for name, error in self.errors.items())})"


def verify_outputs(got: object, expected: object, precision: str, outputs: Sequence[str] | None = None) -> Verification:
    """Compare what a compiled network returned with what PyTorch returned.

    Args:
        got: output of the compiled network.
        expected: output of the network in PyTorch.
        precision: precision that the network was compiled for.
        outputs: names of the outputs to compare, see `floating_outputs`; all by default.

    Raises:
        SeparableError: an output has another shape in the compiled network, or there is none to compare.
        SeparableValueError: ``outputs`` names an output that does not exist.

    Example:
        >>> logits, boxes = torch.tensor([[1.0, 2.0]]), torch.full((1, 4), 100.0)
        >>> print(verify_outputs((logits, boxes + 1), (logits, boxes), "float32"))
        float32: largest difference 0.01 of the outputs' scale (0: 0, 1: 0.01); same answer for 100.0 %
    """
    theirs, ours = floating_outputs(expected), floating_outputs(got)
    names = list(select_outputs(list(theirs), outputs))
    for name in names:
        if name not in ours or ours[name].shape != theirs[name].shape:
            found = f"has shape {tuple(ours[name].shape)}" if name in ours else "is missing"
            raise SeparableError(
                f"output {name!r} {found} in the compiled network; in PyTorch it has shape "
                f"{tuple(theirs[name].shape)}. Compare other outputs with outputs=[...]"
            )
    errors = {name: _relative_error(ours[name], theirs[name]) for name in names}
    name = prediction_output(names)
    agreement = float((predictions(ours[name]) == predictions(theirs[name])).float().mean())
    return Verification(max(errors.values()), agreement, precision, errors)


def _relative_error(got: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest finite magnitude; equal values that are not finite differ by 0."""
    if not expected.numel():
        return 0.0
    equal = (got == expected) | (got.isnan() & expected.isnan())
    difference = torch.where(equal, torch.zeros_like(expected), got - expected).abs().max()
    scale = torch.where(expected.isfinite(), expected, torch.zeros_like(expected)).abs().max().clamp_min(1e-30)
    return float(difference / scale)
