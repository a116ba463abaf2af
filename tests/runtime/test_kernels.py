"""Every kernel beside its plain PyTorch reference, on every instruction set that this processor can run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torch_separable.runtime import available, instruction_sets
from torch_separable.runtime.library import run
from torch_separable.runtime.program import (
    Activate,
    Activation,
    ActivationKind,
    Add,
    Convolution,
    Copy,
    Depthwise,
    Filtering,
    Mean,
    Node,
    Pool,
    Program,
    Scale,
    Window,
)
from torch_separable.runtime.schedule import schedule, view_of

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


def execute(
    nodes: Sequence[Node], shapes: dict[str, tuple[int, int, int, int]], x: Tensor, isa: str, workers: int,
    blocks: dict[str, int] | None = None,
) -> Tensor:  # fmt: skip
    """Run nodes on ``x`` (value "x") and return the last one's output; nothing outside the workspace may change."""
    program = Program("x", tuple(nodes), shapes, blocks or {}, frozenset(), (nodes[-1].output,), None)
    kernels = instruction_sets()[isa]
    plan = schedule(program, kernels, workers)
    memory = torch.full((plan.size + 2 * GUARD,), math.nan)
    workspace = memory[GUARD:-GUARD]
    (step,) = plan.steps
    step.operations[0].external_strides[:] = x.stride()
    run(kernels, step.operations, workspace, x.data_ptr(), workers)
    assert memory[:GUARD].isnan().all()
    assert memory[-GUARD:].isnan().all()
    name = nodes[-1].output
    result = view_of(workspace, plan, name).clone()
    # Channels beyond the last stay zero, so that what reads whole vectors adds nothing.
    n, c, h, w = shapes[name]
    if name not in (blocks or {}):
        stride = plan.strides[name]
        pixels = torch.as_strided(workspace, (n * h * w, stride), (stride, 1), GUARD + plan.offsets[name])
        assert pixels[:, c:].eq(0).all() or isinstance(nodes[-1], Activate) or _moves_zero(nodes[-1])
    return result


def _moves_zero(node: Node) -> bool:
    """Sigmoids turn the zeros of the padding to something else; readers give those channels weight zero."""
    kind = getattr(node, "activation", Activation()).kind
    return kind in (ActivationKind.SIGMOID, ActivationKind.HARDSIGMOID)


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    finite = expected.isfinite()
    assert torch.equal(got[~finite], expected[~finite])
    # The terms of every sum are of the size of 1: a lone output that they cancel to nearly nothing has their rounding.
    scale = float(expected[finite].abs().max().clamp_min(0.3)) if finite.any() else 0.0
    assert not finite.any() or float((got - expected)[finite].abs().max()) <= 1e-5 * scale


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
    x = torch.randn(batch, channels, *size)
    weight, bias = torch.randn(outputs, channels, *window.kernel) / math.sqrt(channels), torch.randn(outputs)
    shape = (batch, outputs, *output_size(window, size))
    residual = data.draw(st.booleans())
    nodes: list[Node] = []
    shapes = {"x": tuple(x.shape), "y": shape}
    expected = convolved(x, weight, bias, window)
    if residual:  # a second convolution of the same shape gives the branch
        # Half of it: with the whole, nothing but rounding would be left of a single channel.
        nodes.append(Convolution("r", "x", "r", -weight.flip(0) / 2, bias, window))
        shapes["r"] = shape
        expected = expected + convolved(x, -weight.flip(0) / 2, bias, window)
    nodes.append(Convolution("y", "x", "y", weight, bias, window, activation, residual="r" if residual else None))
    got = execute(nodes, shapes, x, data.draw(instruction_set), data.draw(threads))  # type: ignore[arg-type]
    assert_close(got, ACTIVATIONS[activation](expected))


