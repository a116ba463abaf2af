"""Blocks go whole through ``torch.compile`` and ``torch.export``."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import nn

from torch_separable.nn import (
    ChannelShuffle,
    DepthwiseConv2d,
    DepthwiseSeparableConv1d,
    DepthwiseSeparableConv2d,
    DepthwiseSeparableConv3d,
    InvertedResidual,
    PointwiseConv2d,
    ShuffleUnit,
    depthwise_separable_conv,
)

BLOCKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "depthwise": (lambda: DepthwiseConv2d(8, 3, padding="same", padding_mode="circular", depth_multiplier=2), 2),
    "pointwise": (lambda: PointwiseConv2d(8, 6, groups=2, stride=2), 2),
    "separable1d": (lambda: DepthwiseSeparableConv1d(8, 6, 3, stride=2), 1),
    "separable2d": (
        lambda: DepthwiseSeparableConv2d(8, 6, 3, padding=1, norm_layer=nn.BatchNorm2d, act_layer=nn.ReLU),
        2,
    ),
    "separable2d, pointwise first": (
        lambda: DepthwiseSeparableConv2d(8, 6, 3, order="pointwise_first", depth_multiplier=2, act_layer=nn.GELU),
        2,
    ),
    "separable3d": (lambda: DepthwiseSeparableConv3d(8, 6, 2, groups=2), 3),
    "inverted residual": (lambda: InvertedResidual(8, 8, expand_ratio=2), 2),
    "shuffle": (lambda: ChannelShuffle(4), 2),
    "shuffle unit": (lambda: ShuffleUnit(8, 16, groups=2, stride=2, bottleneck_ratio=2), 2),
    "article": (lambda: depthwise_separable_conv(8, 6), 2),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_exported_program_takes_any_batch(name: str) -> None:
    make, dimensions = BLOCKS[name]
    block = make().eval()
    batch = torch.export.Dim("batch", min=1)
    x = torch.randn(3, 8, *[6] * dimensions)
    program = torch.export.export(block, (x,), dynamic_shapes=({0: batch},))
    for size in (3, 5):
        x = torch.randn(size, 8, *[6] * dimensions)
        torch.testing.assert_close(program.module()(x), block(x))


@pytest.mark.parametrize("name", BLOCKS)
def test_compiled_block_is_one_graph_forwards_and_backwards(name: str) -> None:
    make, dimensions = BLOCKS[name]
    block = make()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 8, *[6] * dimensions, requires_grad=True)
    y = torch.randn_like(block(x))
    expected = torch.autograd.grad((block(x) * y).sum(), (x, *block.parameters()))
    found = torch.autograd.grad((compiled(x) * y).sum(), (x, *block.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="TorchInductor needs a C++ compiler")
@pytest.mark.parametrize("name", ["separable2d", "shuffle unit"])
def test_inductors_kernels_compute_the_same(name: str) -> None:
    make, dimensions = BLOCKS[name]
    block = make().eval()
    compiled = torch.compile(block, fullgraph=True)
    x = torch.randn(2, 8, *[6] * dimensions)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), block(x))
