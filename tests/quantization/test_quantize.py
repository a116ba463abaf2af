"""Quantized networks: how near they are to the float ones, what stays float, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_separable as ts
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.quantization import quantize
from torch_separable.runtime.graph.ir import Convolution, DepthwiseConv, QuantizedConvolution, TorchCall


def images(count: int = 48, size: int = 32, seed: int = 0) -> Tensor:
    """Smooth images, as photographs are."""
    noise = torch.randn(count, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (size, size), mode="bilinear")


def with_statistics(model: nn.Module, x: Tensor) -> nn.Module:
    """Let batch norms take statistics of the images, so that activations have ranges as in a trained network."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    with torch.no_grad():
        model.train()(x)
    return model.eval()


class Excited(nn.Module):
    """An inverted residual with squeeze-and-excitation and hardswish, as MobileNetV3 has it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.expand = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 5, padding=2, groups=16), nn.Hardswish())
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        factors = F.hardsigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        y = self.project(y * factors) + x
        return self.head(torch.cat([y, F.max_pool2d(y, 3, 1, 1)], 1).mean((2, 3)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20": (ts.models.resnet20, 32),
    "mobilenetv1": (lambda: ts.models.MobileNetV1(width_multiplier=0.25, num_classes=10), 64),
    "mobilenetv2": (lambda: ts.models.MobileNetV2(width_multiplier=0.35, num_classes=10), 64),
    "excited": (Excited, 32),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_quantized_network_is_near_the_float_one_and_all_integer(name: str) -> None:
    torch.manual_seed(0)
    make, size = NETWORKS[name]
    model = with_statistics(make(), images(64, size))
    quantized = quantize(model, images(48, size))
    x = images(16, size, seed=1)
    with torch.no_grad():
        expected = model(x)
        disturbed = model(x + 0.01 * x.std() * torch.randn_like(x))
    got = quantized.model(x)
    # A thousandth of the outputs' variance, or what two per cent of noise in the images changes: untrained deep
    # networks amplify any error.
    allowed = max(4 * float((disturbed - expected).square().mean()), 1e-3 * float(expected.var()))
    assert (got - expected).square().mean() < allowed
    program = quantized.model.program(x)
    assert not program.unquantized
    assert not any(isinstance(node, Convolution | DepthwiseConv | TorchCall) for node in program.nodes)
    # The exact integers and PyTorch's float simulation of them differ by single steps.
    with torch.no_grad():
        simulated = quantized.model.captured(x)
    assert (got - simulated).square().mean() < allowed


def test_a_converted_network_quantizes() -> None:
    torch.manual_seed(0)
    model = with_statistics(ts.models.resnet20(), images(64))
    conversion = ts.convert(model, images(32), rank=2)
    quantized = quantize(conversion, images(32))
    with torch.no_grad():
        expected = conversion.model(images(16, seed=1))
    assert (quantized.model(images(16, seed=1)) - expected).square().mean() < 0.05 * expected.var(0).mean()
    program = quantized.model.program(images(16))
    assert any(isinstance(node, QuantizedConvolution) and node.depthwise is not None for node in program.nodes)


def test_a_networks_own_weights_are_not_changed() -> None:
    torch.manual_seed(0)
    model = with_statistics(Excited(), images())
    before = copy.deepcopy(model.state_dict())
    quantize(model, images())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_excluded_layers_stay_float() -> None:
    torch.manual_seed(0)
    model = with_statistics(Excited(), images())
    quantized = quantize(model, images(), exclude=["stem", "head"])
    assert quantized.report.kept == {"stem.0": "excluded", "head": "excluded"}
    floats = [n for n in quantized.model.program(images(1)).nodes if isinstance(n, Convolution)]
    assert [node.weight.shape[0] for node in floats] == [8, 10]
    with pytest.raises(SeparableValueError, match="'nowhere', which is no layer"):
        quantize(model, images(), exclude=["nowhere"])


def test_equalization_rescues_depthwise_channels_of_unlike_ranges() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU(), nn.Conv2d(16, 4, 1)
    )
    spread = torch.logspace(0, -2.5, 16)
    with torch.no_grad():
        model[0].weight *= spread.view(-1, 1, 1, 1)
        model[0].bias *= spread
        model[2].weight /= spread.view(-1, 1, 1, 1)
    quantized = quantize(model, images())
    assert quantized.report.equalized == 2
    assert quantized.report.output_error < 0.002


def test_a_batch_norm_without_a_convolution_before_it_runs_in_float() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    model = with_statistics(model, images())
    quantized = quantize(model, images())
    assert len(quantized.report.layers) == 2
    assert quantized.report.output_error < 0.01


def test_a_weight_that_two_layers_share_is_rounded_for_each() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(conv, nn.ReLU(), conv, nn.ReLU(), nn.Conv2d(3, 4, 1))
    quantized = quantize(model, images())
    assert len(quantized.report.layers) == 3
    assert quantized.report.output_error < 0.01


def test_values_in_place_are_kept_apart() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x.relu_()
            y = self.b(x)
            y += x
            return y

    torch.manual_seed(0)
    assert quantize(InPlace(), images()).report.output_error < 0.01


def test_dead_channels_stay_dead() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0, 0
        model[2].weight[1], model[2].bias[1] = 0, 0
    quantized = quantize(model, images())
    assert not quantized.model(images(2))[:, 1].any()
    assert quantized.report.output_error < 0.01


def test_activations_that_are_not_finite_are_refused_by_the_layers_name() -> None:
    class Logarithm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log(x)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Logarithm(), nn.Conv2d(4, 4, 3))
    with pytest.raises(SeparableError, match="layer '1' gives NaN or infinity"):
        quantize(model, images())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_refused(value: float) -> None:
    x = images()
    x[3, 1, 2, 2] = value
    with pytest.raises(SeparableError, match="NaN"):
        quantize(nn.Sequential(nn.Conv2d(3, 4, 3)), x)


def test_networks_without_a_layer_are_refused() -> None:
    with pytest.raises(SeparableError, match="no convolution or linear layer"):
        quantize(nn.Sequential(nn.ReLU()), images())


def test_another_size_of_image_is_refused() -> None:
    quantized = quantize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), images())
    with pytest.raises(SeparableValueError, match=r"\(3, 32, 32\)"):
        quantized.model(torch.randn(1, 3, 16, 16))


def test_training_is_refused() -> None:
    quantized = quantize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), images())
    assert quantized.model.eval() is quantized.model
    with pytest.raises(SeparableError, match="cannot be trained"):
        quantized.model.train()


def test_a_copy_computes_the_same() -> None:
    torch.manual_seed(0)
    quantized = quantize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), images())
    x = images(2)
    expected = quantized.model(x)
    assert torch.equal(copy.deepcopy(quantized.model)(x), expected)


def test_compile_runs_the_quantized_network() -> None:
    torch.manual_seed(0)
    model = with_statistics(ts.models.resnet20(), images(64))
    quantized, x = quantize(model, images()), images(4)
    expected = quantized.model(x)
    got = ts.compile(quantized.model, x)(x)
    assert (got - expected).square().mean() < 0.01 * expected.var(0).mean()


def test_results_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    quantized, x = quantize(Excited().eval(), images()), images(6)
    together = quantized.model(x)
    assert torch.equal(together, torch.cat([quantized.model(part) for part in x.split(2)]))


def test_the_report_says_what_was_gained_and_lost() -> None:
    report = quantize(ts.models.resnet20().eval(), images()).report
    assert "20 in int8, 0 in float32" in str(report)
    assert report.bytes[0] / report.bytes[1] > 3.5
    assert report.to_dict()["agreement"] == report.agreement
    assert len(report.layers) == 20
    assert all(0 <= layer.error < 0.01 for layer in report.layers)


def test_fewer_than_eight_images_are_refused() -> None:
    with pytest.raises(SeparableError, match="7 calibration images: at least 8 are needed"):
        quantize(nn.Sequential(nn.Conv2d(3, 4, 3)), images(7))
    assert quantize(nn.Sequential(nn.Conv2d(3, 4, 3)), images(8)).report.held_out_images == 2


def test_a_constant_channel_is_represented() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0, 3.0
    quantized = quantize(model, images())
    assert quantized.report.output_error < 0.01
    assert torch.equal(ts.compile(quantized.model, images(2))(images(2)), quantized.model(images(2)))
