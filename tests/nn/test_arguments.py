"""Every wrong argument is refused at construction, in words that name the argument, its value and the rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_separable.errors import SeparableError, SeparableValueError
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

AT_LEAST_1 = "must be a whole number, at least 1"
NOT_WHOLE = [0, -1, True, 2.0, "3", None]

# Arguments that each block accepts, on which the tables below change one or two.
VALID: dict[Callable[..., nn.Module], dict[str, Any]] = {
    **{block: {"in_channels": 4, "kernel_size": 3} for block in (DepthwiseConv1d, DepthwiseConv2d, DepthwiseConv3d)},
    **{block: {"in_channels": 4, "out_channels": 8} for block in (PointwiseConv1d, PointwiseConv2d, PointwiseConv3d)},
    **{
        block: {"in_channels": 4, "out_channels": 8, "kernel_size": 3}
        for block in (DepthwiseSeparableConv1d, DepthwiseSeparableConv2d, DepthwiseSeparableConv3d)
    },
    ChannelShuffle: {"groups": 2},
    ShuffleUnit: {"in_channels": 24, "out_channels": 24},
    InvertedResidual: {"in_channels": 4, "out_channels": 8},
    depthwise_separable_conv: {"ch_in": 4, "ch_out": 8},
}
DEPTHWISE = [DepthwiseConv1d, DepthwiseConv2d, DepthwiseConv3d]
POINTWISE = [PointwiseConv1d, PointwiseConv2d, PointwiseConv3d]
SEPARABLE = [DepthwiseSeparableConv1d, DepthwiseSeparableConv2d, DepthwiseSeparableConv3d]
WINDOWED = [*DEPTHWISE, *SEPARABLE]
DIMENSIONS = {block: n for blocks in (DEPTHWISE, POINTWISE, SEPARABLE) for n, block in enumerate(blocks, start=1)}
PLACED = [block for block in VALID if block not in (ChannelShuffle, depthwise_separable_conv)]

WHOLE = [
    *[(block, name) for block in DEPTHWISE for name in ("in_channels", "depth_multiplier")],
    *[(block, name) for block in POINTWISE for name in ("in_channels", "out_channels", "groups")],
    *[(block, name) for block in SEPARABLE for name in ("in_channels", "out_channels", "depth_multiplier", "groups")],
    (ChannelShuffle, "groups"),
    *[(ShuffleUnit, name) for name in ("in_channels", "out_channels", "groups", "bottleneck_ratio")],
    *[(InvertedResidual, name) for name in ("in_channels", "out_channels", "expand_ratio")],
    *[(depthwise_separable_conv, name) for name in ("ch_in", "ch_out")],
]
PER_DIMENSION = [
    *[(block, name) for block in WINDOWED for name in ("kernel_size", "stride", "dilation", "padding")],
    *[(block, "stride") for block in POINTWISE],
    (ShuffleUnit, "kernel_size"),
    *[(InvertedResidual, name) for name in ("kernel_size", "stride", "dilation")],
]
FLAGS = [
    *[(block, "bias") for block in (*DEPTHWISE, *POINTWISE)],
    *[
        (block, name)
        for block in SEPARABLE
        for name in ("bias", "bias_between", "norm_between", "act_between", "norm_after", "act_after")
    ],
]
FACTORIES = [(block, name) for block in (*SEPARABLE, InvertedResidual) for name in ("norm_layer", "act_layer")]


def refusal(block: Callable[..., nn.Module], **changes: Any) -> str:
    with pytest.raises(SeparableValueError) as caught:
        block(**{**VALID[block], **changes})
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("block", VALID, ids=lambda block: block.__name__)
def test_the_arguments_that_the_tables_change_are_accepted(block: Callable[..., nn.Module]) -> None:
    assert isinstance(block(**VALID[block]), nn.Module)


@pytest.mark.parametrize("value", NOT_WHOLE, ids=repr)
@pytest.mark.parametrize(("block", "name"), WHOLE)
def test_numbers_are_whole_and_positive(block: Callable[..., nn.Module], name: str, value: object) -> None:
    assert refusal(block, **{name: value}) == f"{name}={value!r}: {AT_LEAST_1}"


@pytest.mark.parametrize(("block", "name"), PER_DIMENSION)
def test_numbers_of_a_window_are_whole_and_as_many_as_there_are_dimensions(
    block: Callable[..., nn.Module], name: str
) -> None:
    dimensions = DIMENSIONS.get(block, 2)
    least = 0 if name == "padding" else 1
    rule = f"must be a whole number, at least {least}"
    for value in (least - 1, True, 1.0, None):
        assert refusal(block, **{name: value}) == f"{name}={value!r}: {rule}"
        among = (1,) * (dimensions - 1) + (value,)
        assert refusal(block, **{name: among}) == f"{name}={value!r}: {rule}"
    for length in {0, dimensions - 1, dimensions + 1, 2 * dimensions} - {dimensions}:
        many = (1,) * length
        assert refusal(block, **{name: many}) == (
            f"{name}={many!r}: must be one whole number, or {dimensions} of them, one for each spatial dimension"
        )


@pytest.mark.parametrize("value", [0, 1, "yes", None], ids=repr)
@pytest.mark.parametrize(("block", "name"), FLAGS)
def test_switches_are_bools(block: Callable[..., nn.Module], name: str, value: object) -> None:
    if (name, value) == ("bias_between", None):
        assert isinstance(block(**VALID[block], bias_between=None), nn.Module)
    else:
        assert refusal(block, **{name: value}) == f"{name}={value!r}: must be True or False"


@pytest.mark.parametrize(("block", "name"), FACTORIES)
def test_layer_arguments_are_callables_that_return_a_module(block: Callable[..., nn.Module], name: str) -> None:
    assert refusal(block, **{name: "relu"}) == f"{name}='relu': must be None, or a callable that returns a module"
    ready = nn.Sequential(nn.ReLU(), nn.ReLU())
    assert refusal(block, **{name: ready}) == (
        f"{name}=Sequential(…): must be a callable that builds a layer, such as nn.Sequential"
    )
    given = "the number of channels" if name == "norm_layer" else "no arguments"
    for value, complaint in (
        (nn.GroupNorm if name == "norm_layer" else F.relu, "it raised"),
        (lambda *channels: 3, "it returned 3"),
    ):
        message = refusal(block, **{name: value})
        assert message.startswith(f"{name}={value!r}: must take {given} and return a module, but ")
        assert complaint in message


@pytest.mark.parametrize("block", WINDOWED)
def test_padding_is_numbers_or_a_known_string(block: Callable[..., nn.Module]) -> None:
    for value in ("SAME", "full", ""):
        assert refusal(block, padding=value) == f"padding={value!r}: must be one of 'same', 'valid'"
    steps = (2,) * DIMENSIONS[block]
    for stride in (2, list(steps)) if block not in SEPARABLE else ():
        assert refusal(block, padding="same", stride=stride) == (
            f"padding='same' with stride={steps}: 'same' is defined for stride 1 only"
        )
    for mode in ("constant", None, ("zeros",)):
        assert refusal(block, padding_mode=mode) == (
            f"padding_mode={mode!r}: must be one of 'zeros', 'reflect', 'replicate', 'circular'"
        )


@pytest.mark.parametrize("block", SEPARABLE)
def test_order_is_a_known_string(block: Callable[..., nn.Module]) -> None:
    for value in ("dw_first", "", None, 1):
        assert refusal(block, order=value) == f"order={value!r}: must be one of 'depthwise_first', 'pointwise_first'"


@pytest.mark.parametrize(
    ("block", "changes", "message"),
    [
        *[
            (block, {"groups": 3, "in_channels": 4, "out_channels": 9}, "groups=3 does not divide in_channels=4: ")
            for block in (*POINTWISE, *SEPARABLE)
        ],
        *[
            (block, {"groups": 4, "in_channels": 4, "out_channels": 6}, "groups=4 does not divide out_channels=6: ")
            for block in (*POINTWISE, *SEPARABLE)
        ],
        (ShuffleUnit, {"groups": 5}, "groups=5 does not divide in_channels=24: "),
        (ShuffleUnit, {"bottleneck_ratio": 5}, "bottleneck_ratio=5 does not divide out_channels=24: "),
        (ShuffleUnit, {"groups": 12}, "groups=12 does not divide out_channels / bottleneck_ratio=6: "),
    ],
)
def test_divisors_divide(block: Callable[..., nn.Module], changes: dict[str, Any], message: str) -> None:
    refused = refusal(block, **changes)
    divisor, _, rest = message.partition("=")
    of = rest.partition("divide ")[2].rpartition("=")[0]
    assert refused == f"{message}{of} must be a multiple of {divisor}"


def test_shuffle_unit_adds_at_stride_1_and_concatenates_at_stride_2() -> None:
    for stride in (0, 3, True, None, "2"):
        assert refusal(ShuffleUnit, stride=stride) == f"stride={stride!r}: must be 1 or 2"
    assert refusal(ShuffleUnit, out_channels=48) == (
        "out_channels=48 with stride=1: must equal in_channels=24, which it is added to"
    )
    assert refusal(ShuffleUnit, stride=2) == (
        "out_channels=24 with stride=2: must exceed in_channels=24, which are concatenated to it"
    )


@pytest.mark.parametrize("block", [ShuffleUnit, InvertedResidual])
def test_kernels_of_units_that_keep_the_size_are_odd(block: Callable[..., nn.Module]) -> None:
    for kernel in (2, (3, 4)):
        message = f"kernel_size={kernel!r}: must be odd, so that padding keeps the size"
        assert refusal(block, kernel_size=kernel) == message


@pytest.mark.parametrize("block", PLACED)
def test_device_and_dtype_are_checked(block: Callable[..., nn.Module]) -> None:
    for device in ("gpu", 1.5):
        assert refusal(block, device=device) == f"device={device!r}: must be a device, such as 'cpu' or 'cuda:0'"
    for dtype in (torch.int64, torch.bool, "float32"):
        assert refusal(block, dtype=dtype) == f"dtype={dtype!r}: must be a floating-point type, such as torch.float32"


def test_a_refusal_is_a_value_error_and_an_error_of_the_package() -> None:
    for kind in (ValueError, SeparableError):
        with pytest.raises(kind):
            DepthwiseConv2d(0, 3)
