"""Conversion in any precision in one call: plan, convert, quantize and report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from torch_separable import conversion
from torch_separable._network.ambient import default_settings
from torch_separable._network.checks import as_network, require_float32
from torch_separable._network.weights import check_weights, refresh_weights
from torch_separable.conversion import Budget, Conversion, Plan
from torch_separable.conversion.apply_plan import factorize_weights, fit_network
from torch_separable.conversion.calibration.calibrate import DEFAULT_MEMORY, gather_statistics, require_layers
from torch_separable.conversion.calibration.images import Batch, Images, hold_out, split_batches
from torch_separable.conversion.calibration.outputs import Selection, collect_outputs
from torch_separable.conversion.conversion import reconstructed, report_on
from torch_separable.conversion.layers import find_convertible
from torch_separable.conversion.planning.plan import Method
from torch_separable.conversion.planning.plan import Precision as PlannedPrecision
from torch_separable.conversion.planning.planner import check_choice
from torch_separable.conversion.solvers.factorize import Order
from torch_separable.errors import SeparableValueError
from torch_separable.mixed_precision.planning import Request, has_bfloat16, make_mixed_plan, with_precisions
from torch_separable.quantization import QuantizationReport, quantize
from torch_separable.quantization.quantization import layer_names

Precision = Literal["f32", "bf16", "int8", "auto"]


@dataclass(frozen=True)
class MixedConversion(Conversion):
    """A converted network whose layers have planned precisions.

    ``model`` is a `QuantizedNetwork` where a layer is in int8. Run it with
    ``torch_separable.compile(conversion.model, images, dtype=conversion.dtype)``.

    Attributes:
        quantization: the report of `quantize`; ``None`` where no layer is in int8. Its figures compare with the
            converted network in float32; those of ``report`` compare with the dense one.
    """

    quantization: QuantizationReport | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Type of the layers that are not in int8, for `compile`."""
        return torch.bfloat16 if any(layer.precision == "bf16" for layer in self.plan.layers) else torch.float32

    def __repr__(self) -> str:
        counts = [sum(each.precision == p for each in self.plan.layers) for p in get_args(PlannedPrecision)]
        named = ", ".join(f"{n} {p}" for n, p in zip(counts, get_args(PlannedPrecision), strict=True) if n)
        return f"{super().__repr__()[:-1]}, {named})"


def quantization_of(done: Conversion) -> dict[str, Any]:
    """Return the report of the quantization as a part of a run's results; empty where no layer is in int8."""
    report = done.quantization if isinstance(done, MixedConversion) else None
    return {} if report is None else {"quantization": report.to_dict()}


