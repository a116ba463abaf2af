"""Load weights under this package's names or those of another package."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from torch import Tensor, nn

from torch_separable._network.state_names import WeightSet, select_weights, without_prefix
from torch_separable._network.weights_file import load_state, read_weight_set
from torch_separable.errors import SeparableError
from torch_separable.importing.keras import is_keras, keras_state
from torch_separable.importing.layouts import LAYOUTS, Layout
from torch_separable.importing.report import ImportReport
from torch_separable.models._layers import Activation, Padding

OWN = "own"
_CONVENTIONS = ("padding", "batch_norm_eps", "activation")


def import_weights(model: nn.Module, source: Any, *, strict: bool = True, ema: bool = False) -> ImportReport:
    """Load weights into a network, under its own names or those of another package.

    `LAYOUTS` lists the packages whose names are known for the networks of ``torch_separable.models``; the layout that
    matches the most names is used. Padding, epsilon and activation must match as well, because the same weights compute
    something else with others: if they differ, the network is not changed.

    Args:
        model: the network; all of its weights are replaced, or none.
        source: a safetensors or ``torch.save`` file, tensors by name, a module, or a Keras model.
        strict: whether everything must match. Otherwise matching tensors are loaded and the report lists the others,
            for example those of a classifier with other classes.
        ema: whether to load the exponential moving average of the weights from a checkpoint that holds one beside the
            weights. Otherwise the weights are loaded; the report names the choice.

    Returns:
        A report of which tensors were loaded.

    Raises:
        SeparableError: something does not match (``strict``), nothing matches, or a weight is not finite.

    Example:
        >>> from torch_separable.models import resnet18
        >>> theirs = resnet18().state_dict()             # the names are those of torchvision
        >>> print(import_weights(resnet18(num_classes=7), theirs, strict=False))
        own: 120 tensors matched, 2 of another shape
          shape       fc.weight: (1000, 512), the network has (7, 512)
          shape       fc.bias: (1000,), the network has (7,)
    """
    where, weights, stated = _read(source, model, ema=ema)
    weights = without_prefix(weights, _known_names(model))
    given = weights.tensors
    layout = recognise(model, given)
    name = OWN if layout is None else layout.name
    theirs = stated if layout is None else {k: stated.get(k, v) for k, v in layout.conventions.items()}
    differing = tuple((k, getattr(model, k, None), v) for k, v in theirs.items() if getattr(model, k, None) != v)
    state, unexpected = _renamed(model, given, layout)
    expected = model.state_dict()
    for key, counter in expected.items():
        if key.endswith("num_batches_tracked"):  # used only in training, and absent from Keras and older files
            state.setdefault(key, counter)
    fitting = {key: t for key, t in state.items() if key in expected and t.shape == expected[key].shape}
    report = ImportReport(
        layout=name,
        matched=tuple(key for key in expected if key in fitting),
        missing=tuple(key for key in expected if key not in state),
        unexpected=(*unexpected, *(key for key in state if key not in expected)),
        reshaped=tuple(
            (key, tuple(state[key].shape), tuple(expected[key].shape))
            for key in expected
            if key in state and key not in fitting
        ),
        differing=differing,
        selection=weights.describe(),
    )
    if layout is not None:
        where = f"{where}, of {name},"
    if not strict:
        if not any(not key.endswith("num_batches_tracked") for key in fitting):
            raise SeparableError(f"{where} match no weight of this network ({type(model).__name__})")
        load_state(model, {**expected, **fitting}, where)
        return report
    if differing:
        ours = ", ".join(f"{k}={v!r}" for k, v, _ in differing)
        right = ", ".join(f"{k}={v!r}" for k, _, v in differing)
        raise SeparableError(
            f"{where} belong to a network with {right}, but this {type(model).__name__} has {ours}, so its outputs "
            f"would differ. {_remedy(model, {k: v for k, _, v in differing})}"
        )
    load_state(model, {**state, **{key: given[key] for key in unexpected}}, where)
    return report


def _remedy(model: nn.Module, right: Mapping[str, Any]) -> str:
    """Say how to build the network that the weights belong to."""
    accepted = inspect.signature(type(model).__init__).parameters
    allowed = {"activation": get_args(Activation), "padding": get_args(Padding)}
    beyond = [f"{k}={v!r}" for k, v in right.items() if k not in accepted or v not in allowed.get(k, (v,))]
    if beyond:
        return f"No {type(model).__name__} of this package has {', '.join(beyond)}: convert the network as it is"
    listed = ", ".join(f"{k}={v!r}" for k, v in right.items())
    return f"Build it with {listed} ({' '.join(f'--model-arg {k}={v}' for k, v in right.items())})"


def recognise(model: nn.Module, given: Mapping[str, Tensor]) -> Layout | None:
    """Return the layout that matches the most names; ``None`` for the network's own.

    Example:
        >>> import torch
        >>> from torch_separable.models import mobilenet_v2
        >>> recognise(mobilenet_v2(), {"features.0.0.weight": torch.zeros(32, 3, 3, 3)}).name
        'torchvision mobilenet_v2'
    """
    modules = {key.rpartition(".")[0] for key in given}
    own = {key.rpartition(".")[0] for key in model.state_dict()}
    best, fitting = None, len(modules & own)
    for layout in LAYOUTS.values():
        if isinstance(model, layout.network):
            count = len(modules.intersection(layout.names(model).values()))
            if count > fitting:
                best, fitting = layout, count
    return best


def _renamed(
    model: nn.Module, given: Mapping[str, Tensor], layout: Layout | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return tensors by this package's names, and the names that have no counterpart."""
    if layout is None:
        return dict(given), ()
    ours = {their: our for our, their in layout.names(model).items()}
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    state, unexpected = {}, []
    for key, tensor in given.items():
        module, _, leaf = key.rpartition(".")
        if module not in ours:
            unexpected.append(key)
            continue
        name = f"{ours[module]}.{leaf}"
        if tensor.dim() == 4 and len(shapes.get(name, ())) == 2 and tensor.shape[2:] == (1, 1):
            tensor = tensor.flatten(1)  # noqa: PLW2901 - a 1x1 convolution of pooled features equals a linear layer
        state[name] = tensor
    return state, tuple(unexpected)


