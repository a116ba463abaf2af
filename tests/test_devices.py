"""The same code on every device that PyTorch sees here; the ids say which ran, and the skips which did not.

Run on a machine with a GPU, these compare it with the CPU. What is float64 (moments, fits) is done on the CPU on all of
them: Apple's GPU has no such type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torch_separable as ts
from torch_separable.models import CifarResNet, mobilenet_v1
from torch_separable.nn import DepthwiseSeparableConv2d, InvertedResidual, ShuffleUnit

AVAILABLE: dict[str, Callable[[], bool]] = {
    "cpu": lambda: True,
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
}


@pytest.fixture(params=AVAILABLE)
def device(request: pytest.FixtureRequest) -> torch.device:
    if not AVAILABLE[request.param]():
        pytest.skip(f"PyTorch sees no {request.param} device here")
    return torch.device(request.param)


def close(ours: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-3) -> None:
    """The GPU's convolutions may round their inputs to TF32."""
    torch.testing.assert_close(ours.cpu(), expected, rtol=tolerance, atol=tolerance)


BLOCKS: dict[str, Callable[..., nn.Module]] = {
    "separable": lambda **place: DepthwiseSeparableConv2d(8, 8, 3, stride=2, padding="same", **place),
    "blueprint": lambda **place: DepthwiseSeparableConv2d(
        8, 8, 3, order="pointwise_first", depth_multiplier=2, **place
    ),
    "inverted residual": lambda **place: InvertedResidual(8, 8, **place),
    "shuffle unit": lambda **place: ShuffleUnit(8, 8, groups=2, **place),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_made_and_run_where_they_are_asked_to(name: str, device: torch.device) -> None:
    reference = BLOCKS[name]().eval()
    block = BLOCKS[name](device=device).eval()
    assert {tensor.device.type for tensor in block.state_dict().values()} == {device.type}
    block.load_state_dict(reference.state_dict())
    x = torch.randn(2, 8, 9, 9)
    close(block(x.to(device)), reference(x))


def test_network_is_counted_where_it_is(device: torch.device) -> None:
    network = mobilenet_v1(0.25, num_classes=7).eval()
    on_cpu = ts.analyze(network, torch.zeros(1, 3, 64, 64))
    counted = ts.analyze(network.to(device), torch.zeros(1, 3, 64, 64, device=device))
    assert (counted.macs, counted.parameters) == (on_cpu.macs, on_cpu.parameters)
    assert ts.summary(network, (3, 64, 64), verbose=False).macs == on_cpu.macs


def test_network_is_converted_distilled_evaluated_and_saved_where_it_is(device: torch.device, tmp_path: Any) -> None:
    dense = CifarResNet(1, num_classes=4).eval()
    images = torch.rand(32, 3, 16, 16)
    expected = ts.convert(dense, images, rank=2, progress=False).model
    dense.to(device)
    converted = ts.convert(dense, images, rank=2, progress=False).model
    assert next(converted.parameters()).device.type == device.type
    with torch.no_grad():
        close(converted(images.to(device)), expected(images), 1e-2)
    data = ts.ImageData("noise", "train", images, labels=torch.arange(32) % 4, classes=("a", "b", "c", "d"))
    distilled = ts.distill(converted, dense, data, epochs=1, batch_size=16, progress=False)
    assert next(distilled.parameters()).device.type == device.type
    assert ts.evaluate(distilled, data, progress=False).count == 32
    ts.save(distilled, tmp_path / "network", network=CifarResNet, arguments={"blocks": 1, "num_classes": 4})
    again = ts.load(tmp_path / "network", device=device)
    with torch.no_grad():
        close(again(images.to(device)), distilled(images.to(device)).cpu(), 1e-5)


def test_weights_are_imported_where_the_network_is(device: torch.device) -> None:
    source = mobilenet_v1(0.25, num_classes=5)
    network = mobilenet_v1(0.25, num_classes=5).to(device)
    assert ts.import_weights(network, source).complete
    assert torch.equal(network.classifier.weight.cpu(), source.classifier.weight)
    assert network.classifier.weight.device.type == device.type
