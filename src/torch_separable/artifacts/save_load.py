"""Networks as folders: weights, plan, and how to build the dense network; nothing in them is ever executed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torch_separable.artifacts import run_directory
from torch_separable.conversion import Conversion, LayerPlan, Plan
from torch_separable.conversion.apply_plan import build_skeleton
from torch_separable.conversion.layers import find_convertible
from torch_separable.cost import analyze
from torch_separable.errors import SeparableError
from torch_separable.models.registry import Network, built_by
from torch_separable.nn.separable import SEPARABLE


def save(
    model: nn.Module | Conversion,
    path: str | Path,
    *,
    network: Network | Callable[..., nn.Module] | str | None = None,
    arguments: Mapping[str, Any] | None = None,
    input_shape: Sequence[int] | None = None,
    plan: Plan | None = None,
    results: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write a network to the folder ``path``, from which `load` builds it again: whole, or not at all.

    The folder holds ``model.safetensors``, ``plan.json``, ``config.json`` (how to build the dense network),
    ``results.json`` and ``README.md``, a model card with the figures. Before anything is written, the network is built
    from what would be written; what could not be loaded is not saved.

    Args:
        model: a converted network, one distilled since, any other network, or what `convert` returned.
        path: the folder; it is made where it does not exist, and other files in it stay.
        network: the function that builds the *dense* network, or its name as ``"package.module:function"``. The
            networks of ``torch_separable.models`` and what `load` returned know theirs.
        arguments: the function's: numbers, words, and lists and objects of them.
        input_shape: of one image, (C, H, W): for exports; a `Conversion` knows it.
        plan: what was carried out; otherwise the conversion's, or what a look at the network finds.
        results: measured figures by name, for the model card.
        settings: anything else that is worth keeping: plain values by name.

    Returns:
        The folder.

    Raises:
        SeparableError: how the dense network is built is not known or cannot be written down, `network` and `plan` do
            not lead to this network, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from torch_separable.models import resnet20
        >>> network = resnet20(num_classes=7).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load(save(network, f"{folder}/network"))
        >>> image = torch.randn(1, 3, 32, 32)
        >>> torch.equal(network(image), again(image))
        True
    """
    folder = Path(path)
    if isinstance(model, Conversion):
        plan = plan or model.plan
        report = model.report
        input_shape = input_shape or report.input_shape or None
        results = {"kind": "convert", "conversion": report.to_dict(), **(results or {})}
        model = model.model
    known = network if network is not None else built_by(model)
    if known is None:
        raise SeparableError(
            f"how to build the dense {type(model).__name__} is not known: give the function that returns it, as "
            'network="package.module:function", and its arguments as arguments={...}'
        )
    for name, values in (("results", results), ("settings", settings)):
        _check_plain(name, values or {})
    built = Network.of(known, arguments, input_shape)
    built.check("the network to save")
    dense = built.build()
    plan = _counted(plan or _plan_found(dense, model), dense, model, built.input_shape)
    _check_leads_to(model, build_skeleton(dense, plan), built)
    title = f"{type(model).__name__}, depthwise separable"
    run_directory.check_place(folder)
    run_directory.write_run(
        folder, model, plan, built, settings or {}, {"kind": "network", "title": title, **(results or {})}
    )
    return folder


def load(path: str | Path, *, allow: Iterable[str] | str = (), device: torch.device | str | None = None) -> nn.Module:
    """Build the network that `save`, or the command ``separable``, wrote to the folder ``path``.

    Nothing in the folder is executed. Its ``config.json`` names the function that builds the dense network; one that is
    not of ``torch_separable.models`` is imported only if ``allow`` vouches for it, with any plain arguments.

    Args:
        path: the folder.
        allow: modules (with what is below them) whose functions may be called, as ``("mypackage.nets",)``, or single
            functions, as ``("mypackage.nets:build",)``.
        device: for the network; the CPU by default.

    Returns:
        The network in evaluation mode, its numbers of the types that were saved.

    Raises:
        SeparableError: the function is not allowed, or a file is missing, damaged, or of another network.
    """
    folder = Path(path)
    network = run_directory.read_network(folder)
    network.require(str(folder), allow)
    Plan.load(folder / run_directory.PLAN)  # damaged files are told before anything is imported
    network.require_home(str(folder), allow)
    return run_directory.load_converted(folder, run_directory.build_dense(folder, network)).to(device or "cpu").eval()


def _plan_found(dense: nn.Module, model: nn.Module) -> Plan:
    """Say what was done to ``dense`` that it became ``model``."""
    layers, fitted = [], False
    separable: tuple[Any, ...] = tuple(SEPARABLE.values())
    for name, conv in find_convertible(dense).convertible.items():
        shape = tuple(conv.weight.shape)
        try:
            layer: Any = model.get_submodule(name)
        except AttributeError:
            layer = None
        if not isinstance(layer, separable):
            layers.append(LayerPlan(name, shape, None, reason="kept"))
            continue
        sizes = (_parameters(conv), _parameters(layer))
        layers.append(LayerPlan(name, shape, layer.order, layer.depth_multiplier, "found so", parameters=sizes))
        last = layer.conv_pw if layer.order == "depthwise_first" else layer.conv_dw
        fitted |= conv.bias is None and last.bias is not None
    return Plan("least_squares" if fitted else "svd", tuple(layers))


def _check_plain(name: str, values: Mapping[str, Any]) -> None:
    try:
        json.dumps(values, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SeparableError(f"{name} cannot be written as JSON: {error}. Give finite numbers and words") from error


def _counted(plan: Plan, dense: nn.Module, model: nn.Module, input_shape: tuple[int, ...] | None) -> Plan:
    """The plan with the totals of these networks: it may lack them, or have been edited since they were counted."""
    plan = replace(plan, parameters=(_parameters(dense), _parameters(model)))
    if input_shape is not None:
        plan = replace(plan, macs=(_macs(dense, input_shape), _macs(model, input_shape)))
    return plan


def _macs(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    example = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(1)).detach()
    return analyze(module, example.new_zeros(1, *input_shape)).macs


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _check_leads_to(model: nn.Module, outlined: nn.Module, network: Network) -> None:
    """Require that loading would build a network with the names and shapes of this one."""
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in outlined.state_dict().items()}
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            what = [f"of shape {shapes[name]}" if name in shapes else "absent" for shapes in (ours, theirs)]
            given = ", ".join(f"{key}={value!r}" for key, value in network.arguments.items())
            raise SeparableError(
                f"{network.model}({given}) and the plan do not lead to this network: {name} is {what[0]} in it, and "
                f"{what[1]} in what they build. Give the function that builds the dense network as it was converted"
            )
