"""Every kernel beside its plain PyTorch reference, in both precisions, on every instruction set that runs here.

In bfloat16 all values are small whole numbers, whose sums are exact in any order: what is left is the rounding of what
is stored, so that results agree to the last bit of it, and a wrong tile cannot hide behind it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torch_separable.runtime import available, instruction_sets
from torch_separable.runtime.graph.ir import (
    Activate,
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
from torch_separable.runtime.native.bindings import Kind, MatrixSource, run
from torch_separable.runtime.planning import packing
from torch_separable.runtime.planning import schedule as schedule_module
from torch_separable.runtime.planning.packing import padded
from torch_separable.runtime.planning.schedule import schedule, view_of

pytestmark = pytest.mark.usefixtures("running_threads")

SETS = list(instruction_sets()) if available() else ["none"]
GUARD = 1024  # floats before and after the workspace that nothing may touch

ACTIVATIONS = {
    Activation(): lambda x: x,
    Activation(alpha=0.0): F.relu,
    Activation(alpha=0.0, beta=6.0): F.relu6,
    Activation(ActivationKind.LEAKY_RELU, 0.1): lambda x: F.leaky_relu(x, 0.1),
    Activation(ActivationKind.SILU): F.silu,
    Activation(ActivationKind.HARDSWISH): F.hardswish,
    Activation(ActivationKind.GELU): F.gelu,
    Activation(ActivationKind.GELU_TANH): lambda x: F.gelu(x, approximate="tanh"),
    Activation(ActivationKind.SIGMOID): torch.sigmoid,
    Activation(ActivationKind.HARDSIGMOID): F.hardsigmoid,
}
activations = st.sampled_from(list(ACTIVATIONS))
instruction_set = st.sampled_from(SETS)
threads = st.sampled_from([1, 2, 3])
precisions = st.sampled_from([torch.float32, torch.bfloat16])


def values(dtype: torch.dtype, *shape: int, fan_in: int = 1) -> Tensor:
    """Random values of about the size of 1; of 1/sqrt(fan_in) in float32."""
    if dtype == torch.float32:
        return torch.randn(shape) / math.sqrt(fan_in)
    return torch.randint(-2, 3, shape).float()


def stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What is left of values that are stored."""
    return x.to(dtype).float()


