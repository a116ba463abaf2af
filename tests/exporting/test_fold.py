"""A batch norm after a convolution costs nothing once it is folded; everything else computes what it did."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from torch_separable.exporting import fold_batch_norms
from torch_separable.models import mobilenet_v1, mobilenet_v2, resnet20
from torch_separable.nn import DepthwiseSeparableConv1d, DepthwiseSeparableConv2d, DepthwiseSeparableConv3d


def trained(model: nn.Module) -> nn.Module:
    """Give the batch norms statistics that do something, as training does."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -1, 1)
            if module.running_mean is not None:
                nn.init.uniform_(module.running_mean, -1, 1)
                nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def captured(model: nn.Module, example: Tensor) -> fx.GraphModule:
    with torch.no_grad():
        return torch.export.export(model, (example,)).module(check_guards=False)


def operators(graph: fx.GraphModule) -> Counter[str]:
    calls = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    return Counter(name.split(".")[1] for name in calls)


@pytest.mark.parametrize(
    ("build", "size", "norms"), [(mobilenet_v1, 64, 27), (mobilenet_v2, 64, 52), (resnet20, 32, 19)]
)
def test_every_norm_of_the_networks_is_folded(build: object, size: int, norms: int) -> None:
    model, images = trained(build()), torch.randn(2, 3, size, size)  # type: ignore[operator]
    graph = captured(model, images)
    assert fold_batch_norms(graph) == norms
    assert "batch_norm" not in operators(graph)
    expected = model(images).detach()
    torch.testing.assert_close(graph(images), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    # Of a norm's five tensors nothing is left, and each convolution has a kernel and a bias.
    assert len(graph.state_dict()) == 2 * norms + 2


BLOCKS = {1: DepthwiseSeparableConv1d, 2: DepthwiseSeparableConv2d, 3: DepthwiseSeparableConv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@given(
    dimensions=st.sampled_from([1, 2, 3]),
    order=st.sampled_from(["depthwise_first", "pointwise_first"]),
    rank=st.integers(1, 3),
    bias=st.booleans(),
    between=st.booleans(),
    activation=st.sampled_from([None, nn.ReLU]),
    padding=st.sampled_from([0, 1, "same"]),
)
def test_separable_layer_becomes_two_convolutions(
    dimensions: int, order: str, rank: int, bias: bool, between: bool, activation: object, padding: object
) -> None:
    layer = BLOCKS[dimensions](
        4, 6, 3, padding=padding, depth_multiplier=rank, bias=bias, order=order, norm_layer=NORMS[dimensions],
        act_layer=activation, norm_between=between,
    )  # type: ignore[arg-type]  # fmt: skip
    trained(layer).double()
    images = torch.randn(2, 4, *[6] * dimensions, dtype=torch.float64)
    graph = captured(layer, images)
    assert fold_batch_norms(graph) == 1 + between
    counted = operators(graph)
    assert counted.pop(f"conv{dimensions}d") == 2
    assert counted == ({} if activation is None else {"relu": 2})
    torch.testing.assert_close(graph(images), layer(images), rtol=1e-9, atol=1e-9)


class Shared(nn.Module):
    """One convolution with a norm of its own for each of two calls, and a third call without one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.bn2(self.conv(self.bn1(self.conv(x)))))


class Branching(nn.Module):
    """What comes before the norm is needed elsewhere, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class Computed(nn.Module):
    """The kernel is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3, padding=1))
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


@pytest.mark.parametrize(
    ("model", "folded"),
    [
        (Shared(), 2),
        (Branching(), 0),
        (Computed(), 0),
        (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3)), 0),
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.BatchNorm2d(3)), 0),
        (nn.Sequential(nn.ConvTranspose2d(3, 3, 3), nn.BatchNorm2d(3)), 0),
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, affine=False)), 1),
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)), 0),
        (nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.BatchNorm2d(6)), 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_norm_is_folded_only_where_that_changes_nothing(model: nn.Module, folded: int) -> None:
    images = torch.randn(2, 3, 8, 8)
    trained(model)
    graph = captured(model, images)
    assert fold_batch_norms(graph) == folded
    torch.testing.assert_close(graph(images), model(images), rtol=1e-5, atol=1e-5)
    assert fold_batch_norms(graph) == 0


class Kernels(nn.Module):
    """Two kernels in one module, each with a batch norm, and a bias that is of neither."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.ParameterList([torch.randn(8, 3, 3, 3), torch.randn(10, 8, 3, 3)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(10)])
        self.bias = nn.Parameter(torch.randn(10))

    def forward(self, x: Tensor) -> Tensor:
        for kernel, norm in zip(self.kernels, self.norms, strict=True):
            x = norm(nn.functional.conv2d(x, kernel)).relu()
        return x + self.bias.view(1, -1, 1, 1)


def test_kernels_that_share_a_module_have_biases_of_their_own() -> None:
    model, x = trained(Kernels()), torch.randn(2, 3, 8, 8)
    graph = captured(model, x)
    fold_batch_norms(graph)
    assert operators(graph)["batch_norm"] == 0
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-4)