def convert(
    model: nn.Module,
    images: Images,
    *,
    budget: Budget | None = None,
    rank: int | None = None,
    plan: Plan | None = None,
    precision: Precision = "f32",
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
    ``model`` is not changed. With a precision other than ``"f32"``, the plan weighs rank and precision together, and
    the converted network is quantized as the plan says.

    Args:
        model: the trained network.
        images: 256 to 1,024 unlabelled images, prepared as in training: (N, C, H, W); a mapping of several inputs by
            name; or an iterable of batches.
        budget: what the converted network may cost, such as ``Budget(macs=0.5)``.
        rank: one rank for all layers, instead of a budget.
        plan: a plan to carry out, such as one that was loaded and edited, instead of a budget or rank. Its layers keep
            their precisions.
        precision: of the layers' arithmetic: ``"f32"``, ``"bf16"``, ``"int8"``, or ``"auto"``: for each layer int8 or a
            float type, whichever changes the network's outputs least within ``Budget(latency_ms=...)``. Every form is
            timed in every precision, and so are the conversions between them.
        order: allow only this order.
        method: ``"least_squares"``, or ``"svd"`` for the baseline that uses the weights alone.
        exclude: convolutions to leave dense: their names, names of modules that contain them, or patterns such as
            ``*.conv1``. They have a precision like the others.
        outputs: names or weights of the outputs to compare, see `calibrate`; by default all.
        reconstruct: whether to train the converted layers for a few minutes afterwards, block by block against the
            dense network's activations, on the same unlabelled images (see `reconstruct_network`).
        memory: bytes that samples and moments may take at a time.
        progress: whether to show progress bars on a terminal.

    Returns:
        The network, its plan and its report; a `MixedConversion` where the precision is not ``"f32"``.

    Raises:
        SeparableError: see `calibrate`, `plan`, `apply` and `quantize`.
        SeparableValueError: an argument breaks its rule; ``"auto"`` is given without a latency.

    Warns:
        UserWarning: the outputs change much more on the held-out images than on those fitted to (the message contains
            an estimate of how many images would do), or reconstruction did not lower their error and was discarded.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        >>> conversion = convert(net, torch.randn(32, 3, 12, 12), budget=Budget(macs=0.5))
        >>> conversion.report.macs.converted <= 0.5 * conversion.report.macs.dense
        True
        >>> mixed = convert(net, torch.randn(32, 3, 12, 12), budget=Budget(macs=0.5), precision="int8")
        >>> [layer.precision for layer in mixed.plan.layers]
        ['int8', 'int8']
    """
    if precision not in get_args(Precision):
        raise SeparableValueError(f"precision={precision!r}: must be one of {', '.join(get_args(Precision))}")
    planned = isinstance(plan, Plan) and any(layer.precision != "f32" for layer in plan.layers)
    if isinstance(plan, Plan) and precision != "f32":
        raise SeparableValueError(f"plan and precision={precision!r} are both given: the plan already decides it")
    shared: dict[str, Any] = {"method": method, "outputs": outputs, "reconstruct": reconstruct, "memory": memory}
    shared["progress"] = progress
    if precision == "f32" and not planned:
        return conversion.convert(
            model, images, budget=budget, rank=rank, plan=plan, order=order, exclude=exclude, **shared
        )
    if planned:
        assert plan is not None
        check_choice(budget, rank, order, method, plan, exclude)
        every = _batches(images)
        return _quantized(conversion.convert(model, every, plan=plan, **shared), model, every, outputs, progress)
    check_choice(budget, rank, order, method, None, exclude)
    if precision == "auto" and (budget is None or budget.kind != "latency_ms"):
        raise SeparableValueError(
            "precision='auto' weighs milliseconds: give budget=Budget(latency_ms=...), or one precision. "
            "Multiply-accumulates and parameters are the same in every precision"
        )
    if budget is not None and budget.engine == "pytorch":
        raise SeparableValueError(
            f"{budget} with precision={precision!r}: only the compiled runtime runs int8 and bf16"
        )
    require_float32(as_network(model), "model", "convert")
    every = _batches(images)
    if rank is not None:
        done = conversion.convert(model, every, rank=rank, order=order, exclude=exclude, **shared)
        names = layer_names(model, done.report.input_shape)
        chosen = with_precisions(model, done.plan, dict.fromkeys(names, _fixed(precision)))
        return _quantized(replace(done, plan=chosen), model, every, outputs, progress)
    assert budget is not None
    return _quantized(
        _planned(model, every, budget, precision, order, exclude, **shared), model, every, outputs, progress
    )


def _fixed(precision: Precision) -> PlannedPrecision:
    assert precision != "auto"
    return precision


@default_settings()
def _planned(
    model: nn.Module,
    every: Sequence[Batch],
    budget: Budget,
    precision: Precision,
    order: Order | None,
    exclude: Sequence[str],
    *,
    method: Method,
    outputs: Selection | None,
    reconstruct: bool,
    memory: int,
    progress: bool,
) -> Conversion:
    layers = find_convertible(as_network(model))
    check_weights(model)
    layers = layers.excluding(exclude)
    require_layers(model, layers, every)
    batches, held_out = hold_out(every)
    statistics = gather_statistics(model, layers, batches, outputs=outputs, memory=memory, progress=progress)
    floats: tuple[PlannedPrecision, ...] = ("f32", "bf16") if has_bfloat16() else ("f32",)
    precisions = (*floats, "int8") if precision == "auto" else (_fixed(precision),)
    request = Request(budget, precisions, order, method)
    images_held_out = [batch.cpu().float() for batch in held_out if isinstance(batch, Tensor)]
    chosen = make_mixed_plan(model, layers, statistics, images_held_out, request, progress=progress)
    refresh_weights(model)
    if method == "svd":
        fitted = factorize_weights(model, layers, chosen)
    else:
        fitted = fit_network(model, layers, chosen, statistics, progress=progress)
    converted = reconstructed(model, fitted, chosen, statistics, progress) if reconstruct else fitted
    report = report_on(model, converted, chosen, statistics, held_out, reconstructed=converted is not fitted)
    return Conversion(converted, chosen, report)


def _quantized(
    done: Conversion, model: nn.Module, every: Sequence[Batch], outputs: Selection | None, progress: bool
) -> MixedConversion:
    """Quantize the layers that the plan has in int8, and compare the result with the dense network."""
    given = {layer.name: layer.precision for layer in done.plan.layers}
    if "int8" not in given.values():
        return MixedConversion(done.model, done.plan, done.report)
    floats = [name for name, precision in given.items() if precision != "int8"]
    names = layer_names(done.model, done.report.input_shape)
    exclude = [f for f in floats if any(name == f or name.startswith(f"{f}.") for name in names)]
    quantized = quantize(done.model, every, exclude=exclude, progress=progress)
    _, held_out = hold_out(every)
    reference = collect_outputs(model, held_out, outputs)
    values = reference.of_images(quantized.model, held_out).values
    report = replace(
        done.report,
        output_error=reference.change(values),
        agreement=reference.agreement(values),
        output_errors=reference.changes(values),
    )
    return MixedConversion(quantized.model, done.plan, report, quantized.report)


def _batches(images: Images) -> tuple[Batch, ...]:
    """Check images and cut them into batches, once for all steps."""
    batches = split_batches(images)
    if not all(isinstance(batch, Tensor) and batch.dim() == 4 for batch in batches):
        raise SeparableValueError(
            "images must be tensors (N, C, H, W): precisions are planned for networks of one input. "
            "precision='f32' converts others"
        )
    return batches
