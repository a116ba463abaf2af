"""The whole conversion in one call, and its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from torch_separable._console.notebook import table
from torch_separable._network.checks import as_network
from torch_separable._network.weights import check_weights, refresh_weights
from torch_separable.conversion.apply_plan import check_plan, factorize_weights, fit_network
from torch_separable.conversion.calibration.calibrate import DEFAULT_MEMORY, gather_statistics
from torch_separable.conversion.calibration.images import Batch, Images, split_batches, tensors_of
from torch_separable.conversion.calibration.outputs import Selection, join_outputs, run_outputs
from torch_separable.conversion.calibration.statistics import Statistics
from torch_separable.conversion.layers import find_convertible
from torch_separable.conversion.planning.budget import Budget
from torch_separable.conversion.planning.plan import Method, Plan
from torch_separable.conversion.planning.planner import check_choice, make_plan, recount
from torch_separable.conversion.reduction import Reduction
from torch_separable.conversion.solvers.factorize import Order


@dataclass(frozen=True)
class Report:
    """Size of the converted network, and its agreement with the dense one on the calibration images.

    Attributes:
        macs: multiply-accumulates of the whole network for one image: ``.dense`` and ``.converted``.
        parameters: parameters of the whole network: ``.dense`` and ``.converted``.
        output_error: mean squared change of the outputs, each divided by its variance; their weighted mean.
        agreement: share of images (or of positions, where each has a prediction of its own) for which both networks
            predict the same class. Where there is a single logit, its sign is compared.
        converted: names of the layers that were replaced.
        kept: reason by name for every convolution that stayed dense.
        input_shape: shape of one calibration image, (C, H, W); empty where the network takes several inputs.
        output_errors: ``output_error`` of each output that was compared, by name.
    """

    macs: Reduction[int]
    parameters: Reduction[int]
    output_error: float
    agreement: float
    converted: tuple[str, ...]
    kept: dict[str, str]
    input_shape: tuple[int, ...] = ()
    output_errors: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(f"{name:12}{text}" for name, text in self._rows())

    def _repr_html_(self) -> str:
        return table((), self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        return [
            ("MACs", _reduction_text(self.macs)),
            ("parameters", _reduction_text(self.parameters)),
            ("layers", f"{len(self.converted)} converted, {len(self.kept)} kept dense"),
            ("outputs", f"changed by {100 * self.output_error:.3g} % of their variance{self._by_output()}"),
            ("predictions", f"the same for {100 * self.agreement:.1f} % of the calibration images"),
        ]

    def _by_output(self) -> str:
        if len(self.output_errors) < 2:
            return ""
        return f" ({', '.join(f'{name}: {100 * error:.3g} %' for name, error in self.output_errors.items())})"


@dataclass(frozen=True)
class Conversion:
    """A converted network, its plan, and the report on how well it agrees with the dense one."""

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
    exclude: Sequence[str] = (),
    outputs: Selection | None = None,
    memory: int = DEFAULT_MEMORY,
    progress: bool = False,
) -> Conversion:
    """Convert a trained dense network to a depthwise separable one that computes nearly the same, without training.

    `calibrate`, `plan` and `apply` in one call. ``model`` is not changed.

    Args:
        model: the trained network.
        images: 256 to 1,024 unlabelled images, prepared as in training: (N, C, H, W); a mapping of several inputs by
            name; or an iterable of batches.
        budget: what the converted network may cost, such as ``Budget(macs=0.5)``.
        rank: one rank for all layers, instead of a budget.
        plan: a plan to carry out, such as one that was loaded and edited, instead of a budget or rank.
        order: allow only this order.
        method: ``"least_squares"``, or ``"svd"`` for the baseline that uses the weights alone.
        exclude: convolutions to leave dense: their names, names of modules that contain them, or patterns such as
            ``*.conv1``.
        outputs: names or weights of the outputs to compare, see `calibrate`; by default all.
        memory: bytes that samples and moments may take at a time.
        progress: whether to show progress bars on a terminal.

    Raises:
        SeparableError: see `calibrate`, `plan` and `apply`.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        >>> conversion = convert(net, torch.randn(32, 3, 12, 12), budget=Budget(macs=0.5))
        >>> conversion.report.macs.converted <= 0.5 * conversion.report.macs.dense
        True
    """
    check_choice(budget, rank, order, method, plan, exclude)
    layers = find_convertible(as_network(model))
    if plan is not None:
        check_plan(model, plan, layers)  # before minutes of calibration
    batches = split_batches(images)
    check_weights(model)
    layers = layers.excluding(exclude)
    statistics = gather_statistics(model, layers, batches, outputs=outputs, memory=memory, progress=progress)
    if plan is None:
        chosen = make_plan(
            model, layers, statistics, budget=budget, rank=rank, order=order, method=method, progress=progress
        )
    else:
        chosen = recount(model, statistics, plan)
    refresh_weights(model)
    if chosen.method == "svd":
        converted = factorize_weights(model, layers, chosen)
    else:
        converted = fit_network(model, layers, chosen, statistics, progress=progress)
    return Conversion(converted, chosen, _report(converted, chosen, statistics))


def _report(converted: nn.Module, plan: Plan, statistics: Statistics) -> Report:
    reference = statistics.outputs
    returned = run_outputs(converted, statistics.batches)
    values = join_outputs(converted, statistics.batches, returned, reference.weights)
    return Report(
        macs=plan.macs,
        parameters=plan.parameters,
        output_error=reference.change(values),
        agreement=reference.agreement(values),
        converted=tuple(layer.name for layer in plan.converted),
        kept={layer.name: layer.reason for layer in plan.layers if layer.order is None},
        input_shape=_input_shape(statistics.batches[0]),
        output_errors=reference.changes(values),
    )


def _input_shape(batch: Batch) -> tuple[int, ...]:
    inputs = tensors_of(batch)
    return tuple(inputs[0].shape[1:]) if len(inputs) == 1 else ()


def _reduction_text(reduction: Reduction[int]) -> str:
    return f"{reduction.dense:,} -> {reduction.converted:,} ({reduction.ratio:.2f}x fewer)"