def execute(
    nodes: Sequence[Node], shapes: dict[str, tuple[int, int, int, int]], x: Tensor, isa: str, workers: int,
    blocks: dict[str, int] | None = None, dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Run nodes on ``x`` (value "x") and return the last one's output; nothing outside the workspace may change."""
    if dtype == torch.bfloat16 and isinstance(nodes[-1], Convolution) and nodes[-1].groups == 1:
        # Its sums are the network's output, unrounded; where something reads them they are rounded.
        last = nodes[-1].output
        copied = [*nodes, Copy("copy", last, "copy")]
        narrow = executed(copied, {**shapes, "copy": shapes[last]}, x, isa, workers, blocks, dtype)
        wide = executed(nodes, shapes, x, isa, workers, blocks, dtype)
        assert torch.equal(narrow.nan_to_num(), wide.bfloat16().float().nan_to_num())
        return wide
    return executed(nodes, shapes, x, isa, workers, blocks, dtype)


def executed(
    nodes: Sequence[Node], shapes: dict[str, tuple[int, int, int, int]], x: Tensor, isa: str, workers: int,
    blocks: dict[str, int] | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    program = Program("x", tuple(nodes), shapes, blocks or {}, frozenset(), (nodes[-1].output,), None)
    kernels = instruction_sets(dtype)[isa]
    plan = schedule(program, kernels, workers)
    memory = torch.full((plan.size + 2 * GUARD,), math.nan, dtype=dtype)
    workspace = memory[GUARD:-GUARD]
    (step,) = plan.steps
    step.operations[0].external.strides[:] = x.stride()
    run(step.operations, workspace, x.data_ptr(), workers)
    assert memory[:GUARD].isnan().all()
    assert memory[-GUARD:].isnan().all()
    name = nodes[-1].output
    result = view_of(workspace, plan, name).to(torch.float32, copy=True)
    assert (name in plan.wide) == (
        dtype == torch.bfloat16 and isinstance(nodes[-1], Convolution) and nodes[-1].groups == 1
    )
    # Channels beyond the last stay zero, so that what reads whole vectors adds nothing.
    n, c, h, w = shapes[name]
    if name not in (blocks or {}) and name not in plan.wide:
        few = kernels.narrow is not None and c <= kernels.narrow.lanes
        read = padded(c, kernels.narrow.lanes if few and kernels.narrow else kernels.lanes)
        pixels = torch.as_strided(workspace, (n * h * w, read), (plan.strides[name], 1), GUARD + plan.offsets[name])
        assert pixels[:, c:].eq(0).all() or isinstance(nodes[-1], Activate) or _moves_zero(nodes[-1])
    return result


def _moves_zero(node: Node) -> bool:
    """Sigmoids turn the zeros of the padding to something else; readers give those channels weight zero."""
    kind = getattr(node, "activation", Activation()).kind
    return kind in (ActivationKind.SIGMOID, ActivationKind.HARDSIGMOID)


def assert_close(got: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32, slack: float = 0.0) -> None:
    """Compare with exact results, which were rounded to ``dtype`` when they were stored."""
    assert got.shape == expected.shape
    finite = expected.isfinite()
    assert torch.equal(got[~finite], expected[~finite])
    # The terms of every sum are of the size of 1: a lone output that they cancel to nearly nothing has their rounding.
    scale = float(expected[finite].abs().max().clamp_min(0.3)) if finite.any() else 0.0
    rounding = expected[finite].abs() * (2**-8 if dtype == torch.bfloat16 else 0.0)
    assert not finite.any() or bool(((got - expected)[finite].abs() <= 1e-5 * scale + rounding + slack).all())


def two_ties(inner: Tensor, weight: Tensor, activation: Activation, dtype: torch.dtype) -> float:
    """What two values may do to a sum that lie so near to between two of bfloat16 that one was rounded up, one down.

    It takes activations to have such values: those of convolutions are whole numbers.
    """
    exact = dtype == torch.float32 or activation.kind is ActivationKind.CLAMP
    return 0.0 if exact else 2 * 2**-7 * float(inner.abs().max() * weight.abs().max())


def dense_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


@st.composite
def windows(draw: st.DrawFn, pointwise: bool = False) -> tuple[Window, tuple[int, int]]:
    """A window, and a size of image on which it has at least one output pixel."""
    kernel = (1, 1) if pointwise else tuple(draw(st.sampled_from([1, 2, 3, 5, 7])) for _ in range(2))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(2))
    padding = tuple(draw(st.integers(0, 3)) for _ in range(2))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(2))
    if draw(st.booleans()):  # the shapes that have kernels of their own
        side, step = draw(st.sampled_from([3, 5, 7])), draw(st.sampled_from([1, 2]))
        kernel, stride, padding, dilation = (side, side), (step, step), (side // 2, side // 2), (1, 1)
    size = tuple(
        max(draw(st.integers(1, 17)), d * (k - 1) + 1 - 2 * p)
        for k, p, d in zip(kernel, padding, dilation, strict=True)
    )
    return Window(kernel, stride, padding, dilation), size  # type: ignore[arg-type]


def output_size(window: Window, size: tuple[int, int]) -> tuple[int, int]:
    both = zip(size, window.kernel, window.stride, window.padding, window.dilation, strict=True)
    height, width = (dense_size(*each) for each in both)
    return height, width


def convolved(x: Tensor, weight: Tensor, bias: Tensor, window: Window, groups: int = 1) -> Tensor:
    result = F.conv2d(
        x.double(), weight.double(), bias.double(), window.stride, window.padding, window.dilation, groups
    )
    return result.float()


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
        expected = expected + stored(convolved(x, -weight.flip(0) / 2, bias, window), dtype)
    nodes.append(Convolution("y", "x", "y", weight, bias, window, activation, residual="r" if residual else None))
    got = execute(nodes, shapes, x, data.draw(instruction_set), data.draw(threads), dtype=dtype)  # type: ignore[arg-type]
    assert_close(got, ACTIVATIONS[activation](expected))


BY_LINES = Window((3, 3), padding=(1, 1))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("isa", SETS)
def test_pixels_whose_channels_are_a_page_or_a_part_of_it_lie_a_line_apart(
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
         convolved(stored(filtered, dtype), narrow, torch.zeros(24), Window())),
        ([Convolution("y", "x", "y", dense, torch.zeros(24), window)], convolved(x, dense, torch.zeros(24), window)),
        ([Convolution("y", "x", "y", dense, torch.zeros(24), Window((3, 3), padding=(2, 2), dilation=(2, 2)))],
         convolved(x, dense, torch.zeros(24), Window((3, 3), padding=(2, 2), dilation=(2, 2)))),
        ([Pool("y", "x", "y", Window((2, 2), (2, 2)), maximum=True)], F.max_pool2d(x, 2)),
        ([Copy("y", "x", "y", (2, 2))], x[:, :, ::2, ::2]),
        ([factors, Scale("y", "x", "a", "y")], x * stored(means, dtype)),
    ]  # fmt: skip
    for nodes, expected in cases:
        sizes = {**shapes, "a": tuple(means.shape) if nodes[0] is factors else shapes["a"], "y": tuple(expected.shape)}
        assert_close(execute(nodes, sizes, x, isa, workers, dtype=dtype), expected, dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("window", "size", "channels", "source"),
    [
        (BY_LINES, (9, 37), 32, MatrixSource.ROW_VIEW),
        (Window((3, 3), (2, 2), (1, 1)), (35, 70), 32, MatrixSource.ROW_VIEW),
        (Window((3, 3), (2, 3), (0, 0), (2, 1)), (19, 100), 64, MatrixSource.ROW_VIEW),
        (Window((5, 2), (1, 1), (4, 3)), (6, 40), 32, MatrixSource.ROW_VIEW),  # padding wider than the kernel
        (Window((4, 4), (4, 4)), (8, 130), 8, MatrixSource.ROW_VIEW),  # disjoint patches, two columns left over
        (Window((1, 3), padding=(0, 70)), (3, 1), 32, MatrixSource.ROW_VIEW),  # lines of padding almost alone
        (Window((3, 3), padding=(1, 1), dilation=(1, 2)), (9, 37), 32, MatrixSource.IM2COL),  # its runs have gaps
        (Window((1, 1), (2, 2)), (9, 37), 32, MatrixSource.IM2COL),  # nothing to share
        (BY_LINES, (9, 2), 32, MatrixSource.IM2COL),  # rows too short for a micro-kernel
        (BY_LINES, (9, 37), 31, MatrixSource.ROW_VIEW),  # zeros make a kernel row's values even
        (Window((3, 3), (2, 2), (1, 1)), (35, 70), 63, MatrixSource.ROW_VIEW),
        (Window((5, 3), (1, 1), (4, 3)), (6, 40), 127, MatrixSource.ROW_VIEW),
    ],
)  # fmt: skip
def test_dense_convolution_reads_lines_where_it_can(
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
@pytest.mark.parametrize("window", [BY_LINES, Window((3, 3), (2, 2), (1, 1)), Window((7, 7), (2, 2), (3, 3))])
def test_the_first_convolution_reads_lines_of_colour_images(isa: str, window: Window) -> None:
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
    beside = stored(convolved(x, weight / 2, bias, window, groups), dtype)
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
def test_pixels_a_page_apart(isa: str, dtype: torch.dtype, channels: int, workers: int) -> None:
    # Their lines compete for a set of the cache, so that kernels take them further apart than they are.
    x = values(dtype, 1, channels, 5, 7)
    weight, bias = values(dtype, 40, channels, 1, 1, fan_in=channels), values(dtype, 40)
    filters, filter_bias = values(dtype, channels, 1, 3, 3, fan_in=9), values(dtype, channels)
    second = Window(stride=(2, 2))
    around = Window(kernel=(3, 3), padding=(1, 1))
    relu = Activation(alpha=0.0)
    depthwise = Depthwise(filters.flatten(1).T[None], filter_bias[None], around, relu)
    filtered = stored(F.relu(convolved(x, filters, filter_bias, around, groups=channels)), dtype)
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


@settings(max_examples=150)
@given(st.data(), windows(), st.integers(1, 72), st.integers(1, 3), st.integers(1, 2), activations)
def test_depthwise_and_separable_convolution(
    data: st.DataObject, where: tuple[Window, tuple[int, int]], channels: int, multiplier: int, batch: int,
    between: Activation,
) -> None:  # fmt: skip
    window, size = where
    outputs, dtype = data.draw(st.integers(1, 40)), data.draw(precisions)
    x = values(dtype, batch, channels, *size)
    filters = values(dtype, channels * multiplier, 1, *window.kernel)
    filter_bias = values(dtype, channels * multiplier)
    depthwise = Depthwise(
        filters.flatten(1).view(channels, multiplier, -1).permute(1, 2, 0),
        filter_bias.view(channels, multiplier).T,
        window,
        between,
    )
    inner = ACTIVATIONS[between](convolved(x, filters, filter_bias, window, groups=channels))
    isa, workers = data.draw(instruction_set), data.draw(threads)
    size = output_size(window, size)
    if multiplier == 1:
        alone = execute(
            [DepthwiseConv("y", "x", "y", depthwise)],
            {"x": tuple(x.shape), "y": (batch, channels, *size)},  # type: ignore[dict-item]
            x, isa, workers, dtype=dtype,
        )  # fmt: skip
        assert_close(alone, inner, dtype)
    weight, bias = values(dtype, outputs, channels * multiplier, 1, 1), values(dtype, outputs)
    blocked = weight.view(outputs, channels, multiplier).transpose(1, 2).reshape(outputs, -1, 1, 1)
    node = Convolution("y", "x", "y", blocked, bias, Window(), Activation(alpha=0.0), depthwise=depthwise)
    shapes = {"x": tuple(x.shape), "y": (batch, outputs, *size)}
    got = execute([node], shapes, x, isa, workers, dtype=dtype)  # type: ignore[arg-type]
    expected = F.relu(convolved(stored(inner, dtype), weight, bias, Window()))
    assert_close(got, expected, slack=two_ties(inner, weight, between, dtype))
    # As several threads take late layers apart: a filtered block of channels for each kernel of a channel.
    apart = [DepthwiseConv("z", "x", "z", depthwise), replace(node, input="z", depthwise=None)]
    between_them = {**shapes, "z": (batch, multiplier * channels, *size)}
    got = execute(apart, between_them, x, isa, workers, {"z": multiplier}, dtype)  # type: ignore[arg-type]
    assert_close(got, expected, slack=two_ties(inner, weight, between, dtype))


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize(("channels", "outputs"), [(8, 5), (5, 24), (24, 8), (7, 40), (40, 17)])
def test_few_channels_are_padded_to_a_narrow_vector(isa: str, channels: int, outputs: int) -> None:
    kernels = instruction_sets()[isa]
    x, around = values(torch.float32, 2, 6, 11, 19), Window((3, 3), padding=(1, 1))
    first, bias = values(torch.float32, channels, 6, 3, 3, fan_in=54), values(torch.float32, channels)
    filters, between = values(torch.float32, channels, 1, 3, 3, fan_in=9), values(torch.float32, channels)
    weight, last = values(torch.float32, outputs, channels, 1, 1, fan_in=channels), values(torch.float32, outputs)
    depthwise = Depthwise(filters.flatten(1).T[None], between[None], around, Activation(alpha=0.0))
    nodes = [
        Convolution("a", "x", "a", first, bias, around),
        Convolution("b", "a", "b", weight, last, Window(), depthwise=depthwise),
        Add("y", "b", "b", "y", Activation(alpha=0.0)),
    ]
    shapes = {"x": (2, 6, 11, 19), "a": (2, channels, 11, 19), "b": (2, outputs, 11, 19), "y": (2, outputs, 11, 19)}
    plan = schedule(Program("x", tuple(nodes), shapes, {}, frozenset(), ("y",), None), kernels, 1)
    half = kernels.lanes // 2 if kernels.lanes == 16 else kernels.lanes
    for name, count in (("a", channels), ("b", outputs), ("y", outputs)):
        lanes = half if count <= half else kernels.lanes
        assert plan.strides[name] == -(-count // lanes) * lanes
    hidden = convolved(x, first, bias, around)
    filtered = F.relu(convolved(hidden, filters, between, around, groups=channels))
    expected = F.relu(2 * convolved(filtered, weight, last, Window()))
    assert_close(execute(nodes, shapes, x, isa, 2), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (5, 3), (9, 16), (20, 31)])
@pytest.mark.parametrize("outputs", [17, 24, 40, 72])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("isa", [isa for isa in SETS if available() and instruction_sets()[isa].paired_tail])
def test_two_pixels_share_a_vector_that_is_half_empty(
    isa: str, dtype: torch.dtype, outputs: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    channels, around = 24, Window((3, 3), padding=(1, 1))
    x = values(dtype, 3, channels, *size)
    x[0, 0, 0, 0], x[1, 1, -1, -1] = math.inf, math.nan
    dense = values(dtype, outputs, channels, 3, 3, fan_in=9 * channels)
    weight, bias = values(dtype, outputs, channels, 1, 1, fan_in=channels), values(dtype, outputs)
    filters = Depthwise(values(dtype, 1, 9, channels, fan_in=9), values(dtype, 1, channels), around)
    point = values(dtype, outputs, outputs, 1, 1, fan_in=outputs)
    nodes = [
        Convolution("a", "x", "a", weight, bias, Window(), Activation(alpha=0.0)),
        Convolution("b", "x", "b", dense, bias, around, Activation(ActivationKind.SILU), residual="a"),
        Convolution("c", "x", "c", weight, bias, Window(), residual="b", depthwise=filters),
        Convolution("y", "c", "y", point, bias, Window(), Activation(ActivationKind.HARDSWISH), residual="b"),
    ]
    shapes = {"x": tuple(x.shape), **dict.fromkeys("abcy", (3, outputs, *size))}
    kernels = instruction_sets(dtype)[isa]
    for workers in (1, 2):
        plan = schedule(Program("x", tuple(nodes), shapes, {}, frozenset(), ("y",), None), kernels, workers)  # type: ignore[arg-type]
        assert {bool(o.convolution.paired_tail) for o in plan.steps[0].operations if o.kind == Kind.CONVOLUTION} == {
            kernels.paired_tail
        }
        shared = execute(nodes, shapes, x, isa, workers, dtype=dtype)  # type: ignore[arg-type]
        with monkeypatch.context() as patched:
            for module in (schedule_module, packing):
                patched.setattr(module, "has_paired_tail", lambda channels, kernels: False)
            alone = execute(nodes, shapes, x, isa, workers, dtype=dtype)  # type: ignore[arg-type]
        assert torch.equal(shared.nan_to_num(7.0), alone.nan_to_num(7.0))
        assert shared.isfinite().any() or size == (1, 1)


@settings(max_examples=80)
@given(st.data(), windows(), st.integers(1, 30), st.integers(1, 40), st.integers(1, 4), activations)
def test_pointwise_first_sums_filtered_blocks(
    data: st.DataObject, where: tuple[Window, tuple[int, int]], channels: int, outputs: int, rank: int,
    activation: Activation,
) -> None:  # fmt: skip
    window, size = where
    dtype = data.draw(precisions)
    x = values(dtype, 2, channels, *size)
    point = values(dtype, outputs * rank, channels, 1, 1, fan_in=channels)
    taps, bias = values(dtype, outputs, rank, *window.kernel), values(dtype, outputs)
    first = Convolution(
        "p", "x", "p", point.view(outputs, rank, channels, 1, 1).transpose(0, 1).flatten(0, 1),
        torch.zeros(outputs * rank), Window(),
    )  # fmt: skip
    filters = Depthwise(taps.flatten(2).permute(1, 2, 0), bias[None], window, activation)
    second = DepthwiseConv("y", "p", "y", filters, summed=True)
    shapes = {
        "x": tuple(x.shape),
        "p": (2, outputs * rank, *size),
        "y": (2, outputs, *output_size(window, size)),
    }
    got = execute(
        [first, second], shapes, x, data.draw(instruction_set), data.draw(threads), {"p": rank}, dtype  # type: ignore[arg-type]
    )  # fmt: skip
    inner = stored(convolved(x, point, torch.zeros(outputs * rank), Window()), dtype)
    assert_close(got, ACTIVATIONS[activation](convolved(inner, taps, bias, window, groups=outputs)), dtype)


@settings(max_examples=60)
@given(st.data(), windows(), st.integers(1, 20), st.booleans(), st.booleans())
def test_pooling(
    data: st.DataObject, where: tuple[Window, tuple[int, int]], channels: int, maximum: bool, count_padding: bool
) -> None:
    window, size = where
    padding = tuple(min(p, k // 2) for p, k in zip(window.padding, window.kernel, strict=True))
    dilation = window.dilation if maximum else (1, 1)
    reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, window.kernel, padding, strict=True)]
    size = (max(size[0], reach[0]), max(size[1], reach[1]))
    window = Window(window.kernel, window.stride, padding, dilation)  # type: ignore[arg-type]
    dtype = data.draw(precisions)
    x = values(dtype, 2, channels, *size)
    if maximum:
        expected = F.max_pool2d(x, window.kernel, window.stride, padding, dilation)
    else:
        expected = F.avg_pool2d(x, window.kernel, window.stride, padding, count_include_pad=count_padding)
    node = Pool("y", "x", "y", window, maximum, count_padding)
    shapes = {"x": tuple(x.shape), "y": tuple(expected.shape)}
    isa, workers = data.draw(instruction_set), data.draw(threads)
    assert_close(execute([node], shapes, x, isa, workers, dtype=dtype), expected, dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_maximum_of_padding_alone_is_as_pytorchs_and_no_other_channels(isa: str, dtype: torch.dtype) -> None:
    window, x = Window((2, 1), padding=(1, 0), dilation=(2, 1)), values(dtype, 1, 5, 1, 3)
    expected = F.max_pool2d(x, window.kernel, window.stride, window.padding, window.dilation)
    assert expected.eq(-math.inf).all()
    shapes = {"x": (1, 5, 1, 3), "y": tuple(expected.shape)}
    got = execute([Pool("y", "x", "y", window, True)], shapes, x, isa, 1, dtype=dtype)  # type: ignore[arg-type]
    assert torch.equal(got, expected)


@settings(max_examples=60)
@given(st.data(), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), activations)
def test_means_sums_scales_activations_and_copies(
    data: st.DataObject, channels: int, height: int, width: int, activation: Activation
) -> None:
    dtype = data.draw(precisions)
    x = 3 * values(dtype, 2, channels, height, width)
    act, isa, workers = ACTIVATIONS[activation], data.draw(instruction_set), data.draw(threads)
    shape = (2, channels, height, width)
    shapes = {"x": shape, "m": (2, channels, 1, 1), "s": shape, "y": shape}
    mean = x.mean((2, 3), keepdim=True)
    assert_close(execute([Mean("m", "x", "m", activation)], shapes, x, isa, workers, dtype=dtype), act(mean), dtype)
    scaled = [Mean("m", "x", "m"), Scale("s", "x", "m", "s"), Add("y", "s", "x", "y", activation)]
    expected = act(stored(x * stored(mean, dtype), dtype) + x)
    # Means lie between two values of bfloat16 at times, and activations are at most 1.13 as steep as their argument.
    slack = 0.0 if dtype == torch.float32 else 1.2 * 2**-6 * float((x * mean).abs().max())
    assert_close(execute(scaled, shapes, x, isa, workers, dtype=dtype), expected, dtype, slack)
    assert_close(execute([Activate("y", "x", "y", activation)], shapes, x, isa, workers, dtype=dtype), act(x), dtype)
    every = x[:, :, ::2, ::3]
    padded = F.pad(every, (0, 0, 0, 0, 3, 2))
    copy, wider = Copy("y", "x", "y", (2, 3), 3), {"x": shape, "y": tuple(padded.shape)}
    assert torch.equal(execute([copy], wider, x, isa, workers, dtype=dtype), padded)  # type: ignore[arg-type]


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_over_their_whole_range(isa: str, dtype: torch.dtype) -> None:
    x = torch.cat([torch.linspace(-120, 120, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38])])
    x = stored(x.view(1, 1, 1, -1), dtype)
    relative = 2e-6 if dtype == torch.float32 else 2**-8 + 2e-6
    for activation, reference in ACTIVATIONS.items():
        shapes = {"x": tuple(x.shape), "y": tuple(x.shape)}
        got = execute([Activate("y", "x", "y", activation)], shapes, x, isa, 1, dtype=dtype)  # type: ignore[arg-type]
        expected = reference(x.double()).float()
        torch.testing.assert_close(got, expected, rtol=relative, atol=2e-6, msg=f"{activation}")


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_comes_out_as_from_pytorch(isa: str, dtype: torch.dtype) -> None:
    x = torch.tensor([math.nan, 1.0]).view(1, 1, 1, 2)
    shapes = {"x": (1, 1, 1, 2), "y": (1, 1, 1, 2)}
    for activation, reference in ACTIVATIONS.items():
        got = execute([Activate("y", "x", "y", activation)], shapes, x, isa, 1, dtype=dtype)
        assert torch.equal(got.isnan(), reference(x).isnan()), activation


@pytest.mark.parametrize("isa", SETS)
def test_values_are_rounded_as_pytorch_rounds_them(isa: str) -> None:
    bits = torch.arange(2**16, dtype=torch.int32) << 16
    near = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    every = (bits[:, None] + near).view(torch.float32).flatten()
    x = every[every.isnan() | (every.abs() > 2.0**-126) | (every == 0)].view(
        1, 1, 1, -1
    )  # processors flush what is smaller
    shapes = {"x": tuple(x.shape), "y": tuple(x.shape)}
    copied = execute([Copy("y", "x", "y")], shapes, x, isa, 1, dtype=torch.bfloat16)  # type: ignore[arg-type]
    one = Convolution("y", "x", "y", torch.ones(1, 1, 1, 1), torch.zeros(1), Window())
    assert torch.equal(copied.isnan(), x.isnan())
    assert torch.equal(
        copied.nan_to_num(7.0, math.inf, -math.inf), x.bfloat16().float().nan_to_num(7.0, math.inf, -math.inf)
    )
    finite = x[:, :, :, :: len(near)].nan_to_num(7.0, 7.0, -7.0)
    shapes = {"x": tuple(finite.shape), "y": tuple(finite.shape)}
    assert torch.equal(execute([one], shapes, finite, isa, 1, dtype=torch.bfloat16), finite.bfloat16().float())  # type: ignore[arg-type]


@pytest.mark.parametrize("isa", SETS)
def test_what_a_depthwise_stage_makes_is_rounded_as_pytorch_rounds_it(isa: str) -> None:
    # Where vectors are widest, channels 0..31 go two vectors at a time, the others one. Products with the factor are
    # exact in float32, and some lie in the middle of two bfloat16.
    channels, factor = 48, 1 + 2.0**-8
    bits = torch.arange(2**16, dtype=torch.int32) << 16
    every = bits.view(torch.float32)
    x = every[(every.abs() > 2.0**-120) & (every.abs() < 2.0**120) | every.isnan()]
    x = x[: len(x) // channels * channels].view(1, channels, 1, -1)
    filters = Depthwise(torch.full((1, 1, channels), factor), torch.zeros(1, channels), Window())
    shapes = {"x": tuple(x.shape), "y": tuple(x.shape)}
    expected = (x * factor).bfloat16().float()
    alone = execute([DepthwiseConv("y", "x", "y", filters)], shapes, x, isa, 1, dtype=torch.bfloat16)  # type: ignore[arg-type]
    torch.testing.assert_close(alone, expected, rtol=0, atol=0, equal_nan=True)
    x = x.nan_to_num(3.0)  # the product would spread a NaN over all channels
    same = torch.eye(channels).view(channels, channels, 1, 1)
    node = Convolution("y", "x", "y", same, torch.zeros(channels), Window(), depthwise=filters)
    multiplied = execute([node], shapes, x, isa, 1, dtype=torch.bfloat16)  # type: ignore[arg-type]
    assert torch.equal(multiplied, (x * factor).bfloat16().float())


def test_a_bfloat16_has_room_for_as_much_as_a_float_of_another_program() -> None:
    shape = (1, 64, 14, 14)
    node = Convolution("y", "x", "y", torch.zeros(64, 64, 1, 1), torch.zeros(64), Window())
    program = Program(
        "x", (node, Activate("z", "y", "z", Activation())), dict.fromkeys("xyz", shape), {}, frozenset(), ("z",), None
    )
    isa = SETS[-1]
    sizes = [schedule(program, instruction_sets(t)[isa], 1).size * t.itemsize for t in (torch.float32, torch.bfloat16)]
    assert sizes[0] == 2 * sizes[1]
