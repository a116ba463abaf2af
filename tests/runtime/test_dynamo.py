"""``torch.compile(model, backend="separable")`` computes what the model does, and says what it leaves to PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_separable as ts
from torch_separable.runtime import dynamo


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def close(got: Tensor, expected: Tensor) -> bool:
    return float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def compiled(model: nn.Module) -> nn.Module:
    network: nn.Module = torch.compile(model, backend="separable")  # type: ignore[assignment]
    return network


def test_pytorch_finds_the_backend_by_its_name() -> None:
    assert "separable" in torch._dynamo.list_backends()
    (found,) = entry_points(group="torch_dynamo_backends", name="separable")
    assert found.load() is dynamo.separable


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_network_runs_with_kernels_at_several_batches(mode: type) -> None:
    model = ts.models.mobilenet_v1(0.25).eval()
    network = compiled(model)
    with warnings.catch_warnings(action="error", category=UserWarning), mode():
        for batch in (1, 2, 5):
            x = torch.randn(batch, 3, 32, 32)
            assert close(network(x), model(x))


OPTIONS: list[dict[str, Any]] = [
    {"fullgraph": True},
    {"mode": "default"},
    {"mode": "reduce-overhead"},
    {"mode": "max-autotune"},
    {"options": {"threads": 1}},
    {"dynamic": False},
    {"dynamic": True},
]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_of_torch_compile_runs_in_kernels(
    options: dict[str, Any], context: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_SEPARABLE_CACHE", str(tmp_path))
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    model = nn.Sequential(*layers).eval()
    network = torch.compile(model, backend="separable", **options)
    with warnings.catch_warnings(action="error", category=UserWarning), context():
        for batch, size in ((2, 9), (3, 9), (2, 12)):
            x = torch.randn(batch, 3, size, size)
            assert close(network(x), model(x))


def test_dynamic_shapes_share_one_set_of_packed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[object] = []
    pack = dynamo._Subgraph._pack
    monkeypatch.setattr(dynamo._Subgraph, "_pack", lambda *args: packed.append(None) or pack(*args))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten()).eval()
    network = torch.compile(model, backend="separable", dynamic=True)
    with torch.no_grad():
        for batch, size in ((2, 9), (3, 9), (5, 12), (2, 9)):
            x = torch.randn(batch, 3, size, size)
            assert close(network(x), model(x))
    assert len(packed) == 1


@pytest.mark.parametrize("options", [{"mode": "fastest"}, {"options": {"freezing": True}}, {"options": {"threads": 0}}])
def test_unknown_options_of_torch_compile_are_named(options: dict[str, Any]) -> None:
    network = torch.compile(nn.Conv2d(3, 4, 3), backend="separable", **options)
    with torch.no_grad(), pytest.raises(Exception, match=r"fastest|freezing|threads"):
        network(torch.randn(1, 3, 8, 8))


def test_under_autocast_a_subgraph_runs_eagerly() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), torch.randn(1, 3, 8, 8)
    network = compiled(model)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16), pytest.warns(UserWarning, match="autocast"):
            assert torch.equal(network(x), model(x))
        assert close(network(x), model(x))


def test_changed_weights_are_packed_again() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval(), torch.randn(1, 3, 9, 9)
    network = compiled(model)
    with torch.no_grad():
        network(x)
        model[0].weight.mul_(2)
        assert close(network(x), model(x))
        model[1].running_mean.add_(1)
        assert close(network(x), model(x))
        model[0].weight.data = torch.randn(8, 3, 3, 3)
        assert close(network(x), model(x))


def test_modules_that_share_their_code_keep_their_own_weights() -> None:
    one, two = nn.Conv2d(3, 4, 3).eval(), nn.Conv2d(3, 4, 3).eval()
    x = torch.randn(1, 3, 8, 8)
    networks = [compiled(one), compiled(two)]
    with torch.no_grad():
        for _ in range(2):
            assert close(networks[0](x), one(x))
            assert close(networks[1](x), two(x))


def test_blocks_compiled_one_by_one_and_batches_of_any_size_stay_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[object] = []
    pack = dynamo._Subgraph._pack
    monkeypatch.setattr(dynamo._Subgraph, "_pack", lambda *args: packed.append(None) or pack(*args))
    blocks = [nn.Conv2d(4, 4, 3, padding=1).eval() for _ in range(6)]
    networks = [compiled(block) for block in blocks]
    whole = torch.compile(nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU()).eval(), backend="separable", dynamic=True)
    inputs = [torch.randn(n, 4, 8, 8) for n in range(2, 9)]
    with torch.no_grad():
        for turn in range(2):
            x = inputs[0]
            for network, block in zip(networks, blocks, strict=True):
                assert close(network(x), block(x))
            for x in inputs:
                whole(x)
            if turn == 0:
                first = len(packed)
    assert len(packed) == first


class Viewed(nn.Module):
    """A graph break after a convolution, and then a view that only PyTorch's usual layout allows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        torch._dynamo.graph_break()
        return x.view(len(x), -1)


@pytest.mark.filterwarnings("ignore:torch_separable. a subgraph")
def test_outputs_are_laid_out_as_the_code_that_follows_expects() -> None:
    model, x = Viewed().eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert close(compiled(model)(x), model(x))
        x = x.contiguous(memory_format=torch.channels_last)
        first = compiled(model.first)(x)
        assert first.is_contiguous(memory_format=torch.channels_last)


class Broken(nn.Module):
    """A graph break in the middle, and two tensors into the second half."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = x.relu()
        torch._dynamo.graph_break()
        return self.second(y) + x


def test_a_subgraph_that_is_no_network_runs_eagerly_and_is_named() -> None:
    model, x = Broken().eval(), torch.randn(2, 3, 8, 8)
    network = compiled(model)
    with torch.no_grad(), pytest.warns(UserWarning, match="runs eagerly: it takes 2 tensors that are not weights"):
        got = network(x)
    with torch.no_grad():
        assert close(got, model(x))


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x.relu_(), torch.ones(1, 3, 1, 1))


def test_in_place_change_of_the_input_is_kept() -> None:
    x = torch.randn(1, 3, 4, 4)
    network, mine = compiled(InPlace()), x.clone()
    with torch.no_grad(), pytest.warns(UserWarning, match="runs eagerly"):
        got = network(mine)
    assert torch.equal(mine, x.relu())
    assert close(got, x.relu().sum(1, keepdim=True))


def test_batch_norm_in_training_mode_keeps_its_statistics() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.randn(4, 3, 8, 8)
    network, expected = compiled(model), nn.BatchNorm2d(4)
    with torch.no_grad(), pytest.warns(UserWarning, match="runs eagerly"):
        network(x)
    with torch.no_grad():
        expected(model[0](x))
    torch.testing.assert_close(model[1].running_mean, expected.running_mean)


def test_training_is_refused() -> None:
    network = compiled(nn.Conv2d(3, 4, 3))
    with pytest.raises(Exception, match=r"gradients.*torch.no_grad\(\)"):
        network(torch.randn(1, 3, 8, 8))


def test_backend_names_a_missing_library(tmp_path: Path) -> None:
    code = (
        "import torch\n"
        "from torch_separable.runtime.native import library\n"
        "library._FILE = 'absent.so'\n"
        "network = torch.compile(torch.nn.Conv2d(3, 8, 3), backend='separable')\n"
        "try:\n    with torch.no_grad(): network(torch.zeros(1, 3, 8, 8))\n"
        "except Exception as error:\n    print(error)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TORCH_SEPARABLE_LIBRARY"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    assert "this installation has no kernel library" in done.stdout
