"""Carrying out a plan: dense convolutions become depthwise separable ones, fitted in the order of execution."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from torch_separable._console.progress import progress_bar
from torch_separable._network.checks import as_network
from torch_separable._network.copying import copied
from torch_separable._network.outputs import evaluating
from torch_separable._network.weights import COMPUTES_WEIGHT, refresh_weights
from torch_separable.conversion.calibration.calibrate import (
    DEFAULT_MEMORY,
    Images,
    LayerStatistics,
    Statistics,
    calibrate,
    check_statistics,
    never_ran,
)
from torch_separable.conversion.calibration.observer import Recording, record, run
from torch_separable.conversion.calibration.replay_cache import ReplayCache
from torch_separable.conversion.layers import Conv, find_convertible, grouped_weight
from torch_separable.conversion.planning.plan import LayerPlan, Plan
from torch_separable.conversion.solvers.factorize import Factors, decouple
from torch_separable.conversion.solvers.reconstruct import reconstruct
from torch_separable.errors import SeparableError
from torch_separable.nn.rank_by_rank import rank_by_rank
from torch_separable.nn.separable import SEPARABLE

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def apply(
    model: nn.Module,
    plan: Plan,
    images: Images | Statistics | None = None,
    *,
    memory: int = DEFAULT_MEMORY,
    rectifier: bool = True,
    residual: bool = True,
    sequential: bool = True,
    progress: bool = False,
) -> nn.Module:
    """Return a copy of ``model`` in which the planned layers are depthwise separable; ``model`` is not changed.

    With images, a plan by least squares fits each layer in turn on the inputs that the converted layers before it
    deliver, so that the network's own sums and rectified values come out right (see `reconstruct`). Without images, the
    kernels are those of the SVD: right for a plan of method ``"svd"``, and otherwise a network of the right shape to
    load weights into.

    Args:
        model: the dense network that was planned for.
        plan: from `plan`, or ``Plan.load(path)``.
        images: calibration images, or the `Statistics` that `calibrate` made of them.
        memory: bytes that samples may take at a time, where images are given.
        rectifier: whether fits mind the ReLU that follows a layer.
        residual: whether fits correct the error of the residual branch that a layer is added to.
        sequential: whether each layer sees the converted layers before it, or the dense network's inputs.
        progress: whether a bar may appear on a terminal.

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
    found = find_convertible(model).convertible
    check_plan(model, plan, found)
    student = copied(model)
    if plan.method == "svd" or images is None:
        for entry in plan.converted:
            conv = found[entry.name]
            _replace(student, entry, _decoupled(grouped_weight(conv), entry), _new_bias(plan, conv))
        return student

    statistics = images if isinstance(images, Statistics) else calibrate(model, images, memory=memory)
    check_statistics(model, statistics, found)
    order = [layer.name for layer in statistics.layers]
    planned = {layer.name: layer for layer in plan.converted}
    for name in planned:
        if name not in order:
            raise never_ran(name)
    names = [name for name in order if name in planned]
    # No record needs to be kept of what has been fitted, so runs of layers share one pass of the dense network.
    before_dense, before = ReplayCache(statistics.memory // 16), ReplayCache(3 * statistics.memory // 8)
    with progress_bar("fitting layers", len(names), shown=progress) as advance:
        for group in _runs(names, statistics, patches=not sequential):
            dense = record(
                model, statistics.batches, {n: found[n] for n in group}, _pixels(statistics), patches=not sequential,
                stop_early=all(statistics[n].calls == 1 for n in group), cache=before_dense,
            )  # fmt: skip
            for name in group:
                layer = statistics[name]
                converted = dense[name]
                if sequential:
                    converted = _record_student(student, name, statistics, layer, dense[name], before)
                weight = grouped_weight(found[name])
                entry = planned[name]
                assert entry.order is not None
                factors, bias = reconstruct(
                    layer,
                    weight,
                    dense[name],
                    converted,
                    entry.order,
                    entry.rank,
                    rectifier=rectifier,
                    residual=residual and sequential,
                )
                _replace(student, entry, factors, bias)
                advance(name)
    _check_called(student, names, statistics)
    return student


def build_skeleton(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of ``model`` with the layers of the plan, all of their kernels zero: to load weights into.

    Raises:
        SeparableError: the plan is for another network; the message names the first layer that differs.

    Example:
        >>> dense = nn.Sequential(nn.Conv2d(3, 8, 3))
        >>> plan = Plan("svd", (LayerPlan("0", (8, 3, 3, 3), "pointwise_first", 2),))
        >>> build_skeleton(dense, plan)[0].conv_dw.weight.shape
        torch.Size([8, 2, 3, 3])
    """
    refresh_weights(model)
    found = find_convertible(model).convertible
    check_plan(model, plan, found)
    student = copied(model)
    for entry in plan.converted:
        assert entry.order is not None
        conv = found[entry.name]
        (M, C), K, D = conv.weight.shape[:2], math.prod(conv.kernel_size), entry.rank
        channels = C if entry.order == "depthwise_first" else M // conv.groups
        zero = torch.zeros(1)
        factors = Factors(entry.order, zero.expand(channels, D, K), zero.expand(M // conv.groups, C, D))
        _replace(student, entry, (factors,) * conv.groups, _new_bias(plan, conv))
    return student


def _new_bias(plan: Plan, conv: Conv) -> Tensor | None:
    """A fitted layer has a bias even where the dense one has none; whoever loads its weights needs the place for it."""
    return torch.zeros(conv.out_channels) if plan.method == "least_squares" and conv.bias is None else None


def _record_student(
    student: nn.Module, name: str, statistics: Statistics, layer: LayerStatistics, dense: Recording, before: ReplayCache
) -> Recording:
    conv: Any = student.get_submodule(name)
    wanted, pixels = {name: conv}, {name: layer.pixels}
    with rank_by_rank(student):
        recordings = record(
            student, statistics.batches, wanted, pixels, patches=True, stop_early=layer.calls == 1, cache=before
        )
    if name not in recordings:
        raise SeparableError(
            f"layer {name} is not called in the converted network: a function that {type(student).__name__} holds "
            f"calls the original's, or no image reaches it any more. Keep it dense: keep=[{name!r}]"
        )
    if recordings[name].shapes != dense.shapes:
        raise SeparableError(
            f"layer {name} does not see the same images in the converted network as in the dense one: which images "
            f"reach it depends on values that conversion changes. Keep it dense: keep=[{name!r}]"
        )
    return recordings[name]


def _check_called(student: nn.Module, names: list[str], statistics: Statistics) -> None:
    """Require that the network calls what took the place of its convolutions."""
    waiting = dict.fromkeys(names)
    with ExitStack() as stack:
        for name in names:
            hook = student.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: waiting.pop(name, None))
            stack.callback(hook.remove)
        stack.enter_context(evaluating(student))
        stack.enter_context(torch.no_grad())
        for batch in statistics.batches:
            if waiting:
                run(student, batch)
    if waiting:
        name = next(iter(waiting))
        raise SeparableError(
            f"layer {name} was replaced, and {type(student).__name__} goes on with the dense one: it must hold it in "
            f"an object that is no module, list or dictionary. Keep it dense: keep=[{name!r}]"
        )


def _runs(names: list[str], statistics: Statistics, *, patches: bool) -> list[list[str]]:
    """Cut the layers into runs whose outputs and residual values, and patches, fit in an eighth of the memory."""
    runs: list[list[str]] = [[]]
    held = 0
    for name in names:
        layer = statistics[name]
        spec = layer.spec
        values = 2 * spec.out_channels + (spec.in_channels * math.prod(spec.kernel_size) if patches else 0)
        size = 4 * layer.pixels * layer.calls * values
        if runs[-1] and held + size > statistics.memory // 8:
            runs.append([])
            held = 0
        runs[-1].append(name)
        held += size
    return runs


def _pixels(statistics: Statistics) -> dict[str, int]:
    return {layer.name: layer.pixels for layer in statistics.layers}


def check_plan(model: nn.Module, plan: Plan, found: Mapping[str, Conv]) -> None:
    """Require that each planned layer is a convolution of ``model`` that can be converted, of the planned shape.

    Raises:
        SeparableError: naming the first layer that differs.
    """
    network = type(model).__name__
    for layer in plan.layers:
        try:
            module = model.get_submodule(layer.name)
        except AttributeError:
            module = None
        shape = getattr(module, "weight", None)
        actual = tuple(shape.shape) if isinstance(shape, Tensor) else None
        if actual != layer.weight_shape:
            is_what = "has no such layer" if module is None else f"has {actual or type(module).__name__} there"
            raise SeparableError(
                f"the plan is for another network: its layer {layer.name} has a kernel of shape {layer.weight_shape}, "
                f"and {network} {is_what}. Give the network that was planned for"
            )
        if layer.order is not None:
            if layer.name not in found:
                reason = find_convertible(model).kept.get(layer.name, "it is no convolution")
                raise SeparableError(f"layer {layer.name} of the plan cannot be converted: {reason}")
            most = math.prod(layer.weight_shape[2:])
            if layer.rank > most:
                raise SeparableError(
                    f"layer {layer.name} of the plan has rank={layer.rank}: its kernel has {most} entries, "
                    f"so at most {most}"
                )


def _decoupled(weight: Tensor, layer: LayerPlan) -> tuple[Factors, ...]:
    assert layer.order is not None
    return tuple(decouple(w, layer.order, layer.rank) for w in weight)


def _replace(student: nn.Module, layer: LayerPlan, factors: tuple[Factors, ...], bias: Tensor | None) -> None:
    """Put a factorised layer in the place, or all the places, of a dense one."""
    conv = student.get_submodule(layer.name)
    separable = separable_of(conv, factors, bias)
    for parent in list(student.modules()):
        # Also where it stands in a list or dictionary besides: by that a network may call it.
        _exchanged(vars(parent), conv, separable)


def _exchanged(held: Any, conv: nn.Module, separable: nn.Module, within: tuple[Any, ...] = ()) -> Any:
    """What is held, with ``separable`` for ``conv``; lists and dictionaries are changed in place."""
    if held is conv:
        return separable
    if type(held) not in (tuple, list, dict, OrderedDict) or any(held is outer for outer in within):
        return held
    within = (*within, held)
    if type(held) is tuple:
        return tuple(_exchanged(value, conv, separable, within) for value in held)
    for key, value in list(held.items() if isinstance(held, dict) else enumerate(held)):
        exchanged = _exchanged(value, conv, separable, within)
        if exchanged is not value:
            held[key] = exchanged
    return held


def separable_of(conv: Any, factors: tuple[Factors, ...], bias: Tensor | None) -> nn.Module:
    """Build the layer that replaces ``conv``: same window, place, dtype, hooks, and whether it is trained.

    Args:
        conv: the dense convolution.
        factors: one entry a group.
        bias: (M,); ``None`` for the dense layer's own.
    """
    order, rank = factors[0].order, factors[0].rank
    own = conv.bias
    # Built without storage, since initial values would cost time and random numbers.
    layer = SEPARABLE[len(conv.kernel_size)](
        conv.in_channels,
        conv.out_channels,
        tuple(conv.kernel_size),
        stride=tuple(conv.stride),
        padding=conv.padding if isinstance(conv.padding, str) else tuple(conv.padding),
        dilation=tuple(conv.dilation),
        depth_multiplier=rank,
        bias=bias is not None or own is not None,
        padding_mode=conv.padding_mode,
        order=order,
        groups=conv.groups,
        bias_between=False,
        device="meta",
        dtype=conv.weight.dtype,
    ).to_empty(device=conv.weight.device)
    depthwise = torch.cat([f.depthwise for f in factors])
    pointwise = torch.cat([f.pointwise for f in factors])
    with torch.no_grad():
        if order == "depthwise_first":
            layer.conv_dw.weight.copy_(depthwise.reshape(layer.conv_dw.weight.shape))
            layer.conv_pw.weight.copy_(pointwise.reshape(layer.conv_pw.weight.shape))
            last = layer.conv_pw
        else:
            layer.conv_pw.weight.copy_(pointwise.transpose(1, 2).reshape(layer.conv_pw.weight.shape))
            layer.conv_dw.weight.copy_(depthwise.reshape(layer.conv_dw.weight.shape))
            last = layer.conv_dw
        if last.bias is not None:
            value = bias if bias is not None else own
            assert value is not None
            last.bias.copy_(value)
    # A computed weight is no parameter itself: it is trained where what it is computed from is.
    trained = any(p.requires_grad for name, p in conv.named_parameters() if name != "bias")
    layer.requires_grad_(trained)
    if last.bias is not None and own is not None:
        last.bias.requires_grad_(own.requires_grad)
    layer.train(conv.training)
    # What the network put on its convolution, and may ask it for.
    base = next(kind for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(conv, kind))
    usual = {"weight", *vars(base(1, 1, 1, device="meta")), *vars(layer)}
    layer.__dict__.update({name: value for name, value in vars(conv).items() if name not in usual})
    for hooks in _HOOKS:
        kept = {i: h for i, h in getattr(conv, hooks).items() if not isinstance(h, COMPUTES_WEIGHT)}
        getattr(layer, hooks).update(kept)
    layer._is_full_backward_hook = conv._is_full_backward_hook
    return layer
