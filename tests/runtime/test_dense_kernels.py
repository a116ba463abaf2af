"""Dense, grouped and pointwise kernels agree with PyTorch in both precisions on every instruction set."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernel_cases import (
    ACTIVATIONS,
    SAME_3X3,
    SETS,
    activations,
    assert_close,
    convolved,
    execute,
    instruction_set,
    output_size,
    precisions,
    rounded,
    threads,
    values,
    windows,
)
from torch_separable.runtime import instruction_sets
from torch_separable.runtime.graph.ir import (
    Activation,
    ActivationKind,
    Add,
    Convolution,
    Copy,
    Depthwise,
    DepthwiseConv,
    Mean,
    Node,
    Pool,
    Program,
    Scale,
    Window,
)
from torch_separable.runtime.native.operations import MatrixSource
from torch_separable.runtime.planning.schedule import schedule

pytestmark = pytest.mark.usefixtures("running_threads")


@settings(max_examples=150)
@given(st.data(), windows(), st.integers(1, 40), st.integers(1, 70), st.integers(1, 3), activations)
def test_dense_convolution(
    data: st.DataObject, where: tuple[Window, tuple[int, int]], channels: int, outputs: int, batch: int,
    activation: Activation,
) -> None:  # fmt: skip
    window, size = where
    dtype = data.draw(precisions)
    x = values(dtype, batch, channels, *size)
    weight, bias = values(dtype, outputs, channels, *window.kernel, fan_in=channels), values(dtype, outputs)
    shape = (batch, outputs, *output_size(window, size))
    residual = data.draw(st.booleans())
    nodes: list[Node] = []
    shapes = {"x": tuple(x.shape), "y": shape}
    expected = convolved(x, weight, bias, window)
    if residual:  # a second convolution of the same shape gives the branch
        # Half of it: with the whole, nothing but rounding would be left of a single channel.
        nodes.append(Convolution("r", "x", "r", -weight.flip(0) / 2, bias, window))
        shapes["r"] = shape
        expected = expected + rounded(convolved(x, -weight.flip(0) / 2, bias, window), dtype)
    nodes.append(Convolution("y", "x", "y", weight, bias, window, activation, residual="r" if residual else None))
    got = execute(nodes, shapes, x, data.draw(instruction_set), data.draw(threads), dtype=dtype)  # type: ignore[arg-type]
    assert_close(got, ACTIVATIONS[activation](expected))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("isa", SETS)
def test_unused_cache_line_separates_pixels_whose_size_divides_a_page(
    isa: str, dtype: torch.dtype, workers: int
) -> None:
    channels = 1024 // dtype.itemsize
    x = values(dtype, 2, channels, 6, 9)
    shapes = {"x": tuple(x.shape), "a": tuple(x.shape), "y": tuple(x.shape)}
    plan = schedule(Program("x", (Add("y", "x", "x", "y"),), shapes, {}, frozenset(), ("y",), None),  # type: ignore[arg-type]
                    instruction_sets(dtype)[isa], workers)  # fmt: skip
    assert plan.strides["y"] == channels + 64 // dtype.itemsize

    kernel = values(dtype, channels, 1, 3, 3, fan_in=9)
    filters = kernel.flatten(2).permute(1, 2, 0)
    zeros, window = torch.zeros(channels), Window((3, 3), padding=(1, 1))
    depthwise = Depthwise(filters, torch.zeros(1, channels), window)
    filtered = convolved(x, kernel, zeros, window, channels)
    mixed = values(dtype, channels, channels, 1, 1, fan_in=channels)
    narrow, dense = values(dtype, 24, channels, 1, 1), values(dtype, 24, channels, 3, 3, fan_in=9 * channels)
    factors = Mean("a", "x", "a")
    means = x.mean((2, 3), keepdim=True)
    cases: list[tuple[list[Node], Tensor]] = [
        ([DepthwiseConv("y", "x", "y", depthwise)], filtered),
        ([Convolution("a", "x", "a", mixed, zeros, Window()), Add("y", "a", "x", "y")],
         convolved(x, mixed, zeros, Window()) + x),
        ([Convolution("y", "x", "y", narrow, torch.zeros(24), Window(), depthwise=depthwise)],
         convolved(rounded(filtered, dtype), narrow, torch.zeros(24), Window())),
        ([Convolution("y", "x", "y", dense, torch.zeros(24), window)], convolved(x, dense, torch.zeros(24), window)),
        ([Convolution("y", "x", "y", dense, torch.zeros(24), Window((3, 3), padding=(2, 2), dilation=(2, 2)))],
         convolved(x, dense, torch.zeros(24), Window((3, 3), padding=(2, 2), dilation=(2, 2)))),
        ([Pool("y", "x", "y", Window((2, 2), (2, 2)), maximum=True)], F.max_pool2d(x, 2)),
        ([Copy("y", "x", "y", (2, 2))], x[:, :, ::2, ::2]),
        ([factors, Scale("y", "x", "a", "y")], x * rounded(means, dtype)),
    ]  # fmt: skip
    for nodes, expected in cases:
        sizes = {**shapes, "a": tuple(means.shape) if nodes[0] is factors else shapes["a"], "y": tuple(expected.shape)}
        assert_close(execute(nodes, sizes, x, isa, workers, dtype=dtype), expected, dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("window", "size", "channels", "source"),
    [
        (SAME_3X3, (9, 37), 32, MatrixSource.ROW_VIEW),
        (Window((3, 3), (2, 2), (1, 1)), (35, 70), 32, MatrixSource.ROW_VIEW),
        (Window((3, 3), (2, 3), (0, 0), (2, 1)), (19, 100), 64, MatrixSource.ROW_VIEW),
        (Window((5, 2), (1, 1), (4, 3)), (6, 40), 32, MatrixSource.ROW_VIEW),  # padding wider than the kernel
        (Window((4, 4), (4, 4)), (8, 130), 8, MatrixSource.ROW_VIEW),  # disjoint patches, two columns left over
        (Window((1, 3), padding=(0, 70)), (3, 1), 32, MatrixSource.ROW_VIEW),  # lines of padding almost alone
        (Window((3, 3), padding=(1, 1), dilation=(1, 2)), (9, 37), 32, MatrixSource.IM2COL),  # its runs have gaps
        (Window((1, 1), (2, 2)), (9, 37), 32, MatrixSource.IM2COL),  # nothing to share
        (SAME_3X3, (9, 2), 32, MatrixSource.IM2COL),  # rows too short for a micro-kernel
        (SAME_3X3, (9, 37), 31, MatrixSource.ROW_VIEW),  # zeros make a kernel row's values even
        (Window((3, 3), (2, 2), (1, 1)), (35, 70), 63, MatrixSource.ROW_VIEW),
        (Window((5, 3), (1, 1), (4, 3)), (6, 40), 127, MatrixSource.ROW_VIEW),
    ],
)  # fmt: skip
def test_dense_convolution_uses_a_row_view_where_possible(
    window: Window, size: tuple[int, int], channels: int, source: MatrixSource, workers: int
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x, outputs = values(dtype, 2, channels, *size), 40
        weight, bias = values(dtype, outputs, channels, *window.kernel, fan_in=channels), values(dtype, outputs)
        node = Convolution("y", "x", "y", weight, bias, window)
        shapes = {"x": (2, channels, *size), "y": (2, outputs, *output_size(window, size))}
        for isa in SETS:
            program = Program("x", (node,), shapes, {}, frozenset(), ("y",), None)
            (step,) = schedule(program, instruction_sets(dtype)[isa], workers).steps
            assert step.operations[-1].convolution.source == source, isa
            assert_close(execute([node], shapes, x, isa, workers, dtype=dtype), convolved(x, weight, bias, window))


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("window", [SAME_3X3, Window((3, 3), (2, 2), (1, 1)), Window((7, 7), (2, 2), (3, 3))])
def test_first_convolution_uses_a_row_view_of_rgb_images(isa: str, window: Window) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = values(dtype, 2, 3, 35, 70)
        weight, bias = values(dtype, 24, 3, *window.kernel, fan_in=27), values(dtype, 24)
        node = Convolution("y", "x", "y", weight, bias, window)
        shapes = {"x": (2, 3, 35, 70), "y": (2, 24, *output_size(window, (35, 70)))}
        kernels = instruction_sets(dtype)[isa]
        plan = schedule(Program("x", (node,), shapes, {}, frozenset(), ("y",), None), kernels, 1)
        # A dot product of bfloat16 takes two values at a time: a fourth channel of zeros makes a kernel's row even. Of
        # AMX's 32 most would be zeros; where bfloat16 are made floats, a third of the multiply-adds would be more.
        dot = isa == "avx512bf16" and dtype == torch.bfloat16
        assert plan.strides["x"] == (4 if dot else 3)
        by_lines = dot or dtype == torch.float32
        assert plan.steps[0].operations[-1].convolution.source == (
            MatrixSource.ROW_VIEW if by_lines else MatrixSource.IM2COL
        )
        for layout in (torch.contiguous_format, torch.channels_last):
            laid_out = x.contiguous(memory_format=layout)
            assert_close(execute([node], shapes, laid_out, isa, 1, dtype=dtype), convolved(x, weight, bias, window))


@settings(max_examples=100)
@given(st.data(), windows(), st.integers(1, 6), st.integers(1, 12), st.integers(1, 20), activations)
def test_grouped_convolution(
    data: st.DataObject, where: tuple[Window, tuple[int, int]], groups: int, channels: int, outputs: int,
    activation: Activation,
) -> None:  # fmt: skip
    window, size = where
    dtype = data.draw(precisions)
    x = values(dtype, 2, groups * channels, *size)
    weight, bias = values(dtype, groups * outputs, channels, *window.kernel), values(dtype, groups * outputs)
    shape = (2, groups * outputs, *output_size(window, size))
    branch = Convolution("r", "x", "r", weight / 2, bias, window, groups=groups)
    node = Convolution("y", "x", "y", weight, bias, window, activation, residual="r", groups=groups)
    shapes = {"x": tuple(x.shape), "r": shape, "y": shape}
    isa, workers = data.draw(instruction_set), data.draw(threads)
    # What is not finite stays in its group, though groups are computed together.
    infinite = [] if activation.kind is ActivationKind.GELU else [math.inf, -math.inf]  # PyTorch's GELU(inf) is NaN
    spoilt = data.draw(st.sampled_from([0.0, math.nan, *infinite]))
    x.flatten()[data.draw(st.integers(0, x.numel() - 1))] += spoilt
    got = execute([branch, node], shapes, x, isa, workers, dtype=dtype)  # type: ignore[arg-type]
    beside = rounded(convolved(x, weight / 2, bias, window, groups), dtype)
    expected = ACTIVATIONS[activation](convolved(x, weight, bias, window, groups) + beside)
    assert torch.equal(got.isnan(), expected.isnan())
    numbers = (each.nan_to_num(0.0, math.inf, -math.inf) for each in (got, expected))
    assert_close(*numbers, torch.float32 if groups == 1 else dtype)


@settings(max_examples=100)
@given(st.data(), st.integers(1, 300), st.integers(1, 300), st.integers(1, 15), st.integers(1, 15), st.integers(1, 3))
def test_pointwise_convolution_of_any_channel_count(
    data: st.DataObject, channels: int, outputs: int, height: int, width: int, batch: int
) -> None:
    dtype = data.draw(precisions)
    x = values(dtype, batch, channels, height, width)
    weight, bias = values(dtype, outputs, channels, 1, 1, fan_in=channels), values(dtype, outputs)
    node = Convolution("y", "x", "y", weight, bias, Window(), Activation(alpha=0.0))
    shapes = {"x": (batch, channels, height, width), "y": (batch, outputs, height, width)}
    got = execute([node], shapes, x, data.draw(instruction_set), data.draw(threads), dtype=dtype)
    assert_close(got, F.relu(convolved(x, weight, bias, Window())))


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize(("dtype", "channels"), [(torch.float32, 1024), (torch.bfloat16, 1024), (torch.bfloat16, 2048)])
@pytest.mark.parametrize("workers", [1, 2])
def test_pointwise_convolution_with_a_page_per_pixel(isa: str, dtype: torch.dtype, channels: int, workers: int) -> None:
    # Their lines compete for a set of the cache, so that kernels take them further apart than they are.
    x = values(dtype, 1, channels, 5, 7)
    weight, bias = values(dtype, 40, channels, 1, 1, fan_in=channels), values(dtype, 40)
    filters, filter_bias = values(dtype, channels, 1, 3, 3, fan_in=9), values(dtype, channels)
    second = Window(stride=(2, 2))
    around = Window(kernel=(3, 3), padding=(1, 1))
    relu = Activation(alpha=0.0)
    depthwise = Depthwise(filters.flatten(1).T[None], filter_bias[None], around, relu)
    filtered = rounded(F.relu(convolved(x, filters, filter_bias, around, groups=channels)), dtype)
    for node, size, expected in (
        (Convolution("y", "x", "y", weight, bias, Window(), relu), (5, 7), convolved(x, weight, bias, Window())),
        (Convolution("y", "x", "y", weight, bias, second, relu), (3, 4), convolved(x, weight, bias, second)),
        (
            Convolution("y", "x", "y", weight, bias, Window(), relu, depthwise=depthwise), (5, 7),
            convolved(filtered, weight, bias, Window()),
        ),
    ):  # fmt: skip
        shapes = {"x": (1, channels, 5, 7), "y": (1, 40, *size)}
        assert_close(execute([node], shapes, x, isa, workers, dtype=dtype), F.relu(expected))


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", [(2, 2), (1, 4), (3, 2), (4, 4)])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_even_kernels_over_odd_channels(isa: str, dtype: torch.dtype, kernel: tuple[int, int], channels: int) -> None:
    x, window = values(dtype, 2, channels, 9, 30), Window(kernel, padding=(1, 1))
    weight, bias = values(dtype, 7, channels, *kernel), values(dtype, 7)
    shapes = {"x": (2, channels, 9, 30), "y": (2, 7, *output_size(window, (9, 30)))}
    got = execute([Convolution("y", "x", "y", weight, bias, window)], shapes, x, isa, 1, dtype=dtype)  # type: ignore[arg-type]
    assert_close(got, convolved(x, weight, bias, window))
