"""The whole conversion in one call, and its report."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from torch_separable._console.notebook import table
from torch_separable._network.ambient import default_settings
from torch_separable._network.checks import as_network
from torch_separable._network.weights import check_weights, refresh_weights
from torch_separable.conversion.apply_plan import check_plan, factorize_weights, fit_network
from torch_separable.conversion.calibration.calibrate import DEFAULT_MEMORY, gather_statistics, require_layers
from torch_separable.conversion.calibration.forward import lay_out
from torch_separable.conversion.calibration.images import Batch, Images, hold_out, split_batches, tensors_of
from torch_separable.conversion.calibration.outputs import Selection
from torch_separable.conversion.calibration.statistics import Statistics
from torch_separable.conversion.layers import find_convertible
from torch_separable.conversion.planning.budget import Budget
from torch_separable.conversion.planning.plan import Method, Plan
from torch_separable.conversion.planning.planner import check_choice, make_plan, recount
from torch_separable.conversion.reconstruction import reconstruct_network
from torch_separable.conversion.reduction import Reduction
from torch_separable.conversion.solvers.factorize import Order

# A held-out error is much larger than the fitted one if it exceeds it by this factor. Rounding and full-rank fits leave
# errors below the negligible one.
_OVERFITTED, _NEGLIGIBLE = 2.0, 1e-3


@dataclass(frozen=True)
class Report:
    """Size of the converted network, and its agreement with the dense one on images that nothing was fitted to.

    A quarter of the calibration images is held out for these figures.

    Attributes:
        macs: multiply-accumulates of the whole network for one image: ``.dense`` and ``.converted``.
        parameters: parameters of the whole network: ``.dense`` and ``.converted``.
        output_error: mean squared change of the outputs on the held-out images, each divided by its variance; their
            weighted mean.
        agreement: share of held-out images (or of positions, where each has a prediction of its own) for which both
            networks predict the same class. Where there is a single logit, its sign is compared.
        converted: names of the layers that were replaced.
        kept: reason by name for every convolution that stayed dense.
        input_shape: shape of one calibration image, (C, H, W); empty where the network takes several inputs.
        output_errors: ``output_error`` of each output that was compared, by name.
        fitted_error: ``output_error`` on the images that the layers were fitted to.
        fitted_images: number of images that the layers were fitted to.
        held_out_images: number of images that were held out.
        reconstructed: whether the layers were trained against the dense network after the closed-form fit.
    """

    macs: Reduction[int]
    parameters: Reduction[int]
    output_error: float
    agreement: float
    converted: tuple[str, ...]
    kept: dict[str, str]
    input_shape: tuple[int, ...] = ()
    output_errors: dict[str, float] = field(default_factory=dict)
    fitted_error: float = 0.0
    fitted_images: int = 0
    held_out_images: int = 0
    reconstructed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(f"{name:12}{text}" for name, text in self._rows())

    def _repr_html_(self) -> str:
        return table((), self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        trained = " and reconstructed" if self.reconstructed else ""
        return [
            ("MACs", _reduction_text(self.macs)),
            ("parameters", _reduction_text(self.parameters)),
            ("layers", f"{len(self.converted)} converted{trained}, {len(self.kept)} kept dense"),
            ("outputs", f"changed by {100 * self.output_error:.3g} % of their variance{self._by_output()}"),
            ("predictions", f"the same for {100 * self.agreement:.1f} % of {self._images()}"),
        ]

    def _images(self) -> str:
        return f"{self.held_out_images:,} held-out images" if self.held_out_images else "the images"

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

    def __repr__(self) -> str:
        # The default would print the whole network.
        macs, count = self.report.macs, len(self.report.converted)
        return f"Conversion({type(self.model).__name__}: {count} layers, {macs.dense:,} → {macs.converted:,} MACs)"

    def __str__(self) -> str:
        return f"{self.plan}\n\n{self.report}"

    def _repr_html_(self) -> str:
        return self.plan._repr_html_() + self.report._repr_html_()


@default_settings()
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
    reconstruct: bool = False,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> Conversion:
    """Convert a trained dense network to a depthwise separable one that computes nearly the same, without labels.

    `calibrate`, `plan` and `apply` in one call, on three quarters of the images; the report is measured on the others.
    ``model`` is not changed.

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
        reconstruct: whether to train the converted layers for a few minutes afterwards, block by block against the
            dense network's activations, on the same unlabelled images (see `reconstruct_network`).
        memory: bytes that samples and moments may take at a time.
        progress: whether to show progress bars on a terminal.

    Raises:
        SeparableError: see `calibrate`, `plan` and `apply`.

    Warns:
        UserWarning: the outputs change much more on the held-out images than on those fitted to (the message contains
            an estimate of how many images would do), or reconstruction did not lower their error and was discarded.

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
    require_layers(model, layers, batches)
    batches, held_out = hold_out(batches)
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
    fitted = converted
    if reconstruct:
        converted = reconstructed(model, fitted, chosen, statistics, progress)
    report = report_on(model, converted, chosen, statistics, held_out, reconstructed=converted is not fitted)
    _warn_of_few_images(report)
    return Conversion(converted, chosen, report)