@settings(max_examples=100)
@given(st.data(), windows(), st.integers(1, 6), st.integers(1, 12), st.integers(1, 20), activations)
def test_grouped_convolution(
    data: st.DataObject, where: tuple[Window, tuple[int, int]], groups: int, channels: int, outputs: int,
    activation: Activation,
) -> None:  # fmt: skip
    window, size = where
    x = torch.randn(2, groups * channels, *size)
    weight, bias = torch.randn(groups * outputs, channels, *window.kernel), torch.randn(groups * outputs)
    shape = (2, groups * outputs, *output_size(window, size))
    branch = Convolution("r", "x", "r", weight / 2, bias, window, groups=groups)
    node = Convolution("y", "x", "y", weight, bias, window, activation, residual="r", groups=groups)
    shapes = {"x": tuple(x.shape), "r": shape, "y": shape}
    got = execute([branch, node], shapes, x, data.draw(instruction_set), data.draw(threads))  # type: ignore[arg-type]
    expected = convolved(x, 1.5 * weight, 2 * bias, window, groups)
    assert_close(got, ACTIVATIONS[activation](expected))


@settings(max_examples=100)
@given(st.data(), st.integers(1, 300), st.integers(1, 300), st.integers(1, 15), st.integers(1, 15), st.integers(1, 3))
def test_pointwise_convolution_of_any_channel_count(
    data: st.DataObject, channels: int, outputs: int, height: int, width: int, batch: int
) -> None:
    x = torch.randn(batch, channels, height, width)
    weight, bias = torch.randn(outputs, channels, 1, 1) / math.sqrt(channels), torch.randn(outputs)
    node = Convolution("y", "x", "y", weight, bias, Window(), Activation(alpha=0.0))
    shapes = {"x": (batch, channels, height, width), "y": (batch, outputs, height, width)}
    got = execute([node], shapes, x, data.draw(instruction_set), data.draw(threads))
    assert_close(got, F.relu(convolved(x, weight, bias, Window())))


@settings(max_examples=150)
@given(st.data(), windows(), st.integers(1, 40), st.integers(1, 3), st.integers(1, 2), activations)
def test_depthwise_and_separable_convolution(
    data: st.DataObject, where: tuple[Window, tuple[int, int]], channels: int, multiplier: int, batch: int,
    between: Activation,
) -> None:  # fmt: skip
    window, size = where
    outputs = data.draw(st.integers(1, 40))
    x = torch.randn(batch, channels, *size)
    filters = torch.randn(channels * multiplier, 1, *window.kernel)
    filter_bias = torch.randn(channels * multiplier)
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
            [Filtering("y", "x", "y", depthwise)],
            {"x": tuple(x.shape), "y": (batch, channels, *size)},  # type: ignore[dict-item]
            x, isa, workers,
        )  # fmt: skip
        assert_close(alone, inner)
    weight, bias = torch.randn(outputs, channels * multiplier, 1, 1), torch.randn(outputs)
    blocked = weight.view(outputs, channels, multiplier).transpose(1, 2).reshape(outputs, -1, 1, 1)
    node = Convolution("y", "x", "y", blocked, bias, Window(), Activation(alpha=0.0), depthwise=depthwise)
    shapes = {"x": tuple(x.shape), "y": (batch, outputs, *size)}
    got = execute([node], shapes, x, isa, workers)  # type: ignore[arg-type]
    assert_close(got, F.relu(convolved(inner, weight, bias, Window())))


