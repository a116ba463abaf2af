"""int8 kernels give the same bits as the reference executor, on every instruction set that runs here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from int8_cases import (
    PROGRAMS,
    SETS,
    Case,
    check,
    executed,
)
from torch_separable.errors import SeparableError
from torch_separable.runtime import instruction_sets
from torch_separable.runtime.graph.ir import (
    RELU,
    Convolution,
    Dequantize,
    Node,
    Program,
    Quantization,
    Quantize,
    QuantizedConvolution,
    Window,
)
from torch_separable.runtime.graph.reference import run_program
from torch_separable.runtime.native.operations import MatrixSource
from torch_separable.runtime.planning.schedule import schedule

CASES = 250  # for each kernel and instruction set


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("kernel", PROGRAMS)
def test_kernels_give_the_bits_of_the_reference(kernel: str, isa: str) -> None:
    varied = 0
    for seed in range(CASES):
        case = Case(1000 * list(PROGRAMS).index(kernel) + seed)
        PROGRAMS[kernel](case)
        varied += check(case, isa, f"{kernel}, seed {seed}, {isa}")
    # The outputs of the other cases lie at a bound everywhere. More than half must vary; few cases, as under an
    # emulator, are allowed their sampling error (two standard deviations).
    assert varied > CASES // 2 - (0 if CASES >= 100 else math.isqrt(CASES))


def single(weight: Tensor, multiplier: Any, offset: Any, q: Quantization, to: Quantization, x: Tensor) -> Program:
    m, shape = len(weight), (x.shape[0], len(weight), x.shape[2], x.shape[3])
    numbers = [torch.as_tensor(values, dtype=torch.float32).expand(m).contiguous() for values in (multiplier, offset)]
    node = QuantizedConvolution("y", "q", "y", weight, numbers[0], numbers[1], Window(), *to.bounds())
    return Program(
        "x", (Quantize("q", "x", "q"), node), {"x": tuple(x.shape), "q": tuple(x.shape), "y": shape}, {},
        frozenset(), ("y",), None, quantized={"q": q, "y": to},
    )  # fmt: skip


def run_both(program: Program, x: Tensor, isa: str) -> Tensor:
    got, expected = executed(program, x, isa, 1), run_program(program, x)
    assert torch.equal(got, expected)
    return got


@pytest.mark.parametrize("isa", SETS)
def test_multiply_and_add_are_rounded_separately(isa: str) -> None:
    """Offsets that put sums exactly between two integers, where a fused multiply-add would fall on one side."""
    channels = 256
    draw = torch.Generator().manual_seed(1)
    x = torch.arange(256.0).view(1, 1, 16, 16)
    multiplier = 0.1 + torch.rand(channels, generator=draw)
    at = torch.randint(1, 256, (channels,), generator=draw).float()
    offset = torch.randint(1, 20, (channels,), generator=draw) + 0.5 - at * multiplier
    weight, q = torch.ones(channels, 1, 1, 1, dtype=torch.int8), Quantization(1.0, 0)
    program = single(weight, multiplier, offset, q, q, x)
    got = run_both(program, x, isa)
    exact = x.double() * multiplier.double()[:, None, None] + offset.double()[:, None, None]
    fused = exact.float().clamp(0, 255).round()
    assert int((got != fused).sum()) >= 20


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_fit_32_bits(isa: str, sign: int) -> None:
    depth = (2**31 - 1) // (2 * 255 * 127)
    q, to = Quantization(1.0, 255), Quantization(1.0, 0 if sign < 0 else 255)
    weight = torch.full((3, depth, 1, 1), 127 * sign, dtype=torch.int8)
    for value in (0.0, -255.0):
        x = torch.full((1, depth, 1, 1), value)
        run_both(single(weight, 1e-7, 0.0, q, to, x), x, isa)
    x = torch.zeros(1, depth + 1, 1, 1)
    wider = torch.full((3, depth + 1, 1, 1), 127 * sign, dtype=torch.int8)
    with pytest.raises(SeparableError, match=r"y: sums of .* beyond 32 bits"):
        executed(single(wider, 1e-7, 0.0, q, to, x), x, isa, 1)


@pytest.mark.parametrize("isa", SETS)
def test_non_finite_requantization_is_refused(isa: str) -> None:
    x = torch.zeros(1, 4, 1, 1)
    weight = torch.ones(2, 4, 1, 1, dtype=torch.int8)
    for multiplier, offset in ((math.inf, 0.0), (math.nan, 0.0), (1.0, math.inf), (1e30, 0.0)):
        with pytest.raises(SeparableError, match=r"y: the (multiplier|offset) of its requantization"):
            executed(single(weight, multiplier, offset, Quantization(1.0, 0), Quantization(1.0, 0), x), x, isa, 1)


@pytest.mark.parametrize("isa", SETS)
def test_non_finite_values_are_quantized_as_by_pytorch(isa: str) -> None:
    special = [
        math.nan,
        math.inf,
        -math.inf,
        3e38,
        -3e38,
        1e-45,
        -0.0,
        2**31,
        -(2**31),
        0.5,
        1.5,
        2.5,
        -0.5,
        254.5,
        255.5,
    ]
    x = torch.tensor(special + [math.nan] * 5).view(1, 1, 1, -1)
    for scale, zero_point in ((1.0, 0), (1.0, 3), (1e-6, 255), (1e6, 128)):
        q = Quantization(scale, zero_point)
        shapes = {"x": tuple(x.shape), "q": tuple(x.shape)}
        program = Program("x", (Quantize("q", "x", "q"),), shapes, {}, frozenset(), ("q",), None, quantized={"q": q})  # type: ignore[arg-type]
        got = run_both(program, x, isa)
        assert got[x.isnan()].eq(0).all()


@pytest.mark.parametrize("isa", SETS)
def test_results_do_not_depend_on_the_number_of_threads(isa: str) -> None:
    x, window, q = (
        torch.randint(0, 256, (2, 32, 19, 23)).float(),
        Window((3, 3), padding=(1, 1)),
        Quantization(1.0, 128),
    )

    def layer(source: str, output: str, m: int, c: int, window: Window, groups: int = 1) -> QuantizedConvolution:
        weight = torch.randint(-127, 128, (m, c, *window.kernel), dtype=torch.int8)
        multiplier = 0.5 / weight.float().flatten(1).norm(dim=1)
        return QuantizedConvolution(
            output, source, output, weight, multiplier, torch.randn(m), window, *q.bounds(), groups=groups
        )

    layers = layer("q", "a", 48, 32, window), layer("a", "b", 48, 1, window, 48), layer("b", "c", 200, 48, Window())
    shapes = {name: (2, m, 19, 23) for name, m in zip("xqabc", (32, 32, 48, 48, 200), strict=True)}
    quantized = dict.fromkeys("qabc", q)
    program = Program(
        "x", (Quantize("q", "x", "q"), *layers), shapes, {}, frozenset(), ("c",), None, quantized=quantized
    )
    one = run_both(program, x, isa)
    assert one.float().std() > 10
    for threads in (2, 3, 5):
        assert torch.equal(executed(program, x, isa, threads), one)


def sources(nodes: Sequence[Node], case: Case, isa: str) -> list[MatrixSource]:
    plan = schedule(case.program(), instruction_sets()[isa], 1)
    return [MatrixSource(operation.int8_convolution.source) for operation in plan.steps[0].operations[-len(nodes) :]]


@pytest.mark.parametrize("isa", SETS)
def test_dense_kernels_use_a_row_view_or_im2col(isa: str) -> None:
    for window, size, out, source in (
        (Window((3, 3), padding=(1, 1)), (9, 37), (9, 37), MatrixSource.ROW_VIEW),
        (Window((3, 3), (2, 2), (1, 1)), (35, 70), (18, 35), MatrixSource.ROW_VIEW),
        (Window((5, 2), padding=(4, 3)), (6, 40), (10, 45), MatrixSource.ROW_VIEW),  # padding wider than the kernel
        (Window((3, 3), padding=(1, 1), dilation=(1, 2)), (9, 37), (9, 35), MatrixSource.IM2COL),  # runs have gaps
        (Window((1, 1), (2, 2)), (9, 37), (5, 19), MatrixSource.IM2COL),
        (Window((3, 3), padding=(1, 1)), (9, 2), (9, 2), MatrixSource.IM2COL),  # rows too short for a micro-kernel
        (Window(), (9, 9), (9, 9), MatrixSource.POINTWISE),
    ):
        for channels in (3, 16, 31):
            case = Case(channels)
            case.image((2, channels, *size))
            case.nodes.append(case.convolution("q", "y", case.weight(20, channels, *window.kernel), window, out))
            assert sources(case.nodes[-1:], case, isa) == [source]
            check(case, isa, f"{window} {channels}")


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float_and_int8_layers_share_a_workspace(isa: str, dtype: torch.dtype) -> None:
    """A float layer, an int8 layer and a float layer: every value is where its readers look for it."""
    x = torch.randint(-3, 4, (2, 5, 9, 7)).float()
    first = torch.randint(-1, 2, (24, 5, 3, 3)).float()
    last = torch.randint(-1, 2, (6, 24, 1, 1)).float()
    window = Window((3, 3), padding=(1, 1))
    q, to = Quantization(1.0, 128), Quantization(1.0, 7)
    weight = torch.randint(-2, 3, (24, 24, 3, 3), dtype=torch.int8)
    eighth = torch.full((24,), 0.125)
    nodes = (
        Convolution("a", "x", "a", first, torch.zeros(24), window),
        Quantize("b", "a", "b"),
        QuantizedConvolution("c", "b", "c", weight, eighth, torch.zeros(24), window, *to.bounds(RELU)),
        Dequantize("d", "c", "d"),
        Convolution("y", "d", "y", last, torch.zeros(6), Window()),
    )
    wide = (2, 24, 9, 7)
    shapes = {"x": (2, 5, 9, 7), **dict.fromkeys("abcd", wide), "y": (2, 6, 9, 7)}
    program = Program("x", nodes, shapes, {}, frozenset(), ("y",), None, quantized={"b": q, "c": to})
    for threads in (1, 2):
        assert torch.equal(executed(program, x, isa, threads, dtype).float(), run_program(program, x))