def reconstructed(model: nn.Module, fitted: nn.Module, plan: Plan, statistics: Statistics, progress: bool) -> nn.Module:
    """Return the reconstructed network, or ``fitted`` where that is closer on images that are not trained on."""
    train, validation = hold_out(statistics.batches)
    names = [layer.name for layer in plan.converted]
    student = reconstruct_network(model, fitted, names, train, validation, statistics.outputs, progress=progress)
    judge = statistics.outputs.of_images(model, validation)
    before, after = (judge.change(judge.of_images(network, validation).values) for network in (fitted, student))
    if after < before:
        return student
    warnings.warn(
        f"reconstruction did not lower the output error on its validation images ({100 * before:.2g} % before, "
        f"{100 * after:.2g} % after): the closed-form fit is returned",
        stacklevel=3,
    )
    return fitted


def report_on(
    model: nn.Module,
    converted: nn.Module,
    plan: Plan,
    statistics: Statistics,
    held_out: Sequence[Batch],
    *,
    reconstructed: bool,
) -> Report:
    """Compare a converted network with the dense one on images that nothing was fitted to."""
    fitted = statistics.outputs
    held_out = lay_out(model, held_out)
    reference = fitted.of_images(model, held_out)
    values = fitted.of_images(converted, held_out).values
    return Report(
        macs=plan.macs,
        parameters=plan.parameters,
        output_error=reference.change(values),
        agreement=reference.agreement(values),
        converted=tuple(layer.name for layer in plan.converted),
        kept={layer.name: layer.reason for layer in plan.layers if layer.order is None},
        input_shape=_input_shape(statistics.batches[0]),
        output_errors=reference.changes(values),
        fitted_error=fitted.change(fitted.of_images(converted, statistics.batches).values),
        fitted_images=fitted.images,
        held_out_images=reference.images,
        reconstructed=reconstructed,
    )


def _warn_of_few_images(report: Report) -> None:
    """Warn where the held-out error is far above the fitted one."""
    held_out, fitted, used = report.output_error, report.fitted_error, report.fitted_images + report.held_out_images
    if held_out <= _OVERFITTED * fitted + _NEGLIGIBLE:
        return
    # With n images the two errors lie about symmetrically around the error of endless images, at a distance that falls
    # as 1/n. So many images bring the distance down to a tenth of that error.
    enough = used * (held_out - fitted) / (0.1 * (held_out + fitted))
    step = 10 ** max(math.floor(math.log10(enough)) - 1, 0)
    warnings.warn(
        f"the outputs change by {100 * held_out:.2g} % of their variance on held-out images, and by "
        f"{100 * fitted:.2g} % on the images that the layers were fitted to: {used:,} images are too few. "
        f"About {math.ceil(enough / step) * step:,} would do",
        stacklevel=3,
    )


def _input_shape(batch: Batch) -> tuple[int, ...]:
    inputs = tensors_of(batch)
    return tuple(inputs[0].shape[1:]) if len(inputs) == 1 else ()


def _reduction_text(reduction: Reduction[int]) -> str:
    return f"{reduction.dense:,} -> {reduction.converted:,} ({reduction.ratio:.2f}x fewer)"
