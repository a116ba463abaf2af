"""Convert Keras layers. Keras itself is not imported: its layers are recognized by their class names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torch_separable.errors import SeparableError
from torch_separable.nn import SamePadding
from torch_separable.nn.conv import DEPTHWISE
from torch_separable.nn.separable import SEPARABLE

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "celu": nn.CELU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "hard_sigmoid": nn.Hardsigmoid,
    "hard_silu": nn.Hardswish,
    "hard_swish": nn.Hardswish,
    "leaky_relu": partial(nn.LeakyReLU, 0.2),
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softmax": partial(nn.Softmax, dim=1),
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}
_SEPARABLE = {"SeparableConv1D": 1, "SeparableConv2D": 2}
_DEPTHWISE = {"DepthwiseConv1D": 1, "DepthwiseConv2D": 2}
_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def from_keras(layer: Any) -> nn.Module:
    """Convert a Keras layer with its weights.

    All options of ``SeparableConv1D/2D`` are converted: ``strides``, ``padding`` ("valid" or Keras' "same"),
    ``dilation_rate``, ``depth_multiplier``, ``use_bias`` (a bias of the pointwise convolution only) and ``activation``.
    ``data_format`` describes Keras' inputs; the result takes (N, C, H, W).

    Args:
        layer: a built ``SeparableConv1D``, ``SeparableConv2D``, ``DepthwiseConv1D`` or ``DepthwiseConv2D``.

    Returns:
        A `DepthwiseSeparableConv2d` (or 1d). For a depthwise layer, a `DepthwiseConv2d` (or 1d), or an
        ``nn.Sequential`` of ``pad``, ``conv_dw`` and ``act`` if it has strided "same" padding or an activation.

    Raises:
        SeparableError: the layer is of another class, is not built, or has an unknown activation.
    """
    kind = type(layer).__name__
    if kind not in {**_SEPARABLE, **_DEPTHWISE}:
        raise SeparableError(f"layer is a {kind}: from_keras converts {', '.join({**_SEPARABLE, **_DEPTHWISE})}")
    if not layer.built:
        raise SeparableError(f"Keras layer {layer.name} is not built, so it has no weights: call or build it first")
    config = layer.get_config()
    tensors = _tensors(layer)
    act = _activation(config["activation"], layer.name)
    window: dict[str, Any] = {
        "kernel_size": tuple(config["kernel_size"]),
        "stride": tuple(config["strides"]),
        "dilation": tuple(config["dilation_rate"]),
    }
    padding, bias, multiplier = config["padding"], config["use_bias"], config["depth_multiplier"]
    if padding not in ("valid", "same"):
        raise SeparableError(f"Keras layer {layer.name} has padding={padding!r}: must be 'valid' or 'same'")
    if kind in _SEPARABLE:
        separable = SEPARABLE[_SEPARABLE[kind]](
            tensors["conv_dw.weight"].shape[0] // multiplier, config["filters"], **window, padding=padding,
            depth_multiplier=multiplier, bias=bias, bias_between=False, act_layer=act, act_between=False,
        )  # fmt: skip
        separable.load_state_dict(tensors)
        return separable.eval()
    dimensions = _DEPTHWISE[kind]
    by_hand = padding == "same" and any(step != 1 for step in window["stride"])
    channels = tensors["weight"].shape[0] // multiplier
    conv = DEPTHWISE[dimensions](
        channels, **window, padding="valid" if by_hand else padding, depth_multiplier=multiplier, bias=bias
    )
    conv.load_state_dict(tensors)
    layers: dict[str, nn.Module] = {"conv_dw": conv}
    if by_hand:
        layers = {"pad": SamePadding(window["kernel_size"], window["stride"], window["dilation"]), **layers}
    if act is not None:
        layers["act"] = act()
    built: nn.Module = conv if len(layers) == 1 else nn.Sequential(OrderedDict(layers))
    return built.eval()


def is_keras(source: Any) -> bool:
    """Whether ``source`` is a Keras model or layer, of any backend."""
    return any(base.__module__.partition(".")[0] == "keras" for base in type(source).__mro__)


def keras_state(model: Any) -> dict[str, Tensor]:
    """Return the weights of a Keras model as a state dict: Keras' layer names, PyTorch's parameter names and layout.

    Raises:
        SeparableError: a layer with weights is of an unknown class.
    """
    state: dict[str, Tensor] = {}
    for layer in _layers(model):
        # Keras lists the seed of a dropout among its weights.
        if layer.weights and type(layer).__name__ not in ("Dropout", "SpatialDropout2D"):
            for name, tensor in _tensors(layer).items():
                state[f"{layer.name}.{name}"] = tensor
    return state


def _layers(model: Any) -> Iterator[Any]:
    for layer in getattr(model, "layers", [model]):
        if hasattr(layer, "layers"):
            yield from _layers(layer)
        else:
            yield layer


def _tensors(layer: Any) -> dict[str, Tensor]:
    """Return the weights of one layer, by the names of this package."""
    kind = type(layer).__name__
    values = {variable.name: torch.from_numpy(np.array(variable.numpy())) for variable in layer.weights}
    if kind == "BatchNormalization":
        tensors = {_NORM[name]: value for name, value in values.items()}
        if tensors.keys() < set(_NORM.values()):  # without scale or center
            ones = torch.ones_like(tensors["running_mean"])
            tensors = {"weight": ones, "bias": torch.zeros_like(ones), **tensors}
        return tensors
    bias = {"bias": values.pop("bias")} if "bias" in values else {}
    if kind in _SEPARABLE:
        point = _dense(values["pointwise_kernel"])
        last = {f"conv_pw.{name}": value for name, value in bias.items()}
        return {"conv_dw.weight": _depthwise(values["depthwise_kernel"]), "conv_pw.weight": point, **last}
    if kind in _DEPTHWISE:
        return {"weight": _depthwise(values["kernel"]), **bias}
    if kind in ("Conv1D", "Conv2D", "Conv3D", "Dense"):
        return {"weight": _dense(values["kernel"]), **bias}
    raise SeparableError(f"Keras layer {layer.name} is a {kind}, whose weights cannot be imported")


def _dense(kernel: Tensor) -> Tensor:
    """Permute (*kernel, C, M) to (M, C, *kernel)."""
    return kernel.movedim((-1, -2), (0, 1)).contiguous()


def _depthwise(kernel: Tensor) -> Tensor:
    """Permute (*kernel, C, D) to (C·D, 1, *kernel); in both layouts output c·D + d is kernel d of channel c."""
    return kernel.movedim((-2, -1), (0, 1)).flatten(0, 1).unsqueeze(1).contiguous()


def _activation(name: Any, layer: str) -> Callable[[], nn.Module] | None:
    if name in (None, "linear"):
        return None
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise SeparableError(
            f"Keras layer {layer} has the activation {name!r}: known are linear, {', '.join(_ACTIVATIONS)}. Build it "
            "with activation=None and apply your own activation after it"
        )
    return _ACTIVATIONS[name]
