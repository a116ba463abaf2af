"""The whole conversion in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from torch_separable._console.notebook import table
from torch_separable._network.checks import as_network
from torch_separable._network.outputs import predictions
from torch_separable.conversion.apply_plan import apply, check_plan
from torch_separable.conversion.calibration.calibrate import (
    DEFAULT_MEMORY,
    Images,
    Statistics,
    calibrate,
    network_outputs,
)
from torch_separable.conversion.calibration.observer import Batch
from torch_separable.conversion.layers import find_convertible
from torch_separable.conversion.planning.plan import Method, Plan
from torch_separable.conversion.planning.planner import Budget, as_planned, check_choice
from torch_separable.conversion.planning.planner import plan as make_plan
from torch_separable.conversion.solvers.factorize import Order


@dataclass(frozen=True)
class Report:
    """What the conversion did, measured on the calibration images.

    Attributes:
        macs: of the whole network for each image (dense, converted).
        parameters: of the whole network (dense, converted).
        output_error: mean squared change of the outputs over their variance.
        agreement: share of images (of positions, where each has an answer of its own) whose largest output is the same;
            of a single output, whose sign is.
        converted: layers that were replaced.
        kept: reason by name for every convolution that was not.
        input_shape: of one calibration image, (C, H, W); empty where the network takes several inputs.
    """

    macs: tuple[int, int]
    parameters: tuple[int, int]
    output_error: float
    agreement: float
    converted: tuple[str, ...]
    kept: dict[str, str]
    input_shape: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(f"{name:12}{words}" for name, words in self._lines())

    def _repr_html_(self) -> str:
        return table((), self._lines())

    def _lines(self) -> list[tuple[str, str]]:
        (dense_macs, macs), (dense_parameters, parameters) = self.macs, self.parameters
        return [
            ("MACs", f"{dense_macs:,} -> {macs:,} ({dense_macs / macs:.2f}x fewer)"),
            ("parameters", f"{dense_parameters:,} -> {parameters:,} ({dense_parameters / parameters:.2f}x fewer)"),
            ("layers", f"{len(self.converted)} converted, {len(self.kept)} kept"),
            ("outputs", f"{100 * self.output_error:.3g} % of their variance changed"),
            ("answers", f"the same for {100 * self.agreement:.1f} % of the calibration images"),
        ]


@dataclass(frozen=True)
class Conversion:
    """A converted network, how it was made, and how well it agrees with the dense one."""

    model: nn.Module
    plan: Plan
    report: Report

    def __str__(self) -> str:
        return f"{self.plan}\n\n{self.report}"

    def _repr_html_(self) -> str:
        return self.plan._repr_html_() + self.report._repr_html_()


def convert(
    model: nn.Module,
    images: Images,
    *,
    budget: Budget | None = None,
    rank: int | None = None,
    plan: Plan | None = None,
    order: Order | None = None,
    method: Method = "least_squares",
    keep: Sequence[str] = (),
    memory: int = DEFAULT_MEMORY,
    progress: bool = False,
) -> Conversion:
    """Turn a trained dense network into a depthwise separable one that computes nearly the same, without training.

    `calibrate`, `plan` and `apply` in one call; ``model`` is not changed.

    Args:
        model: the trained network.
        images: 256 to 1,024 unlabelled images, prepared as in training: (N, C, H, W); a mapping of several inputs by
            name; or an iterable of batches.
        budget: what the converted network may cost, as ``Budget(macs=0.5)``.
        rank: one rank for all layers, instead of a budget.
        plan: a plan to be carried out, instead of both, as one that was loaded and edited.
        order: allow only this order.
        method: ``"least_squares"``, or ``"svd"`` for the baseline that looks at weights alone.
        keep: convolutions that stay as they are: names, those of modules that hold them, or patterns, as ``*.conv1``.
        memory: bytes that samples and moments may take at a time.
        progress: whether bars may appear on a terminal.

    Raises:
        SeparableError: as `calibrate`, `plan` and `apply` say.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        >>> conversion = convert(net, torch.randn(32, 3, 12, 12), budget=Budget(macs=0.5))
        >>> conversion.report.macs[1] / conversion.report.macs[0] <= 0.5
        True
    """
    check_choice(budget, rank, order, method, plan, keep)  # before the minutes that calibration may take
    if plan is not None:
        check_plan(as_network(model), plan, find_convertible(model).convertible)
    statistics = calibrate(model, images, keep=keep, memory=memory, progress=progress)
    if plan is None:
        chosen = make_plan(model, statistics, budget=budget, rank=rank, order=order, method=method, progress=progress)
    else:
        chosen = as_planned(model, statistics, plan)
    converted = apply(model, chosen, statistics, progress=progress)
    outputs = network_outputs(converted, statistics.batches)
    finite = statistics.outputs.isfinite().all(0)  # all but those that are masked
    difference = (outputs - statistics.outputs)[:, finite].square().mean()
    variance = statistics.outputs[:, finite].var(dim=0, unbiased=False).mean().clamp_min(1e-30)
    report = Report(
        macs=chosen.macs,
        parameters=chosen.parameters,
        output_error=float(difference / variance),
        agreement=float((_answers(outputs, statistics) == _answers(statistics.outputs, statistics)).float().mean()),
        converted=tuple(layer.name for layer in chosen.converted),
        kept={layer.name: layer.reason for layer in chosen.layers if layer.order is None},
        input_shape=_input_shape(statistics.batches[0]),
    )
    return Conversion(converted, chosen, report)


def _answers(outputs: Tensor, statistics: Statistics) -> Tensor:
    return predictions(outputs.unflatten(1, (statistics.classes, -1)))


def _input_shape(batch: Batch) -> tuple[int, ...]:
    inputs = list(batch.values()) if isinstance(batch, Mapping) else [batch]
    return tuple(inputs[0].shape[1:]) if len(inputs) == 1 else ()
