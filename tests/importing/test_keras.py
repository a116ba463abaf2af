"""Keras' layers and networks, run by Keras itself on its torch backend, and ours with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

import torch_separable as ts
from torch_separable._network.weights_file import save_weights
from torch_separable.importing import from_keras, import_weights
from torch_separable.importing.keras import keras_state
from torch_separable.models import mobilenet_v1, mobilenet_v2
from torch_separable.nn import DepthwiseConv2d, DepthwiseSeparableConv1d, DepthwiseSeparableConv2d

TENSORFLOW: dict[str, Any] = {"padding": "same", "batch_norm_eps": 1e-3}


def run(layer: Any, x: Tensor) -> Tensor:
    """Run a Keras layer or model on (N, C, *size), in whichever format it takes."""
    last = getattr(layer, "data_format", "channels_last") == "channels_last"
    with torch.no_grad():
        y = torch.as_tensor(layer(x.movedim(1, -1) if last else x))
    return y.movedim(-1, 1) if last and y.dim() > 2 else y


def randomise(layer: Any) -> None:
    """Give a Keras layer weights, biases among them, that are not those that it begins with."""
    random = np.random.default_rng(0)
    layer.set_weights([random.normal(0, 0.5, weight.shape) for weight in layer.get_weights()])


def compare(layer: Any, x: Tensor) -> nn.Module:
    run(layer, x)  # which builds it
    randomise(layer)
    ours = from_keras(layer)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), run(layer, x), rtol=1e-4, atol=1e-4)
    return ours


OPTIONS: dict[str, tuple[dict[str, Any], Any]] = {
    # What Keras is told, and where it shows in ours.
    "strides": ({"strides": 2}, lambda ours: ours.stride == (2, 2)),
    "padding valid": ({"padding": "valid"}, lambda ours: ours.conv_dw.padding == "valid"),
    "padding same": ({"padding": "same"}, lambda ours: ours.padding == "same" and not hasattr(ours, "pad")),
    "padding same, strided": ({"padding": "same", "strides": 2}, lambda ours: hasattr(ours, "pad")),
    "dilation_rate": ({"dilation_rate": 2}, lambda ours: ours.dilation == (2, 2)),
    "depth_multiplier": ({"depth_multiplier": 3}, lambda ours: ours.depth_multiplier == 3),
    "use_bias": ({"use_bias": False}, lambda ours: ours.conv_pw.bias is None),
    "bias, of the pointwise convolution alone": (
        {},
        lambda ours: ours.conv_dw.bias is None and ours.conv_pw.bias is not None,
    ),
    "activation, after both": (
        {"activation": "relu"},
        lambda ours: isinstance(ours.act2, nn.ReLU) and not hasattr(ours, "act1"),
    ),
    "data_format": ({"data_format": "channels_first"}, lambda ours: ours.in_channels == 4),
    "kernel_size": ({"kernel_size": (2, 5), "padding": "same"}, lambda ours: ours.kernel_size == (2, 5)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_of_separable_conv_2d_is_converted(name: str) -> None:
    options, shows = OPTIONS[name]
    layer = keras.layers.SeparableConv2D(6, **{"kernel_size": 3, **options})
    ours = compare(layer, torch.randn(2, 4, 9, 8))
    assert isinstance(ours, DepthwiseSeparableConv2d)
    assert shows(ours)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@given(
    kind=st.sampled_from(("SeparableConv2D", "SeparableConv1D", "DepthwiseConv2D", "DepthwiseConv1D")),
    kernel=st.integers(1, 4),
    strides=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.sampled_from(("valid", "same")),
    multiplier=st.integers(1, 2),
    bias=st.booleans(),
    activation=st.sampled_from((None, "relu6", "swish")),
    data_format=st.sampled_from(("channels_last", "channels_first")),
    size=st.tuples(st.integers(7, 9), st.integers(7, 9)),
)
def test_combined_options_are_converted(
    kind: str, kernel: int, strides: int, dilation: int, padding: str, multiplier: int, bias: bool,
    activation: str | None, data_format: str, size: tuple[int, int],
) -> None:  # fmt: skip
    assume(strides == 1 or dilation == 1)  # Keras has either
    layer = getattr(keras.layers, kind)(
        **({"filters": 5} if "Separable" in kind else {}),
        kernel_size=kernel, strides=strides, dilation_rate=dilation, padding=padding, depth_multiplier=multiplier,
        use_bias=bias, activation=activation, data_format=data_format,
    )  # fmt: skip
    compare(layer, torch.randn(2, 3, *(size if "2D" in kind else size[:1])))


ACTIVATIONS = [
    "celu", "elu", "gelu", "hard_sigmoid", "hard_silu", "hard_swish", "leaky_relu", "linear", "mish", "relu", "relu6",
    "selu", "sigmoid", "silu", "softmax", "softplus", "softsign", "swish", "tanh",
]  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_the_same_name(name: str) -> None:
    compare(keras.layers.SeparableConv2D(6, 3, activation=name), torch.randn(1, 4, 6, 6))


def test_depthwise_layer_without_extras_is_a_single_module() -> None:
    assert isinstance(compare(keras.layers.DepthwiseConv2D(3), torch.randn(1, 4, 6, 6)), DepthwiseConv2d)
    ours = compare(
        keras.layers.DepthwiseConv2D(3, strides=2, padding="same", activation="relu"), torch.randn(1, 4, 6, 6)
    )
    assert [name for name, _ in ours.named_children()] == ["pad", "conv_dw", "act"]
    assert isinstance(compare(keras.layers.SeparableConv1D(6, 3), torch.randn(1, 4, 6)), DepthwiseSeparableConv1d)


NETWORKS: dict[str, Any] = {
    "Keras MobileNet": (
        lambda: keras.applications.MobileNet(
            input_shape=(64, 64, 3), alpha=0.25, classes=9, weights=None, classifier_activation=None
        ),
        lambda: mobilenet_v1(0.25, num_classes=9, activation="relu6", **TENSORFLOW),
    ),
    "Keras MobileNetV2": (
        lambda: keras.applications.MobileNetV2(
            input_shape=(64, 64, 3), alpha=0.35, classes=9, weights=None, classifier_activation=None
        ),
        lambda: mobilenet_v2(0.35, num_classes=9, **TENSORFLOW),
    ),
}


@pytest.fixture(scope="module", params=NETWORKS)
def networks(request: pytest.FixtureRequest) -> tuple[str, Any, nn.Module]:
    theirs, ours = (make() for make in NETWORKS[request.param])
    random = np.random.default_rng(0)
    weights = [w if w.ndim > 1 else random.uniform(0.05, 0.3, w.shape) for w in theirs.get_weights()]
    theirs.set_weights(weights)
    return request.param, theirs, ours.eval()


def test_networks_give_the_same_outputs(networks: tuple[str, Any, nn.Module]) -> None:
    name, theirs, ours = networks
    report = import_weights(ours, theirs)
    assert (report.layout, report.complete) == (name, True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = run(theirs, images)
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.01


def test_keras_weights_load_from_a_file(networks: tuple[str, Any, nn.Module], tmp_path: Path) -> None:
    name, theirs, ours = networks
    save_weights(keras_state(theirs), tmp_path / "keras.safetensors")
    assert import_weights(ours, tmp_path / "keras.safetensors").layout == name


def test_network_with_other_conventions_is_refused() -> None:
    theirs = NETWORKS["Keras MobileNet"][0]()
    with pytest.raises(ts.SeparableError, match=r"Keras MobileNet.*padding='same'"):
        import_weights(mobilenet_v1(0.25, num_classes=9, activation="relu6"), theirs)


def test_layers_without_counterpart_are_named() -> None:
    with pytest.raises(ts.SeparableError, match=r"Conv2D: .*SeparableConv1D, SeparableConv2D"):
        from_keras(keras.layers.Conv2D(3, 3))
    with pytest.raises(ts.SeparableError, match="layer unbuilt is not built"):
        from_keras(keras.layers.SeparableConv2D(3, 3, name="unbuilt"))
    odd = keras.layers.SeparableConv2D(3, 3, name="odd", activation="exponential")
    odd.build((None, 6, 6, 4))
    with pytest.raises(ts.SeparableError, match=r"layer odd .*'exponential'"):
        from_keras(odd)
    model = keras.Sequential([keras.Input((4, 6)), keras.layers.GRU(3, name="recurrent")])
    with pytest.raises(ts.SeparableError, match="layer recurrent is a GRU"):
        import_weights(nn.Linear(2, 2), model)
