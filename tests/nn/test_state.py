"""Blocks as modules: weights saved and loaded, gradients, the place and the type of their parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_separable._network import weights_file
from torch_separable.nn import (
    ChannelShuffle,
    DepthwiseConv1d,
    DepthwiseConv2d,
    DepthwiseConv3d,
    DepthwiseSeparableConv1d,
    DepthwiseSeparableConv2d,
    DepthwiseSeparableConv3d,
    InvertedResidual,
    PointwiseConv1d,
    PointwiseConv2d,
    PointwiseConv3d,
    ShuffleUnit,
    depthwise_separable_conv,
)


def block(name: str, **options: Any) -> nn.Module:
    # An activation with a parameter of its own has to be placed as well.
    with_all: dict[str, Any] = {"norm_layer": nn.BatchNorm2d, "act_layer": nn.PReLU, **options}
    made: dict[str, Callable[[], nn.Module]] = {
        "depthwise1d": lambda: DepthwiseConv1d(4, 3, padding="same", **options),
        "depthwise2d": lambda: DepthwiseConv2d(4, 3, stride=2, depth_multiplier=2, padding_mode="reflect", **options),
        "depthwise3d": lambda: DepthwiseConv3d(4, 2, dilation=2, bias=False, **options),
        "pointwise1d": lambda: PointwiseConv1d(4, 6, groups=2, **options),
        "pointwise2d": lambda: PointwiseConv2d(4, 6, stride=2, **options),
        "pointwise3d": lambda: PointwiseConv3d(4, 6, bias=False, **options),
        "separable1d": lambda: DepthwiseSeparableConv1d(4, 6, 3, order="pointwise_first", groups=2, **options),
        "separable2d": lambda: DepthwiseSeparableConv2d(4, 6, 3, stride=2, depth_multiplier=2, **with_all),
        "separable2d, pointwise first": lambda: DepthwiseSeparableConv2d(
            4, 6, 3, padding=1, order="pointwise_first", depth_multiplier=2, **with_all
        ),
        "separable3d": lambda: DepthwiseSeparableConv3d(4, 6, 2, **options),
        "inverted residual": lambda: InvertedResidual(4, 4, expand_ratio=2, **with_all),
        "shuffle unit": lambda: ShuffleUnit(4, 12, groups=2, stride=2, bottleneck_ratio=2, **options),
    }
    return made[name]()


KEYS = {
    "depthwise1d": "weight bias",
    "depthwise2d": "weight bias",
    "depthwise3d": "weight",
    "pointwise1d": "weight bias",
    "pointwise2d": "weight bias",
    "pointwise3d": "weight",
    "separable1d": "conv_pw.weight conv_pw.bias conv_dw.weight conv_dw.bias",
    "separable2d": "conv_dw.weight conv_dw.bias bn1 act1.weight conv_pw.weight conv_pw.bias bn2 act2.weight",
    "separable2d, pointwise first": (
        "conv_pw.weight conv_pw.bias bn1 act1.weight conv_dw.weight conv_dw.bias bn2 act2.weight"
    ),
    "separable3d": "conv_dw.weight conv_dw.bias conv_pw.weight conv_pw.bias",
    "inverted residual": "conv_pw.weight bn1 act1.weight conv_dw.weight bn2 act2.weight conv_pwl.weight bn3",
    "shuffle unit": "conv_pw.weight bn1 conv_dw.weight bn2 conv_pwl.weight bn3",
}
OF_A_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
BLOCKS = list(KEYS)


def images(name: str, channels: int = 4, **options: Any) -> Tensor:
    dimensions = next((n for n in (1, 3) if f"{n}d" in name), 2)
    return torch.randn(2, channels, *[5] * dimensions, **options)


@pytest.mark.parametrize("name", BLOCKS)
def test_weights_come_back_from_a_file_under_the_same_names(name: str, tmp_path: Any) -> None:
    first, second = block(name), block(name)
    x = images(name)
    first(x)  # moves the statistics of norms
    keys = [[f"{key}.{part}" for part in OF_A_NORM] if key.startswith("bn") else [key] for key in KEYS[name].split()]
    assert list(first.state_dict()) == [key for each in keys for key in each]
    assert not torch.equal(first.eval()(x), second.eval()(x))
    weights_file.save_weights(first, tmp_path / "block.safetensors")
    weights_file.load_weights(second, tmp_path / "block.safetensors")
    assert torch.equal(first(x), second(x))
    assert torch.equal(copy.deepcopy(first)(x), first(x))


@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    # Finite differences need an activation that is smooth.
    options = {"act_layer": nn.SiLU} if "separable2d" in name or name == "inverted residual" else {}
    layer = block(name, dtype=torch.float64, **options)
    names = [key for key, _ in layer.named_parameters()]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        result = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))
        assert isinstance(result, Tensor)
        return result

    x = images(name, dtype=torch.float64, requires_grad=True)
    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)


def test_gradient_passes_a_shuffle() -> None:
    x = torch.randn(2, 6, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ChannelShuffle(3), (x,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", BLOCKS)
def test_parameters_and_result_have_the_type_asked_for(name: str, dtype: torch.dtype) -> None:
    layer = block(name, dtype=dtype)
    tensors = [t for t in (*layer.parameters(), *layer.buffers()) if t.dtype != torch.int64]
    assert {t.dtype for t in tensors} == {dtype}
    assert layer(images(name, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("name", BLOCKS)
def test_meta_device_gives_shapes_and_no_memory(name: str) -> None:
    for layer in (block(name, device="meta"), block(name, device=torch.device("meta"), dtype=torch.float64)):
        assert {t.device.type for t in (*layer.parameters(), *layer.buffers())} == {"meta"}
        x = images(name, device="meta", dtype=next(layer.parameters()).dtype)
        assert layer(x).shape == block(name)(images(name)).shape
    with torch.device("meta"):
        assert {t.device.type for t in block(name).parameters()} == {"meta"}


def test_the_articles_class_is_placed_by_torchs_own_context() -> None:
    with torch.device("meta"):
        assert next(depthwise_separable_conv(4, 8).parameters()).is_meta
