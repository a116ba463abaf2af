"""Depthwise and separable kernels, and narrow vectors, agree with PyTorch in both precisions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_cases import (
    ACTIVATIONS,
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
    tie_tolerance,
    values,
    windows,
)
from torch_separable.runtime import available, instruction_sets
from torch_separable.runtime.graph.ir import (
    Activation,
    ActivationKind,
    Add,
    Convolution,
    Depthwise,
    DepthwiseConv,
    Program,
    Window,
)
from torch_separable.runtime.native.operations import Kind
from torch_separable.runtime.planning import packing
from torch_separable.runtime.planning import schedule as schedule_module
from torch_separable.runtime.planning.schedule import schedule

pytestmark = pytest.mark.usefixtures("running_threads")


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
    expected = F.relu(convolved(rounded(inner, dtype), weight, bias, Window()))
    assert_close(got, expected, slack=tie_tolerance(inner, weight, between, dtype))
    # As several threads take late layers apart: a filtered block of channels for each kernel of a channel.
    apart = [DepthwiseConv("z", "x", "z", depthwise), replace(node, input="z", depthwise=None)]
    between_them = {**shapes, "z": (batch, multiplier * channels, *size)}
    got = execute(apart, between_them, x, isa, workers, {"z": multiplier}, dtype)  # type: ignore[arg-type]
    assert_close(got, expected, slack=tie_tolerance(inner, weight, between, dtype))


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
def test_paired_tail_gives_the_bits_of_single_pixels(
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
def test_pointwise_first_sums_the_filtered_blocks(
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
    inner = rounded(convolved(x, point, torch.zeros(outputs * rank), Window()), dtype)
    assert_close(got, ACTIVATIONS[activation](convolved(inner, taps, bias, window, groups=outputs)), dtype)


@pytest.mark.parametrize("isa", SETS)
def test_depthwise_output_is_rounded_as_by_pytorch(isa: str) -> None:
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
