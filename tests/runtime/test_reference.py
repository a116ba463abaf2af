"""The reference executor against PyTorch for float programs, and against loops over Python integers for quantized."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - registers the operators

import torch_separable as ts
from torch_separable.runtime.graph.fuse import fuse
from torch_separable.runtime.graph.ir import (
    RELU,
    Activation,
    ActivationKind,
    Copy,
    Dequantize,
    LookUp,
    Mean,
    Node,
    Pool,
    Program,
    Quantization,
    Quantize,
    QuantizedAdd,
    QuantizedConcat,
    QuantizedConvolution,
    QuantizedScale,
    TorchCall,
    Window,
)
from torch_separable.runtime.graph.lower import lower
from torch_separable.runtime.graph.reference import exact_convolution, run_program

f32 = np.float32


def random_bytes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def result_of(
    node: Node,
    values: Mapping[str, tuple[Tensor, Quantization | None]],
    output: tuple[int, ...],
    own: Quantization | None,
    blocks: Mapping[str, int] | None = None,
) -> Tensor:
    """Run one node on values as they are stored."""
    given = [TorchCall(name, name, value.clone, (), {}, "an input") for name, (value, _) in values.items()]
    shapes = {name: tuple(value.shape) for name, (value, _) in values.items()} | {node.output: output}
    quantized = {name: q for name, (_, q) in values.items() if q is not None} | ({} if own is None else {"y": own})
    program = Program("in", (*given, node), shapes, blocks or {}, frozenset(), ("y",), None, {}, quantized)
    return run_program(program, torch.zeros(1))


def stored(v: np.float32, low: float, high: float, zero_point: int) -> int:
    """Clamp, round half to even and add the zero point."""
    return int(np.rint(min(max(v, f32(low)), f32(high)))) + zero_point


def slow_sums(
    x: Tensor, zero: int, weight: Tensor, window: Window, groups: int, size: tuple[int, ...]
) -> dict[tuple[int, int, int, int], int]:
    """Sums of a convolution by Python's integers."""
    (n, _, h, w), (m, depth, kh, kw) = x.shape, weight.shape
    xs, ws = x.tolist(), weight.tolist()
    sums = {}
    for image, out, oy, ox in itertools.product(range(n), range(m), range(size[0]), range(size[1])):
        total = 0
        for c, ky, kx in itertools.product(range(depth), range(kh), range(kw)):
            iy = oy * window.stride[0] - window.padding[0] + ky * window.dilation[0]
            ix = ox * window.stride[1] - window.padding[1] + kx * window.dilation[1]
            if 0 <= iy < h and 0 <= ix < w:
                total += (xs[image][out // (m // groups) * depth + c][iy][ix] - zero) * ws[out][c][ky][kx]
        sums[image, out, oy, ox] = total
    return sums


@pytest.mark.parametrize("seed", range(40))
def test_a_convolution_is_that_of_python_integers(seed: int) -> None:
    pick = random.Random(seed)
    torch.manual_seed(seed)
    groups = pick.choice([1, 1, 2, 4])
    c, m = groups * pick.randint(1, 3), groups * pick.randint(1, 3)
    kernel, stride, dilation = ((pick.randint(1, 3), pick.randint(1, 3)) for _ in range(3))
    window = Window(kernel, stride, (pick.randint(0, 2), pick.randint(0, 2)), dilation)
    x, weight = random_bytes(2, c, 8, 9, seed=seed), torch.randint(-128, 128, (m, c // groups, *kernel)).to(torch.int8)
    size = F.conv2d(x.float(), weight.float(), None, stride, window.padding, dilation, groups).shape[2:]
    source, own, other = (Quantization(1.0, pick.choice([0, 255, pick.randint(0, 255)])) for _ in range(3))
    # Multipliers and offsets that are fractions make ties, which are to go to the even neighbour.
    multiplier = torch.randint(1, 8, (m,)) / 512 if pick.random() < 0.5 else torch.rand(m) * 0.01
    offset = torch.randint(-80, 80, (m,)) / 4
    low, high = (0.0 if pick.random() < 0.5 else -own.zero_point), 255 - own.zero_point
    residual, floating = pick.random() < 0.5, pick.random() < 0.3
    added = random_bytes(2, m, *size, seed=seed + 1)
    node = QuantizedConvolution(
        "y", "x", "y", weight, multiplier, offset, window, low, high, groups=groups,
        residual="r" if residual else None, residual_multiplier=0.37,
    )  # fmt: skip
    values = {"x": (x, source), "r": (added, other)}
    got = result_of(node, values, (2, m, *size), None if floating else own)
    for (image, out, oy, ox), total in slow_sums(x, source.zero_point, weight, window, groups, tuple(size)).items():
        v = f32(total) * f32(multiplier[out].item()) + f32(offset[out].item())
        if residual:
            v = v + f32(added[image, out, oy, ox].item() - other.zero_point) * f32(0.37)
        wanted = min(max(v, f32(low)), f32(high)) if floating else stored(v, low, high, own.zero_point)
        assert got[image, out, oy, ox].item() == wanted, (image, out, oy, ox)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_a_fused_depthwise_convolution_is_two_nodes(multiplier: int) -> None:
    c, m, source, between, own = 4, 5, Quantization(0.1, 7), Quantization(0.2, 9), Quantization(0.3, 11)
    torch.manual_seed(multiplier)
    inside = c * multiplier
    x = random_bytes(2, c, 6, 6)
    filters = torch.randint(-127, 128, (inside, 1, 3, 3)).to(torch.int8)
    weight = torch.randint(-127, 128, (m, inside, 1, 1)).to(torch.int8)
    first = QuantizedConvolution(
        "first", "x", "y", filters, torch.rand(inside) * 0.01, torch.randn(inside), Window((3, 3), (1, 1), (1, 1)),
        -9.0, 246.0, groups=c,
    )  # fmt: skip
    second = QuantizedConvolution(
        "second", "x", "y", weight, torch.rand(m) * 0.02, torch.randn(m), Window(), 0.0, 244.0
    )
    middle = result_of(first, {"x": (x, source)}, (2, inside, 6, 6), between, {"y": multiplier})
    expected = result_of(second, {"x": (middle, between)}, (2, m, 6, 6), own)
    fused = replace(second, depthwise=first, between=between)
    got = result_of(fused, {"x": (x, source)}, (2, m, 6, 6), own)
    assert torch.equal(got, expected)
    assert len(got.unique()) > 20


def test_blocks_only_reorder_channels() -> None:
    x, q, own = random_bytes(1, 3, 5, 5), Quantization(0.1, 3), Quantization(0.1, 30)
    weight = torch.randint(-127, 128, (6, 1, 3, 3)).to(torch.int8)
    node = QuantizedConvolution(
        "y", "x", "y", weight, torch.rand(6) * 0.01, torch.randn(6), Window((3, 3)), -30.0, 225.0, groups=3
    )
    plain = result_of(node, {"x": (x, q)}, (1, 6, 3, 3), own)
    blocked = result_of(node, {"x": (x, q)}, (1, 6, 3, 3), own, {"y": 2})
    assert torch.equal(blocked, plain[:, [0, 2, 4, 1, 3, 5]])
    back = QuantizedConvolution(
        "y", "x", "y", torch.randint(-127, 128, (3, 2, 1, 1)).to(torch.int8), torch.rand(3) * 0.1, torch.randn(3),
        Window(), -30.0, 225.0, groups=3,
    )  # fmt: skip
    one = result_of(back, {"x": (plain, own)}, (1, 3, 3, 3), own)
    other = result_of(back, {"x": (blocked, own)}, (1, 3, 3, 3), own, {"x": 2})
    assert torch.equal(one, other)


@pytest.mark.parametrize(("channels", "size"), [(58, 3), (519, 1), (2048, 1), (600, 3)])
def test_sums_of_extreme_values_are_exact(channels: int, size: int) -> None:
    x = torch.full((1, channels, size, size), 255)
    weight = torch.full((2, channels, size, size), 127, dtype=torch.int8)
    weight[1, ::2] = -128
    weight[0, 0, 0, 0] = 126  # an odd sum: a power of two would be exact by luck
    sums = exact_convolution(x, weight, Window((size, size)))
    expected = [255 * int(row.long().sum()) for row in weight]
    assert [int(value) for value in sums.flatten()] == expected


def test_sums_of_extreme_values_are_exact_in_groups() -> None:
    x, weight = torch.full((1, 1200, 1, 1), 255), torch.full((2, 600, 1, 1), 127, dtype=torch.int8)
    weight[:, 0] = 126
    assert exact_convolution(x, weight, Window(), 2).flatten().tolist() == [255 * (599 * 127 + 126)] * 2


def test_quantize_is_that_of_pytorch() -> None:
    x, q = torch.randn(2, 3, 16, 16) * 9, Quantization(0.0371, 112)
    got = result_of(Quantize("y", "x", "y", 3, 250), {"x": (x, None)}, (2, 3, 16, 16), q)
    expected = torch.ops.quantized_decomposed.quantize_per_tensor(x, q.scale, q.zero_point, 3, 250, torch.uint8)
    assert torch.equal(got, expected)
    back = result_of(Dequantize("y", "x", "y"), {"x": (got, q)}, (2, 3, 16, 16), None)
    wanted = torch.ops.quantized_decomposed.dequantize_per_tensor(got, q.scale, q.zero_point, 0, 255, torch.uint8)
    assert torch.equal(back, wanted)


def test_every_byte_is_its_own_after_dequantizing_and_quantizing() -> None:
    for scale in (1e-6, 0.0123, 1.0, 1e6):
        q, x = Quantization(scale, 101), torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
        back = result_of(Dequantize("y", "x", "y"), {"x": (x, q)}, (1, 1, 16, 16), None)
        assert torch.equal(result_of(Quantize("y", "x", "y"), {"x": (back, None)}, (1, 1, 16, 16), q), x)


def test_a_sum_has_the_scale_of_its_output() -> None:
    a, b = Quantization(0.5, 10), Quantization(0.25, 20)
    x, r = torch.tensor([12, 10, 255]).view(1, 3, 1, 1).byte(), torch.tensor([24, 0, 255]).view(1, 3, 1, 1).byte()
    node = QuantizedAdd("y", "x", "r", "y", multiplier=0.5, residual_multiplier=0.25, low=0.0, high=252.0)
    # 2 · 0.5 + 4 · 0.25 = 2; 0 - 5 is clamped; 122.5 + 58.75 = 181.25
    got = result_of(node, {"x": (x, a), "r": (r, b)}, (1, 3, 1, 1), Quantization(1.0, 3))
    assert got.flatten().tolist() == [5, 3, 184]


def test_ties_go_to_the_even_neighbour() -> None:
    x, q = torch.tensor([1, 3, 5, 7]).view(1, 4, 1, 1).byte(), Quantization(1.0, 0)
    node = QuantizedAdd("y", "x", "x", "y", multiplier=0.5, residual_multiplier=0.0, low=0.0, high=255.0)
    assert result_of(node, {"x": (x, q)}, (1, 4, 1, 1), q).flatten().tolist() == [0, 2, 2, 4]


def test_a_factor_scales_its_channel() -> None:
    x = torch.tensor([[4, 8], [6, 255]]).view(1, 2, 2, 1).byte()
    factors = torch.tensor([3, 5]).view(1, 2, 1, 1).byte()
    node = QuantizedScale("y", "x", "r", "y", multiplier=0.5, low=-1.0, high=254.0)
    got = result_of(
        node, {"x": (x, Quantization(1.0, 2)), "r": (factors, Quantization(1.0, 1))}, (1, 2, 2, 1), Quantization(2.0, 1)
    )
    assert got.flatten().tolist() == [(4 - 2) * 2 // 2 + 1, 6 + 1, 4 * 4 // 2 + 1, 255]


def test_a_table_maps_every_value() -> None:
    table = torch.arange(255, -1, -1).byte()
    x = random_bytes(1, 4, 8, 8)
    got = result_of(LookUp("y", "x", "y", table), {"x": (x, Quantization(1.0, 0))}, x.shape, Quantization(1.0, 0))
    assert torch.equal(got, 255 - x)


def test_a_concatenation_has_its_inputs_one_after_the_other() -> None:
    q, a, b = Quantization(0.1, 5), random_bytes(2, 3, 2, 2), random_bytes(2, 4, 2, 2, seed=1)
    got = result_of(QuantizedConcat("y", ("a", "b"), "y"), {"a": (a, q), "b": (b, q)}, (2, 7, 2, 2), q)
    assert torch.equal(got, torch.cat([a, b], 1))


@pytest.mark.parametrize("count_padding", [True, False])
@pytest.mark.parametrize("ceil_mode", [True, False])
def test_an_average_divides_by_what_pytorch_counts(count_padding: bool, ceil_mode: bool) -> None:
    x, q, own = random_bytes(2, 3, 10, 9), Quantization(0.02, 90), Quantization(0.015, 10)
    pool = nn.AvgPool2d(3, 2, 1, ceil_mode=ceil_mode, count_include_pad=count_padding)
    exact = pool((x.double() - 90) * 0.02)
    node = Pool("y", "x", "y", Window((3, 3), (2, 2), (1, 1)), False, count_padding, RELU)
    got = result_of(node, {"x": (x, q)}, exact.shape, own)
    assert ((got.double() - 10) * 0.015 - exact.clamp(0, 245 * 0.015)).abs().max() <= 0.0076
    assert got.min() == 10


def test_the_mean_of_a_constant_is_the_constant() -> None:
    x, q = torch.full((1, 2, 7, 5), 201, dtype=torch.uint8), Quantization(0.3, 17)
    node = Mean("y", "x", "y", Activation(alpha=-1e9, beta=50.0))
    assert result_of(node, {"x": (x, q)}, (1, 2, 1, 1), q).flatten().tolist() == [17 + round(50 / 0.3)] * 2
    assert result_of(Mean("y", "x", "y"), {"x": (x, q)}, (1, 2, 1, 1), q).flatten().tolist() == [201, 201]


def test_padding_never_wins_a_maximum() -> None:
    x, q = random_bytes(1, 2, 7, 7), Quantization(0.1, 200)
    node = Pool("y", "x", "y", Window((3, 3), (2, 2), (1, 1)), True)
    got = result_of(node, {"x": (x, q)}, (1, 2, 4, 4), q)
    assert torch.equal(got.float(), F.max_pool2d(x.float(), 3, 2, 1))
    zero = torch.zeros(1, 2, 7, 7, dtype=torch.uint8)
    assert not result_of(node, {"x": (zero, q)}, (1, 2, 4, 4), q).any()


def test_channels_that_a_copy_adds_hold_the_zero_point() -> None:
    x, q = random_bytes(1, 2, 4, 4), Quantization(0.1, 200)
    got = result_of(Copy("y", "x", "y", (2, 2), before=1), {"x": (x, q)}, (1, 5, 2, 2), q)
    assert torch.equal(got[:, 1:3], x[:, :, ::2, ::2])
    assert (got[:, [0, 3, 4]] == 200).all()


@pytest.mark.parametrize(
    ("scale", "zero_point", "activation", "bounds"),
    [
        (0.1, 0, Activation(), (0, 255)),
        (0.1, 128, Activation(), (-128, 127)),
        (0.1, 128, RELU, (0, 127)),
        (0.05, 3, Activation(alpha=0.0, beta=6.0), (0, 120)),
        (0.01, 3, Activation(alpha=0.0, beta=6.0), (0, 252)),
        (1.0, 100, Activation(alpha=-2.5, beta=3.5), (-2, 4)),
    ],
)
def test_bounds_are_those_of_the_activation(
    scale: float, zero_point: int, activation: Activation, bounds: tuple[float, float]
) -> None:
    assert Quantization(scale, zero_point).bounds(activation) == bounds


def test_an_activation_by_a_curve_has_no_bounds() -> None:
    with pytest.raises(ValueError, match="silu is not a clamp"):
        Quantization(0.1, 0).bounds(Activation(ActivationKind.SILU))


NETWORKS = {
    "resnet20": (ts.models.resnet20, 32),
    "mobilenetv1": (lambda: ts.models.MobileNetV1(width_multiplier=0.25), 64),
    "mobilenetv2": (lambda: ts.models.MobileNetV2(width_multiplier=0.35), 64),
    "pools": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, padding=1), nn.Hardswish(), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, ceil_mode=True),
            nn.Conv2d(8, 16, 3, groups=8), nn.GELU(), nn.Conv2d(16, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 5),
        ),
        33,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_float_programs_compute_what_pytorch_does(name: str) -> None:
    torch.manual_seed(0)
    make, size = NETWORKS[name]
    model, x = make().eval(), torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = model(x)
    got = run_program(fuse(lower(model, x)), x)
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_every_result_can_be_observed() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)), torch.randn(1, 3, 8, 8)
    seen = {}
    run_program(lower(model.eval(), x), x, lambda node, value: seen.update({type(node).__name__: tuple(value.shape)}))
    assert seen == {"Convolution": (1, 4, 6, 6), "Activate": (1, 4, 6, 6), "Pool": (1, 4, 3, 3)}
