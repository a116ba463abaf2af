"""Weights are counted as they are stored: packed, in tensor subclasses, complex."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import torch_separable as ts
from torch_separable.errors import SeparableError

CONV, LINEAR = 8 * 3 * 9, 8 * 5


class Quantized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.conv, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv(self.quant(x))))
        return self.dequant(self.head(torch.flatten(x, 1)))  # type: ignore[no-any-return]


def test_packed_parameters_of_eager_quantization_are_counted() -> None:
    with warnings.catch_warnings(action="ignore"):
        network = Quantized().eval()
        network.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
        prepared = torch.ao.quantization.prepare(network)
        prepared(torch.randn(8, 3, 8, 8))
        counted = ts.analyze(torch.ao.quantization.convert(prepared), torch.randn(1, 3, 8, 8))
    assert counted.parameters == CONV + 8 + LINEAR + 5
    assert counted.macs == CONV * 64 + LINEAR
    assert counted.weight_bytes >= CONV + LINEAR + 4 * (8 + 5)
    assert not counted.uncounted


def test_weights_of_dynamic_quantization_are_counted() -> None:
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 5))
    with warnings.catch_warnings(action="ignore"):
        counted = ts.analyze(torch.ao.quantization.quantize_dynamic(dense, {nn.Linear}), torch.randn(1, 3, 8, 8))
    assert (counted.parameters, counted.macs) == (CONV + 8 + 8 * 36 * 5 + 5, CONV * 36 + 8 * 36 * 5)


@pytest.fixture(scope="module")
def int8_network() -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 64)).eval()
    quantization.quantize_(network, quantization.Int8WeightOnlyConfig())
    return network


def test_tensor_subclass_counts_the_bytes_that_it_stores(int8_network: nn.Module) -> None:
    weight = int8_network[2].weight  # type: ignore[index]
    inner = [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]
    plain = [int8_network[0].weight, int8_network[0].bias, int8_network[2].bias]  # type: ignore[index]
    counted = ts.analyze(int8_network, torch.randn(1, 3, 8, 8))
    assert counted.weight_bytes == sum(tensor.numel() * tensor.element_size() for tensor in (*plain, *inner))
    assert counted.weight_bytes < 4 * 8 * 36 * 64
    assert counted.macs == CONV * 36 + 8 * 36 * 64


def test_networks_of_tensor_subclasses_are_refused_by_name(int8_network: nn.Module) -> None:
    images = torch.randn(16, 3, 8, 8)
    with pytest.raises(SeparableError, match=r"2\.weight is a Int8Tensor"):
        ts.convert(int8_network, images, rank=2)
    if ts.runtime.available():
        with pytest.raises(SeparableError, match=r"2\.weight is a Int8Tensor"):
            ts.compile(int8_network, images[:1])


def test_complex_products_count_real_multiply_accumulates() -> None:
    class Product(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a @ b

    a, b = torch.randn(3, 4, dtype=torch.complex64), torch.randn(4, 5, dtype=torch.complex64)
    assert ts.analyze(Product(), a, b).macs == 4 * ts.analyze(Product(), a.real, b.real).macs == 4 * 60
