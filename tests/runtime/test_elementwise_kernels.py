"""Pooling, means, elementwise operations and rounding agree with PyTorch on every instruction set."""

from __future__ import annotations

import math

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
    execute,
    instruction_set,
    precisions,
    rounded,
    threads,
    values,
    windows,
)
from torch_separable.runtime import instruction_sets
from torch_separable.runtime.graph.ir import (
    Activate,
    Activation,
    Add,
    Convolution,
    Copy,
    Mean,
    Pool,
    Program,
    Scale,
    Window,
)
from torch_separable.runtime.planning.schedule import schedule

pytestmark = pytest.mark.usefixtures("running_threads")


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
def test_max_pooling_of_padding_alone_gives_minus_infinity(isa: str, dtype: torch.dtype) -> None:
    window, x = Window((2, 1), padding=(1, 0), dilation=(2, 1)), values(dtype, 1, 5, 1, 3)
    expected = F.max_pool2d(x, window.kernel, window.stride, window.padding, window.dilation)
    assert expected.eq(-math.inf).all()
    shapes = {"x": (1, 5, 1, 3), "y": tuple(expected.shape)}
    got = execute([Pool("y", "x", "y", window, True)], shapes, x, isa, 1, dtype=dtype)  # type: ignore[arg-type]
    assert torch.equal(got, expected)


@settings(max_examples=60)
@given(st.data(), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), activations)
def test_mean_scale_add_activation_and_copy(
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
    expected = act(rounded(x * rounded(mean, dtype), dtype) + x)
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
def test_activations_over_the_whole_float_range(isa: str, dtype: torch.dtype) -> None:
    x = torch.cat([torch.linspace(-120, 120, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38])])
    x = rounded(x.view(1, 1, 1, -1), dtype)
    relative = 2e-6 if dtype == torch.float32 else 2**-8 + 2e-6
    for activation, reference in ACTIVATIONS.items():
        shapes = {"x": tuple(x.shape), "y": tuple(x.shape)}
        got = execute([Activate("y", "x", "y", activation)], shapes, x, isa, 1, dtype=dtype)  # type: ignore[arg-type]
        expected = reference(x.double()).float()
        torch.testing.assert_close(got, expected, rtol=relative, atol=2e-6, msg=f"{activation}")


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_propagate_nan_as_pytorch_does(isa: str, dtype: torch.dtype) -> None:
    x = torch.tensor([math.nan, 1.0]).view(1, 1, 1, 2)
    shapes = {"x": (1, 1, 1, 2), "y": (1, 1, 1, 2)}
    for activation, reference in ACTIVATIONS.items():
        got = execute([Activate("y", "x", "y", activation)], shapes, x, isa, 1, dtype=dtype)
        assert torch.equal(got.isnan(), reference(x).isnan()), activation


@pytest.mark.parametrize("isa", SETS)
def test_copies_and_convolutions_round_as_pytorch_does(isa: str) -> None:
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


def test_bfloat16_workspace_takes_half_the_bytes() -> None:
    shape = (1, 64, 14, 14)
    node = Convolution("y", "x", "y", torch.zeros(64, 64, 1, 1), torch.zeros(64), Window())
    program = Program(
        "x", (node, Activate("z", "y", "z", Activation())), dict.fromkeys("xyz", shape), {}, frozenset(), ("z",), None
    )
    isa = SETS[-1]
    sizes = [schedule(program, instruction_sets(t)[isa], 1).size * t.itemsize for t in (torch.float32, torch.bfloat16)]
    assert sizes[0] == 2 * sizes[1]
