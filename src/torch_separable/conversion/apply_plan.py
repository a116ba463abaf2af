"""Apply a plan: replace dense convolutions by depthwise separable layers, fitted in execution order."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from torch_separable._console.progress import progress_bar
from torch_separable._network.ambient import default_settings
from torch_separable._network.checks import as_network
from torch_separable._network.copying import copied
from torch_separable._network.outputs import evaluating
from torch_separable._network.weights import refresh_weights
from torch_separable.conversion.calibration.calibrate import DEFAULT_MEMORY, calibrate
from torch_separable.conversion.calibration.forward import run_batch
from torch_separable.conversion.calibration.images import Images
from torch_separable.conversion.calibration.recording import Recording, record
from torch_separable.conversion.calibration.replay_cache import ReplayCache
from torch_separable.conversion.calibration.statistics import (
    LayerStatistics,
    Statistics,
    check_statistics,
    unreached_layer,
)
from torch_separable.conversion.convolutions import Conv, grouped_weight
from torch_separable.conversion.layers import ConvertibleLayers, find_convertible
from torch_separable.conversion.planning.plan import LayerPlan, Plan
from torch_separable.conversion.replacement import replace_module, separable_layer
from torch_separable.conversion.solvers.factorize import Factors, decouple
from torch_separable.conversion.solvers.layer_fit import FitOptions, fit_layer
from torch_separable.errors import SeparableError
from torch_separable.nn.rank_by_rank import rank_by_rank


@default_settings()
def apply(
    model: nn.Module,
    plan: Plan,
    images: Images | Statistics | None = None,
    *,
    memory: int = DEFAULT_MEMORY,
    rectifier: bool = True,
    residual: bool = True,
    sequential: bool = True,
    share: bool = True,
    progress: bool = True,
) -> nn.Module:
    """Return a copy of ``model`` in which the planned layers are depthwise separable. ``model`` is not changed.

    With images, a least-squares plan fits each layer in turn to the activations of the partly converted network, so it
    corrects the errors of the layers before it (see `fit_layer`). Without images, the kernels come from the SVD: right
    for a plan of method ``"svd"``, and otherwise a network of the right shape to load weights into.

    Args:
        model: the dense network that was planned for.
        plan: from `plan`, or ``Plan.load(path)``.
        images: calibration images, or the `Statistics` that `calibrate` returned for them.
        memory: bytes that samples may take at a time, where images are given.
        rectifier: whether fits take the ReLU after a layer into account.
        residual: whether fits correct the error of the residual branch that a layer is added to.
        sequential: whether each layer is fitted to the activations of the partly converted network, or to the dense
            network's.
        share: whether the data decide how much of the earlier layers' error each layer corrects, or all of it.
        progress: whether to show a progress bar on a terminal.

    Raises:
        SeparableError: the plan is for another network; the message names the first layer that differs.

    Example:
        >>> from torch_separable.conversion import plan
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1))
        >>> images = torch.randn(16, 3, 12, 12)
        >>> statistics = calibrate(net, images)
        >>> smaller = apply(net, plan(net, statistics, rank=2), statistics)
        >>> type(smaller[2]).__name__, smaller[2].depth_multiplier
        ('DepthwiseSeparableConv2d', 2)
    """
    refresh_weights(as_network(model))
    layers = find_convertible(model)
    check_plan(model, plan, layers)
    if plan.method == "svd" or images is None:
        return factorize_weights(model, layers, plan)
    statistics = images if isinstance(images, Statistics) else calibrate(model, images, memory=memory)
    options = FitOptions(rectifier=rectifier, residual=residual, sequential=sequential, share=share)
    return fit_network(model, layers, plan, statistics, options, progress=progress)


def factorize_weights(model: nn.Module, layers: ConvertibleLayers, plan: Plan) -> nn.Module:
    """Return a copy of ``model`` whose planned layers are factorised by the SVD of their weights."""
    student = copied(model)
    for entry in plan.converted:
        assert entry.order is not None
        conv = layers.convertible[entry.name]
        factors = tuple(decouple(w, entry.order, entry.rank) for w in grouped_weight(conv))
        _replace(student, entry, factors, _new_bias(plan, conv))
    return student


def fit_network(
    model: nn.Module,
    layers: ConvertibleLayers,
    plan: Plan,
    statistics: Statistics,
    options: FitOptions = FitOptions(),  # noqa: B008 - it is frozen
    *,
    progress: bool = True,
) -> nn.Module:
    """Return a copy of ``model`` whose planned layers are fitted to the calibration images. See `apply`."""
    check_statistics(model, statistics, layers.convertible)
    planned = {entry.name: entry for entry in plan.converted}
    names = [layer.name for layer in statistics.layers if layer.name in planned]
    for name in planned:
        if name not in names:
            raise unreached_layer(name)
    student = copied(model)
    # Layers are recorded in groups, so that one pass of the dense network serves several of them.
    dense_cache, student_cache = ReplayCache(statistics.memory // 16), ReplayCache(3 * statistics.memory // 8)
    with progress_bar("fitting layers", len(names), shown=progress) as advance:
        for group in _group_layers(names, statistics, patches=not options.sequential):
            convs = {name: layers.convertible[name] for name in group}
            dense = record(
                model, statistics.batches, convs, {layer.name: layer.pixels for layer in statistics.layers},
                patches=not options.sequential, stop_early=all(statistics[n].calls == 1 for n in group),
                cache=dense_cache,
            )  # fmt: skip
            for name in group:
                layer, entry = statistics[name], planned[name]
                assert entry.order is not None
                converted = dense[name]
                if options.sequential:
                    converted = _record_student(student, statistics, layer, dense[name], student_cache)
                weight = grouped_weight(convs[name])
                factors, bias = fit_layer(
                    layer, weight, convs[name].bias, dense[name], converted, entry.order, entry.rank, options
                )
                _replace(student, entry, factors, bias)
                advance(name)
    _check_called(student, names, statistics)
    return student


def build_skeleton(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of ``model`` with the plan's separable layers, all kernels zero, to load weights into.

    Raises:
        SeparableError: the plan is for another network; the message names the first layer that differs.

    Example:
        >>> dense = nn.Sequential(nn.Conv2d(3, 8, 3))
        >>> plan = Plan("svd", (LayerPlan("0", (8, 3, 3, 3), "pointwise_first", 2),))
        >>> build_skeleton(dense, plan)[0].conv_dw.weight.shape
        torch.Size([8, 2, 3, 3])
    """
    refresh_weights(model)
    layers = find_convertible(model)
    check_plan(model, plan, layers)
    student = copied(model)
    for entry in plan.converted:
        assert entry.order is not None
        conv = layers.convertible[entry.name]
        (M, C), K, D = conv.weight.shape[:2], math.prod(conv.kernel_size), entry.rank
        channels = C if entry.order == "depthwise_first" else M // conv.groups
        zero = torch.zeros(1)
        factors = Factors(entry.order, zero.expand(channels, D, K), zero.expand(M // conv.groups, C, D))
        _replace(student, entry, (factors,) * conv.groups, _new_bias(plan, conv))
    return student


def check_plan(model: nn.Module, plan: Plan, layers: ConvertibleLayers) -> None:
    """Require that each planned layer is a convolution of ``model`` of the planned shape, and convertible.

    Raises:
        SeparableError: naming the first layer that differs.
    """
    for entry in plan.layers:
        _check_shape(model, entry)
        if entry.order is not None:
            if entry.name not in layers.convertible:
                reason = layers.skipped.get(entry.name, "it is not a convolution")
                raise SeparableError(f"layer {entry.name} of the plan cannot be converted: {reason}")
            largest = math.prod(entry.weight_shape[2:])
            if entry.rank > largest:
                raise SeparableError(
                    f"layer {entry.name} of the plan has rank={entry.rank}: its kernel has {largest} taps, so the "
                    f"rank is at most {largest}"
                )


def _check_shape(model: nn.Module, entry: LayerPlan) -> None:
    try:
        module = model.get_submodule(entry.name)
    except AttributeError:
        module = None
    weight = getattr(module, "weight", None)
    actual = tuple(weight.shape) if isinstance(weight, Tensor) else None
    if actual != entry.weight_shape:
        found = "no such layer" if module is None else f"{actual or type(module).__name__} there"
        raise SeparableError(
            f"the plan is for another network: its layer {entry.name} has a kernel of shape {entry.weight_shape}, "
            f"and {type(model).__name__} has {found}"
        )


def _new_bias(plan: Plan, conv: Conv) -> Tensor | None:
    """Return a zero bias where a fitted layer has one and the dense layer has not."""
    return torch.zeros(conv.out_channels) if plan.method == "least_squares" and conv.bias is None else None


def _record_student(
    student: nn.Module, statistics: Statistics, layer: LayerStatistics, dense: Recording, cache: ReplayCache
) -> Recording:
    """Record a layer in the partly converted network, at the pixels that were recorded in the dense one."""
    name = layer.name
    conv: Any = student.get_submodule(name)
    with rank_by_rank(student):
        recordings = record(
            student, statistics.batches, {name: conv}, {name: layer.pixels}, patches=True,
            stop_early=layer.calls == 1, cache=cache,
        )  # fmt: skip
    if name not in recordings:
        raise SeparableError(
            f"layer {name} is not called in the converted copy of {type(student).__name__}, although the dense network "
            f"calls it. Leave it dense with exclude=[{name!r}]"
        )
    if recordings[name].shapes != dense.shapes:
        raise SeparableError(
            f"layer {name} receives other images in the converted network than in the dense one, because the network "
            f"routes images by their activations. Leave it dense with exclude=[{name!r}]"
        )
    return recordings[name]


def _check_called(student: nn.Module, names: list[str], statistics: Statistics) -> None:
    """Require that the network calls every separable layer: it may hold a dense one where it cannot be found."""
    uncalled = dict.fromkeys(names)
    with ExitStack() as stack:
        for name in names:
            hook = student.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: uncalled.pop(name, None))
            stack.callback(hook.remove)
        stack.enter_context(evaluating(student))
        stack.enter_context(torch.no_grad())
        for batch in statistics.batches:
            if uncalled:
                run_batch(student, batch)
    if uncalled:
        name = next(iter(uncalled))
        raise SeparableError(
            f"{type(student).__name__} never calls the separable layer that replaced {name}: it holds the dense layer "
            f"somewhere other than in modules, lists and dictionaries. Leave it dense with exclude=[{name!r}]"
        )


def _group_layers(names: list[str], statistics: Statistics, *, patches: bool) -> list[list[str]]:
    """Cut the layers into groups whose recordings fit in an eighth of the memory, at least one layer each."""
    groups: list[list[str]] = [[]]
    held = 0
    for name in names:
        layer = statistics[name]
        spec = layer.spec
        values = 2 * spec.out_channels + (spec.in_channels * math.prod(spec.kernel_size) if patches else 0)
        size = 4 * layer.pixels * layer.calls * values
        if groups[-1] and held + size > statistics.memory // 8:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    return groups


def _replace(student: nn.Module, entry: LayerPlan, factors: tuple[Factors, ...], bias: Tensor | None) -> None:
    conv = student.get_submodule(entry.name)
    replace_module(student, conv, separable_layer(conv, factors, bias))
