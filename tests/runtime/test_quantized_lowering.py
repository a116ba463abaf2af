"""Graphs with quantize and dequantize operators are read as nodes that compute in integers, to within one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - registers the operators

import torch_separable as ts
from torch_separable.nn import DepthwiseSeparableConv2d
from torch_separable.runtime.graph.ir import Dequantize, Program
from torch_separable.runtime.graph.quantized import read_quantized
from torch_separable.runtime.graph.reference import run_program

ops = torch.ops.quantized_decomposed


def fake(x: Tensor, scale: float = 0.05, zero_point: int = 0, low: int = 0, high: int = 255) -> Tensor:
    """Quantize and dequantize."""
    stored = ops.quantize_per_tensor(x, scale, zero_point, low, high, torch.uint8)
    return ops.dequantize_per_tensor(stored, scale, zero_point, low, high, torch.uint8)


class QuantizedWeights(nn.Module):
    """A layer whose weight is dequantized from int8 in each call."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, per_channel: bool = True, zero_point: int = 0) -> None:
        super().__init__()
        self.layer, self.per_channel, self.zero_point = layer, per_channel, zero_point
        weight = layer.weight.detach()
        largest = weight.abs().flatten(1).amax(1) if per_channel else weight.abs().max()
        scales = largest / 127
        shape = (-1,) + (1,) * (weight.dim() - 1)
        self.register_buffer("stored", (weight / scales.view(shape)).round().to(torch.int8))
        self.register_buffer("scales", scales)
        self.register_buffer("zero_points", torch.full_like(scales, zero_point, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.per_channel:
            weight = ops.dequantize_per_channel(self.stored, self.scales, self.zero_points, 0, -127, 127, torch.int8)
        else:
            weight = ops.dequantize_per_tensor.tensor(self.stored, self.scales, self.zero_points, -127, 127, torch.int8)
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, layer.bias)
        return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


class Network(nn.Module):
    """Layers by name, and what is made of them."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv(*args: Any, **kwargs: Any) -> QuantizedWeights:
    return QuantizedWeights(nn.Conv2d(*args, **kwargs))


def kinds(program: Program) -> list[str]:
    return [type(node).__name__ for node in program.nodes]


def _enlarged(layer: nn.Conv2d) -> nn.Conv2d:
    """So that results exceed 6."""
    with torch.no_grad():
        layer.weight *= 12
    return layer


def excitation(layer: nn.Module, x: Tensor) -> Tensor:
    squeezed = fake(x.mean((2, 3), keepdim=True), 0.02, 99)
    return fake(torch.sigmoid(fake(layer(squeezed), 0.01, 128)), 1 / 255)


PATTERNS: dict[str, tuple[Callable[[], Network], list[str]]] = {
    "convolution": (lambda: Network(lambda s, x: fake(s.a(x), 0.02, 90), a=conv(4, 6, 3)), ["QuantizedConvolution"]),
    "relu": (lambda: Network(lambda s, x: fake(F.relu(s.a(x))), a=conv(4, 6, 3, 2, 1)), ["QuantizedConvolution"]),
    "relu6": (
        lambda: Network(lambda s, x: fake(F.relu6(s.a(x)), 0.025), a=QuantizedWeights(_enlarged(nn.Conv2d(4, 6, 3)))),
        ["QuantizedConvolution"],
    ),
    "hardtanh": (
        lambda: Network(lambda s, x: fake(F.hardtanh(s.a(x), -0.3, 0.4), 0.01, 128), a=conv(4, 6, 1)),
        ["QuantizedConvolution"],
    ),
    "fewer values": (
        lambda: Network(lambda s, x: fake(F.relu(s.a(x)), 0.02, 5, 0, 20), a=conv(4, 6, 3)),
        ["QuantizedConvolution"],
    ),
    "groups": (
        lambda: Network(lambda s, x: fake(s.a(x), 0.02, 90), a=conv(4, 6, 3, groups=2)),
        ["QuantizedConvolution"],
    ),
    "one scale": (
        lambda: Network(lambda s, x: fake(s.a(x), 0.02, 90), a=QuantizedWeights(nn.Conv2d(4, 6, 3), False)),
        ["QuantizedConvolution"],
    ),
    "residual": (
        lambda: Network(lambda s, x: fake(F.relu(s.a(x) + x), 0.04), a=conv(4, 4, 3, padding=1)),
        ["QuantizedConvolution"],
    ),
    "sum": (
        lambda: Network(lambda s, x: fake(F.relu(fake(s.a(x), 0.0217, 100) + x), 0.041), a=conv(4, 4, 3, padding=1)),
        ["QuantizedConvolution", "QuantizedAdd"],
    ),
    "separable": (
        lambda: Network(
            lambda s, x: fake(F.relu6(s.b(fake(F.relu6(s.a(x)), 0.02))), 0.02),
            a=conv(4, 4, 3, padding=1, groups=4), b=conv(4, 9, 1),
        ),
        ["QuantizedConvolution"],
    ),
    "separable, rank 2": (
        lambda: Network(
            lambda s, x: fake(s.b(fake(s.a(x), 0.02, 77)), 0.02, 111),
            a=conv(4, 8, 3, padding=1, groups=4), b=conv(8, 9, 1),
        ),
        ["QuantizedConvolution"],
    ),
    "pointwise first, rank 2": (
        lambda: Network(
            lambda s, x: fake(s.b(fake(s.a(x), 0.02, 77)), 0.02, 111),
            a=conv(4, 12, 1), b=conv(12, 6, 3, padding=1, groups=6),
        ),
        ["QuantizedConvolution", "QuantizedConvolution"],
    ),
    "maximum before": (
        lambda: Network(lambda s, x: fake(F.max_pool2d(F.relu(s.a(x)), 3, 2, 1)), a=conv(4, 6, 3)),
        ["QuantizedConvolution", "Pool"],
    ),
    "maximum after": (
        lambda: Network(lambda s, x: F.max_pool2d(fake(F.relu(s.a(x))), 3, 2, 1), a=conv(4, 6, 3)),
        ["QuantizedConvolution", "Pool"],
    ),
    "maximum to another scale": (
        lambda: Network(lambda s, x: fake(F.relu(F.max_pool2d(x, 2)), 0.1, 3)), ["Pool", "LookUp"]
    ),
    "average": (lambda: Network(lambda s, x: fake(F.avg_pool2d(x, 3, 2, 1), 0.01, 30)), ["Pool"]),
    "mean and linear": (
        lambda: Network(
            lambda s, x: fake(s.a(fake(x.mean((2, 3)), 0.01, 100)), 0.01, 128), a=QuantizedWeights(nn.Linear(4, 7))
        ),
        ["Mean", "QuantizedConvolution"],
    ),
    "table": (lambda: Network(lambda s, x: fake(F.silu(x), 0.02, 20)), ["LookUp"]),
    "table of any elementwise operator": (lambda: Network(lambda s, x: fake(torch.tanh(x), 0.01, 128)), ["LookUp"]),
    "another scale": (lambda: Network(lambda s, x: fake(x, 0.1, 50)), ["LookUp"]),
    "the same scale": (
        lambda: Network(lambda s, x: fake(fake(s.a(x), 0.02, 90), 0.02, 90), a=conv(4, 6, 3)),
        ["QuantizedConvolution"],
    ),
    "concatenation": (
        lambda: Network(lambda s, x: fake(torch.cat([x, fake(F.relu(s.a(x)), 0.02)], 1), 0.02), a=conv(4, 6, 1)),
        ["QuantizedConvolution", "LookUp", "QuantizedConcat"],
    ),
    "squeeze and excite": (
        lambda: Network(lambda s, x: fake(x * excitation(s.a, x), 0.04, 90), a=conv(4, 4, 1)),
        ["Mean", "QuantizedConvolution", "LookUp", "QuantizedScale"],
    ),
    "float output": (lambda: Network(lambda s, x: F.relu(s.a(x)), a=conv(4, 6, 3)), ["QuantizedConvolution"]),
    "float activation": (
        lambda: Network(lambda s, x: fake(F.hardswish(s.a(x)), 0.02, 30), a=conv(4, 6, 3)),
        ["QuantizedConvolution", "Activate"],
    ),
    "float residual": (
        lambda: Network(lambda s, x: fake(F.relu(s.a(x) + s.b(x).tanh()), 0.04), a=conv(4, 6, 1), b=conv(4, 6, 1)),
        ["QuantizedConvolution", "Activate", "QuantizedConvolution", "Add"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_read_and_computes_the_same_to_one_step(name: str) -> None:
    torch.manual_seed(0)
    make, expected_kinds = PATTERNS[name]
    inner = make().eval()
    model = Network(lambda s, x: s.inner(fake(x, 0.03, 120)), inner=inner)
    x = torch.randn(2, 4, 9, 9)
    program = read_quantized(model, x)
    got, expected = run_program(program, x), model(x)
    assert got.shape == expected.shape
    inside = [kind for kind in kinds(program) if kind not in ("Quantize", "Dequantize")]
    assert inside == expected_kinds
    # An exact sum and one rounded in float32 differ only where a result lies between two steps.
    difference = (got - expected).abs()
    last = program.nodes[-1]
    step = program.quantized[last.input].scale if isinstance(last, Dequantize) else 1e-5
    assert difference.max() <= 1.01 * step
    assert (difference > 1e-4).float().mean() < 0.01
    assert expected.std() > 0.01


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", PATTERNS)
def test_a_compiled_pattern_gives_the_bits_of_the_reference(name: str, threads: int) -> None:
    torch.manual_seed(0)
    inner = PATTERNS[name][0]().eval()
    model = Network(lambda s, x: s.inner(fake(x, 0.03, 120)), inner=inner)
    x = torch.randn(2, 4, 9, 9)
    expected = run_program(read_quantized(model, x), x)
    compiled = ts.compile(model, x, threads=threads)
    if name in (
        "float activation",
        "float residual",
    ):  # computed by polynomials, so that a value near the middle of two steps may differ
        assert float((compiled(x) != expected).float().mean()) < 0.001
    else:
        assert torch.equal(compiled(x), expected)
    assert any(node.int8 for node in compiled.explain(rounds=1).nodes)


UNQUANTIZED: dict[str, tuple[Callable[[], Network], str]] = {
    "float weights": (
        lambda: Network(lambda s, x: fake(s.a(x), 0.02, 99), a=nn.Conv2d(4, 6, 3)),
        "weights are not quantized",
    ),
    "asymmetric weights": (
        lambda: Network(lambda s, x: fake(s.a(x), 0.02, 99), a=QuantizedWeights(nn.Conv2d(4, 6, 3), zero_point=3)),
        "weights are not quantized symmetrically",
    ),
    "a batch norm after": (
        lambda: Network(lambda s, x: fake(s.b(s.a(x)), 0.02, 99), a=conv(4, 6, 3), b=_varied(nn.BatchNorm2d(6))),
        "weights were changed",
    ),
    "sums beyond int32": (lambda: Network(lambda s, x: fake(s.a(x), 0.02, 99), a=_heavy()), "int32"),
    "activation without a quantized result": (lambda: Network(lambda s, x: F.silu(x)), "result is not quantized"),
    "sum without a quantized result": (lambda: Network(lambda s, x: x + fake(x, 0.1)), "result is not quantized"),
}  # fmt: skip


def _varied(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return norm


def _heavy() -> QuantizedWeights:
    """A kernel so large that 4 · 130 · 130 products of the largest values do not fit."""
    layer = nn.Conv2d(4, 1, 129, padding=64)
    nn.init.constant_(layer.weight, 1e-4)
    return QuantizedWeights(layer)


@pytest.mark.parametrize("name", UNQUANTIZED)
def test_what_matches_no_pattern_runs_dequantized_and_says_why(name: str) -> None:
    torch.manual_seed(0)
    make, reason = UNQUANTIZED[name]
    inner = make().eval()
    model = Network(lambda s, x: s.inner(fake(x, 0.03, 120)), inner=inner)
    x = torch.randn(1, 4, 9, 9)
    program = read_quantized(model, x)
    (said,) = program.unquantized.values()
    assert reason in said
    (named,) = ts.compile(model, x).fallbacks
    assert said in named or "no kernel" in named
    with torch.no_grad():
        torch.testing.assert_close(run_program(program, x), model(x), atol=0.021, rtol=1e-4)


def test_a_float_network_stays_as_it_is() -> None:
    program = read_quantized(ts.models.resnet20().eval(), torch.randn(1, 3, 32, 32))
    assert not program.quantized
    assert not program.unquantized


def test_operators_of_other_types_stay_pytorchs() -> None:
    def function(_: Any, x: Tensor) -> Tensor:
        stored = ops.quantize_per_tensor(x, 0.001, 0, -32768, 32767, torch.int16)
        return ops.dequantize_per_tensor(stored, 0.001, 0, -32768, 32767, torch.int16)

    x = torch.randn(1, 4, 4, 4)
    program = read_quantized(Network(function), x)
    assert kinds(program) == ["TorchCall", "TorchCall"]
    torch.testing.assert_close(run_program(program, x), function(None, x))


class Mixed(nn.Module):
    """A stem with a batch norm, a residual sum, a depthwise stage, an average and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.Conv2d(8, 16, 1))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.inner(x) + x)
        return self.head(F.relu(self.depthwise(x)).mean((2, 3)))


