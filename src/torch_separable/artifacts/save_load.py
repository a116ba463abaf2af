"""Saving a network to a folder and loading it without executing anything in the folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torch_separable.artifacts import run_directory
from torch_separable.artifacts.quantized_run import is_quantized, load_quantized, write_quantized
from torch_separable.conversion import Conversion, LayerPlan, Plan, Reduction
from torch_separable.conversion.apply_plan import build_skeleton
from torch_separable.conversion.layers import find_convertible
from torch_separable.cost import analyze
from torch_separable.data import ImageData, Preparation
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.models.registry import Network, built_by
from torch_separable.nn.separable import SEPARABLE
from torch_separable.quantization import Quantized, QuantizedNetwork


def save(
    model: nn.Module | Conversion | Quantized,
    path: str | Path,
    *,
    network: Network | Callable[..., nn.Module] | str | None = None,
    arguments: Mapping[str, Any] | None = None,
    input_shape: Sequence[int] | None = None,
    plan: Plan | None = None,
    results: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    preparation: Preparation | ImageData | None = None,
) -> Path:
    """Write a network to the folder ``path`` atomically, so that `load` can build it again.

    The folder holds ``model.safetensors``, ``plan.json``, ``config.json`` (how to build the dense network),
    ``results.json`` and ``README.md``, a model card with the figures. That of a quantized network holds its operators
    (``network.json``) in place of the plan and the function that builds the network. Before writing, ``save`` builds
    the network from the data to be written, so that a network that `load` could not build is not saved.

    Args:
        model: a converted, distilled or quantized network, any other network, or the result of `convert` or `quantize`.
        path: the folder; created if it does not exist. Other files in it stay.
        network: the function that builds the *dense* network, or its name as ``"package.module:function"``. Not needed
            for networks of ``torch_separable.models``, quantized networks and networks returned by `load`.
        arguments: keyword arguments of that function, as JSON types.
        input_shape: shape of one image, (C, H, W), used by exports; a `Conversion` knows it.
        plan: the plan of the conversion; by default the conversion's own, or one derived from the network.
        results: measured figures by name, for the model card.
        settings: other values to store, as JSON types by name.
        preparation: how images are prepared for the network (size, mean, std, class names), or images so prepared. The
            commands that read the folder prepare images in this way.

    Returns:
        The folder.

    Raises:
        SeparableError: ``network`` is needed and missing, it cannot be written by name, ``network`` and ``plan`` do
            not build this network, or the folder cannot be written.

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
    given = {"network": network, "arguments": arguments, "input_shape": input_shape, "plan": plan}
    if isinstance(model, Quantized | QuantizedNetwork):
        return _save_quantized(model, folder, given, results or {}, settings or {}, preparation)
    if isinstance(model, Conversion) and isinstance(model.model, QuantizedNetwork):
        results = {"conversion": model.report.to_dict(), **(results or {})}
        return _save_quantized(model.model, folder, given, results, settings or {}, preparation, model.plan)
    if isinstance(model, Conversion):
        plan = plan or model.plan
        report = model.report
        input_shape = input_shape or report.input_shape or None
        results = {"kind": "convert", "conversion": report.to_dict(), **(results or {})}
        model = model.model
    known = network if network is not None else built_by(model)
    if known is None:
        raise SeparableError(
            f"network is missing: give the function that builds the dense {type(model).__name__}, as "
            'network="package.module:function", and its keyword arguments as arguments={...}'
        )
    for name, values in (("results", results), ("settings", settings)):
        _check_plain(name, values or {})
    built = Network.of(known, arguments, input_shape)
    built.check("the network to save")
    dense = built.build()
    plan = _counted(plan or _plan_found(dense, model), dense, model, built.input_shape)
    _check_builds(model, build_skeleton(dense, plan), built)
    title = f"{type(model).__name__}, depthwise separable"
    run_directory.check_place(folder)
    run_directory.write_run(
        folder,
        model,
        plan,
        built,
        settings or {},
        {"kind": "network", "title": title, **(results or {})},
        preparation=_preparation(preparation),
    )
    return folder


