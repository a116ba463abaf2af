"""A compiled network holds one packed copy of its weights, and shares the rest with the network."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import torch_separable as ts
from torch_separable._network.copying import copied_on_write
from torch_separable.runtime import compile

MEASURE = """
import gc
import torch
from torch import nn
import torch_separable as ts

def resident():
    gc.collect()
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))

def network(channels, layers):
    return nn.Sequential(*(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(layers))).eval()

torch.set_num_threads(1)
ts.compile(network(8, 1), torch.zeros(1, 8, 8, 8))  # imports what a compilation needs
model = network(512, 3)
before = resident()
compiled = ts.compile(model, torch.zeros(1, 512, 8, 8))
one_shape = resident()
compiled(torch.zeros(1, 512, 6, 9))
two_shapes = resident()
weights = sum(parameter.nbytes for parameter in model.parameters())
print(weights, one_shape - before, two_shapes - before, compiled.memory.total)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_resident_memory_grows_by_one_copy_of_the_weights() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    weights, one_shape, two_shapes, held = map(int, done.stdout.split())
    assert weights > 25e6
    assert one_shape < 1.5 * weights
    assert two_shapes < 1.5 * weights
    assert weights <= held < 1.1 * weights


def test_memory_counts_weights_and_workspaces() -> None:
    compiled = compile(nn.Sequential(nn.Conv2d(64, 64, 1), nn.ReLU()).eval(), torch.randn(1, 64, 8, 8))
    compiled(torch.randn(1, 64, 8, 8))
    one = compiled.memory
    assert 4 * 64 * 65 <= one.packed_weights < 5 * 64 * 65
    assert one.workspaces >= 2 * 4 * 64 * 8 * 8
    assert one.copied_weights == 0
    assert one.total == one.packed_weights + one.workspaces
    compiled(torch.randn(2, 64, 8, 8))
    two = compiled.memory
    assert two.packed_weights == one.packed_weights
    assert two.workspaces >= 3 * one.workspaces // 2
    assert "MB" in str(two)


def test_copy_on_write_shares_memory_until_either_side_is_written() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    copy = copied_on_write(model)
    assert all(torch._C._is_cow_tensor(tensor) for tensor in (*copy.parameters(), *copy.buffers()))
    expected = {name: tensor.clone() for name, tensor in copy.state_dict().items()}
    with torch.no_grad():
        model[0].weight.add_(1.0)
        model[0].bias.data.mul_(2.0)
        model(torch.randn(4, 3, 8, 8))  # writes to the running statistics
    for name, tensor in copy.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    with torch.no_grad():
        copy[1].weight.zero_()
    assert torch.equal(model[1].weight, torch.ones(8))


def test_copy_on_write_copies_memory_that_pytorch_does_not_own_and_keeps_shared_tensors_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))
            self.register_buffer("table", torch.ones(4, 4))
            self.register_buffer("row", self.table[1])  # a view
            self.external = torch.from_numpy(torch.ones(4).numpy())
            self.again = self.weight

    model = Tied()
    copy = copied_on_write(model)
    assert copy.again is copy.weight
    assert copy.weight.requires_grad
    model.external.zero_()
    with torch.no_grad():
        model.weight.zero_()
        assert torch.equal(copy.external, torch.ones(4))
        assert copy.weight.abs().sum() > 0
        copy.table[1] = 5.0
    assert torch.equal(copy.row, torch.full((4,), 5.0))
    assert torch.equal(model.row, torch.ones(4))


def test_a_network_whose_weights_are_shared_can_be_saved_copied_and_trained(tmp_path: object) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)), torch.randn(1, 3, 8, 8)
    compiled = ts.compile(model.eval(), x)
    before = compiled(x)
    torch.save(model.state_dict(), f"{tmp_path}/weights.pth")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().mean().backward()
    optimizer.step()
    assert torch.equal(compiled(x), before)
    model.load_state_dict(torch.load(f"{tmp_path}/weights.pth"))
    assert torch.allclose(model(x), before, atol=1e-5)
    assert torch.equal(compiled(torch.cat([x, x]))[:1], before)