class SeparableNet(nn.Module):
    """Both orders of separable convolutions at rank 2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.first = DepthwiseSeparableConv2d(8, 8, 3, padding=1, depth_multiplier=2)
        self.second = DepthwiseSeparableConv2d(8, 8, 3, padding=1, depth_multiplier=2, order="pointwise_first")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(F.relu(self.stem(x))))))


def by_pt2e(model: nn.Module, x: Tensor, which: str) -> nn.Module:
    """A network as torchao's flow quantizes it."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer: Any
    if which == "x86":
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    else:
        from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack

        quantizer = xnnpack.XNNPACKQuantizer().set_global(
            xnnpack.get_symmetric_quantization_config(is_per_channel=which == "xnnpack")
        )
    prepared = prepare_pt2e(torch.export.export(model, (x,)).module(), quantizer)
    prepared(x)
    return convert_pt2e(prepared)


@pytest.mark.parametrize("which", ["x86", "xnnpack", "xnnpack, one scale"])
@pytest.mark.parametrize(
    ("make", "by_x86"), [(Mixed, 4), (ts.models.resnet20, 20), (SeparableNet, 2)], ids=["mixed", "resnet", "separable"]
)
def test_networks_that_torchao_quantized_run_in_integers(
    which: str, make: Callable[[], nn.Module], by_x86: int
) -> None:
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(4, 3, 32, 32)
    quantized = by_pt2e(model, x, which)
    program = read_quantized(quantized, x)
    assert not program.unquantized
    assert "TorchCall" not in kinds(program)
    if which == "x86":  # it leaves averages, branches and some convolutions in float32
        assert kinds(program).count("QuantizedConvolution") == by_x86
    else:
        assert {type(node).__name__ for node in program.nodes if node.output not in program.quantized} <= {"Dequantize"}
    got, expected = run_program(program, x), quantized(x)
    assert (got - expected).abs().max() <= 0.05 * expected.abs().max()
    if make is Mixed:
        assert (ts.compile(quantized, x)(x) - expected).abs().max() <= 0.05 * expected.abs().max()
