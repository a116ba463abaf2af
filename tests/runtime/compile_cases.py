"""Networks with random batch norms, and the comparison of a compiled network with its original."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import torch_separable as ts


def randomize_batch_norms(model: nn.Module) -> nn.Module:
    """Give batch norms statistics and weights of their own, so that folding them is tested."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def assert_same(compiled: ts.CompiledModel, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected = model(x)
    got = compiled(x)
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max().clamp_min(1e-3))


NETWORKS = {
    "mobilenet_v1": (lambda: ts.models.mobilenet_v1(0.25), (2, 3, 64, 64)),
    "conv_mobilenet": (lambda: ts.models.conv_mobilenet(0.25), (1, 3, 64, 64)),
    "mobilenet_v2": (lambda: ts.models.mobilenet_v2(0.35), (1, 3, 64, 64)),
    "resnet20": (ts.models.resnet20, (3, 3, 32, 32)),
}