def _known_names(model: nn.Module) -> set[str]:
    """Return the names of the network's tensors in its own and all other layouts."""
    names = set(model.state_dict())
    for layout in LAYOUTS.values():
        if isinstance(model, layout.network):
            theirs = layout.names(model)
            leaves = {name.rpartition(".")[2] for name in names}
            names |= {f"{module}.{leaf}" for module in theirs.values() for leaf in leaves}
    return names


def _read(source: Any, model: nn.Module, *, ema: bool) -> tuple[str, WeightSet, dict[str, Any]]:
    """Return the source's description for messages, its weights, and the conventions that it states."""
    if isinstance(source, str | Path):
        return str(source), read_weight_set(source, ema=ema), {}
    if isinstance(source, nn.Module) and not is_keras(source):
        return f"the weights of {type(source).__name__}", WeightSet(source.state_dict()), _stated(source, model)
    if is_keras(source):
        return f"the weights of Keras' {source.name}", WeightSet(keras_state(source)), {}
    if isinstance(source, Mapping):
        return "the weights given", select_weights(source, "source", ema=ema), {}
    raise SeparableError(
        f"source is a {type(source).__name__}: expected a weight file, tensors by name, a module or a Keras model"
    )


def _stated(source: nn.Module, model: nn.Module) -> dict[str, Any]:
    """Return the conventions of a network of the same class, or those in the configuration of a transformers model."""
    if isinstance(source, type(model)):
        return {name: getattr(source, name) for name in _CONVENTIONS if hasattr(model, name)}
    config = getattr(source, "config", None)
    stated = {
        "padding": {True: "same", False: "symmetric"}.get(getattr(config, "tf_padding", None)),  # type: ignore[arg-type]
        "batch_norm_eps": getattr(config, "layer_norm_eps", None),
        "activation": getattr(config, "hidden_act", None),
        "downsample_in_bottleneck": getattr(config, "downsample_in_bottleneck", None),
        "output_stride": getattr(config, "output_stride", None),
    }
    return {name: value for name, value in stated.items() if value is not None}