@settings(max_examples=80)
@given(st.data(), windows(), st.integers(1, 30), st.integers(1, 40), st.integers(1, 4), activations)
def test_pointwise_first_sums_filtered_blocks(
    data: st.DataObject, where: tuple[Window, tuple[int, int]], channels: int, outputs: int, rank: int,
    activation: Activation,
) -> None:  # fmt: skip
    window, size = where
    x = torch.randn(2, channels, *size)
    point = torch.randn(outputs * rank, channels, 1, 1) / math.sqrt(channels)
    taps, bias = torch.randn(outputs, rank, *window.kernel), torch.randn(outputs)
    first = Convolution(
        "p", "x", "p", point.view(outputs, rank, channels, 1, 1).transpose(0, 1).flatten(0, 1),
        torch.zeros(outputs * rank), Window(),
    )  # fmt: skip
    filters = Depthwise(taps.flatten(2).permute(1, 2, 0), bias[None], window, activation)
    second = Filtering("y", "p", "y", filters, summed=True)
    shapes = {
        "x": tuple(x.shape),
        "p": (2, outputs * rank, *size),
        "y": (2, outputs, *output_size(window, size)),
    }
    got = execute(
        [first, second], shapes, x, data.draw(instruction_set), data.draw(threads), {"p": rank}  # type: ignore[arg-type]
    )  # fmt: skip
    inner = convolved(x, point, torch.zeros(outputs * rank), Window())
    assert_close(got, ACTIVATIONS[activation](convolved(inner, taps, bias, window, groups=outputs)))


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
    x = torch.randn(2, channels, *size)
    if maximum:
        expected = F.max_pool2d(x, window.kernel, window.stride, padding, dilation)
    else:
        expected = F.avg_pool2d(x, window.kernel, window.stride, padding, count_include_pad=count_padding)
    node = Pool("y", "x", "y", window, maximum, count_padding)
    shapes = {"x": tuple(x.shape), "y": tuple(expected.shape)}
    assert_close(execute([node], shapes, x, data.draw(instruction_set), data.draw(threads)), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("isa", SETS)
def test_the_maximum_of_padding_alone_is_as_pytorchs_and_no_other_channels(isa: str) -> None:
    window, x = Window((2, 1), padding=(1, 0), dilation=(2, 1)), torch.randn(1, 5, 1, 3)
    expected = F.max_pool2d(x, window.kernel, window.stride, window.padding, window.dilation)
    assert expected.eq(-math.inf).all()
    shapes = {"x": (1, 5, 1, 3), "y": tuple(expected.shape)}
    assert torch.equal(execute([Pool("y", "x", "y", window, True)], shapes, x, isa, 1), expected)  # type: ignore[arg-type]


@settings(max_examples=60)
@given(st.data(), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), activations)
def test_means_sums_scales_activations_and_copies(
    data: st.DataObject, channels: int, height: int, width: int, activation: Activation
) -> None:
    x = 3 * torch.randn(2, channels, height, width)
    act, isa, workers = ACTIVATIONS[activation], data.draw(instruction_set), data.draw(threads)
    shape = (2, channels, height, width)
    shapes = {"x": shape, "m": (2, channels, 1, 1), "s": shape, "y": shape}
    mean = x.mean((2, 3), keepdim=True)
    assert_close(execute([Mean("m", "x", "m", activation)], shapes, x, isa, workers), act(mean))
    scaled = [Mean("m", "x", "m"), Scale("s", "x", "m", "s"), Add("y", "s", "x", "y", activation)]
    assert_close(execute(scaled, shapes, x, isa, workers), act(x * mean + x))
    assert_close(execute([Activate("y", "x", "y", activation)], shapes, x, isa, workers), act(x))
    every = x[:, :, ::2, ::3]
    padded = F.pad(every, (0, 0, 0, 0, 3, 2))
    copied = execute([Copy("y", "x", "y", (2, 3), 3)], {"x": shape, "y": tuple(padded.shape)}, x, isa, workers)  # type: ignore[dict-item]
    assert torch.equal(copied, padded)


@pytest.mark.parametrize("isa", SETS)
def test_activations_over_their_whole_range(isa: str) -> None:
    x = torch.cat([torch.linspace(-120, 120, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38])])
    x = x.view(1, 1, 1, -1).contiguous()
    for activation, reference in ACTIVATIONS.items():
        shapes = {"x": tuple(x.shape), "y": tuple(x.shape)}
        got = execute([Activate("y", "x", "y", activation)], shapes, x, isa, 1)  # type: ignore[arg-type]
        expected = reference(x.double()).float()
        torch.testing.assert_close(got, expected, rtol=2e-6, atol=2e-6, msg=f"{activation}")


@pytest.mark.parametrize("isa", SETS)
def test_nan_comes_out_as_from_pytorch(isa: str) -> None:
    x = torch.tensor([math.nan, 1.0]).view(1, 1, 1, 2)
    for activation, reference in ACTIVATIONS.items():
        got = execute([Activate("y", "x", "y", activation)], {"x": (1, 1, 1, 2), "y": (1, 1, 1, 2)}, x, isa, 1)
        assert torch.equal(got.isnan(), reference(x).isnan()), activation