def _save_quantized(
    model: Quantized | QuantizedNetwork,
    folder: Path,
    given: Mapping[str, Any],
    results: Mapping[str, Any],
    settings: Mapping[str, Any],
    preparation: Preparation | ImageData | None,
    plan: Plan | None = None,
) -> Path:
    """Write a quantized network, which is stored with its operators."""
    for name, value in given.items():
        if value is not None:
            raise SeparableValueError(f"{name} is given, but a quantized network is stored as it is: leave {name} out")
    for name, values in (("results", results), ("settings", settings)):
        _check_plain(name, values)
    report = {"quantization": model.report.to_dict()} if isinstance(model, Quantized) else {}
    network = model.model if isinstance(model, Quantized) else model
    run_directory.check_place(folder)
    described = {"kind": "quantize", "title": "Quantized network", **report, **results}
    write_quantized(folder, network, settings, described, plan=plan, preparation=_preparation(preparation))
    return folder


def _preparation(given: Preparation | ImageData | None) -> Preparation | None:
    return Preparation.of(given) if isinstance(given, ImageData) else given


def load(path: str | Path, *, allow: Iterable[str] | str = (), device: torch.device | str | None = None) -> nn.Module:
    """Load a network from a folder written by `save` or by the command ``separable``.

    Nothing in the folder is executed. A quantized network is built from PyTorch's operators, which the folder lists.
    For any other network, ``config.json`` names the function that builds the dense network. A function outside
    ``torch_separable.models`` is imported and called, with the stored arguments, only if ``allow`` permits it.

    Args:
        path: the folder.
        allow: modules (with their submodules) whose functions may be called, as ``("mypackage.nets",)``, or single
            functions, as ``("mypackage.nets:build",)``.
        device: device of the network; the CPU by default.

    Returns:
        The network in evaluation mode, with the saved data types.

    Raises:
        SeparableError: the function is not allowed, or a file is missing, damaged, or belongs to another network.
    """
    folder = Path(path)
    if is_quantized(folder):
        return load_quantized(folder).to(device or "cpu")
    network = run_directory.read_network(folder)
    network.require(str(folder), allow)
    Plan.load(folder / run_directory.PLAN)  # report a damaged plan before anything is imported
    network.require_home(str(folder), allow)
    return run_directory.load_converted(folder, run_directory.build_dense(folder, network)).to(device or "cpu").eval()


def _plan_found(dense: nn.Module, model: nn.Module) -> Plan:
    """Derive the plan that converts ``dense`` to a network like ``model``."""
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
        sizes = Reduction(_parameters(conv), _parameters(layer))
        layers.append(LayerPlan(name, shape, layer.order, layer.depth_multiplier, "found so", parameters=sizes))
        last = layer.conv_pw if layer.order == "depthwise_first" else layer.conv_dw
        fitted |= conv.bias is None and last.bias is not None
    return Plan("least_squares" if fitted else "svd", tuple(layers))


def _check_plain(name: str, values: Mapping[str, Any]) -> None:
    try:
        json.dumps(values, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SeparableError(f"{name} cannot be written as JSON: {error}. Give finite numbers and strings") from error


def _counted(plan: Plan, dense: nn.Module, model: nn.Module, input_shape: tuple[int, ...] | None) -> Plan:
    """Return the plan with the totals of these networks; those in the plan may be missing, or from before an edit."""
    plan = replace(plan, parameters=Reduction(_parameters(dense), _parameters(model)))
    if input_shape is not None:
        plan = replace(plan, macs=Reduction(_macs(dense, input_shape), _macs(model, input_shape)))
    return plan


def _macs(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    example = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(1)).detach()
    return analyze(module, example.new_zeros(1, *input_shape)).macs


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _check_builds(model: nn.Module, skeleton: nn.Module, network: Network) -> None:
    """Raise unless loading would build a network with the names and shapes of ``model``."""
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            what = [f"of shape {shapes[name]}" if name in shapes else "absent" for shapes in (ours, theirs)]
            given = ", ".join(f"{key}={value!r}" for key, value in network.arguments.items())
            raise SeparableError(
                f"{network.model}({given}) and the plan do not build this network: {name} is {what[0]} in the network, "
                f"and {what[1]} in the one they build. Give the function and arguments of the dense network"
            )
