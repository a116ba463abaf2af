"""Every block with arguments of any kind: gradients by finite differences, and captured whole by PyTorch's exporter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from torch_separable.nn import (
    DepthwiseConv1d,
    DepthwiseConv2d,
    DepthwiseConv3d,
    DepthwiseSeparableConv1d,
    DepthwiseSeparableConv2d,
    DepthwiseSeparableConv3d,
    InvertedResidual,
    PointwiseConv2d,
    ShuffleUnit,
)

DEPTHWISE: dict[int, Any] = {1: DepthwiseConv1d, 2: DepthwiseConv2d, 3: DepthwiseConv3d}
SEPARABLE: dict[int, Any] = {1: DepthwiseSeparableConv1d, 2: DepthwiseSeparableConv2d, 3: DepthwiseSeparableConv3d}
NORM: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@st.composite
def blocks(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A block in evaluation mode and float64, and an input for it."""
    dimensions = draw(st.sampled_from((1, 2, 2, 3)))
    small = st.integers(1, 2)
    padding = draw(st.sampled_from(("same", "valid", 0, 1)))
    window = {
        "kernel_size": draw(st.integers(1, 3)),
        "stride": draw(small),
        "padding": padding,
        "dilation": draw(small),
        "padding_mode": draw(st.sampled_from(("zeros", "reflect", "replicate", "circular"))),
    }
    groups, bias = draw(small), draw(st.booleans())
    channels = 2 * groups
    kind = draw(st.sampled_from(("depthwise", "separable", "separable", "pointwise", "inverted", "shuffle")))
    block: nn.Module
    if kind == "depthwise":
        window["stride"] = 1 if padding == "same" else window["stride"]
        block = DEPTHWISE[dimensions](channels, depth_multiplier=draw(small), bias=bias, **window)
    elif kind == "separable":
        block = SEPARABLE[dimensions](
            channels, groups, groups=groups, depth_multiplier=draw(small), bias=bias,
            order=draw(st.sampled_from(("depthwise_first", "pointwise_first"))),
            norm_layer=NORM[dimensions] if draw(st.booleans()) else None,
            act_layer=draw(st.sampled_from((None, nn.Tanh, nn.GELU))), **window,
        )  # fmt: skip
    else:
        dimensions = 2
        if kind == "pointwise":
            block = PointwiseConv2d(channels, 3 * groups, stride=draw(small), groups=groups, bias=bias)
        elif kind == "inverted":
            block = InvertedResidual(
                channels, channels, draw(st.sampled_from((1, 3))), draw(small), draw(small), draw(small),
                norm_layer=draw(st.sampled_from((None, nn.BatchNorm2d))), act_layer=nn.Tanh,
                padding=draw(st.sampled_from(("symmetric", "same"))),
            )  # fmt: skip
        else:
            channels = 8
            stride = draw(small)
            block = ShuffleUnit(8, 8 * stride, groups=groups, stride=stride)
    size = tuple(draw(st.integers(5, 6)) for _ in range(dimensions))
    torch.manual_seed(0)
    for module in block.modules():
        if isinstance(module, tuple(NORM.values())):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return block.double().eval(), torch.randn(1, channels, *size, dtype=torch.float64)


@settings(max_examples=60)
@given(blocks())
def test_gradients_are_those_of_finite_differences(drawn: tuple[nn.Module, Tensor]) -> None:
    block, x = drawn
    names, parameters = zip(*block.named_parameters(), strict=True)

    def call(x: Tensor, *given: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(block, dict(zip(names, given, strict=True)), (x,))
        return out

    inputs = (x.requires_grad_(), *(p.detach().clone().requires_grad_() for p in parameters))
    # Along random directions: all entries one by one would take minutes.
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


@settings(max_examples=15)
@given(blocks())
def test_block_is_exported_whole(drawn: tuple[nn.Module, Tensor]) -> None:
    block, x = drawn
    program = torch.export.export(block, (x,))
    torch.testing.assert_close(program.module()(x), block(x))
    calls = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert all("aten" in str(target) for target in calls)


@pytest.mark.slow
@settings(max_examples=6)
@given(blocks())
def test_block_is_one_graph_for_the_compiler(drawn: tuple[nn.Module, Tensor]) -> None:
    block, x = drawn
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), block(x))
