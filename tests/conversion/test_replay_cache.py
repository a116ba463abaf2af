"""Passes that begin where the one before stopped compute what passes from the beginning compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from torch_separable.conversion.calibration.replay_cache import ReplayCache
from torch_separable.models import mobilenet_v2, resnet20


class Counter(TorchDispatchMode):
    """Counts convolutions that are carried out."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.convolution.default
        return func(*args, **(kwargs or {}))


class Winding(nn.Module):
    """Views, writing in place, a skip that is used late, values read back, and a layer called through functions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(5)])

    def forward(self, x: Tensor) -> Tensor:
        early = F.relu(self.layers[0](x))
        x = self.layers[1](early)
        x[:, :2] = 0.5
        x.add_(early).relu_()
        halves = x.chunk(2, 1)
        x = torch.cat([halves[1], halves[0] * 2], 1)
        flat = self.layers[2](x).flatten(2)
        del x
        if flat.sum().item() > 0:
            flat = flat.neg_()
        x = self.layers[3](flat.view(-1, 4, 6, 6))
        x += early.mean((2, 3), keepdim=True)
        early.mul_(3)
        return self.layers[4](x) + early


def passes(network: nn.Module, layers: list[nn.Module], images: Tensor, cache: ReplayCache) -> None:
    """Change one layer after the other; each pass must give what a pass from the beginning gives."""
    batches = images.split(2)
    with torch.no_grad():
        for layer in layers:
            for parameter in layer.parameters():
                parameter.mul_(1.5).add_(0.01)
            for i, batch in enumerate(batches):
                expected = network(batch)
                for _ in range(2):
                    torch.testing.assert_close(
                        cache.run(i, layer, lambda batch=batch: network(batch)), expected, rtol=0, atol=0
                    )


def convolutions(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize("network", [Winding(), resnet20(), mobilenet_v2(0.35)], ids=["winding", "resnet", "v2"])
def test_replayed_pass_equals_a_full_pass(network: nn.Module) -> None:
    torch.manual_seed(0)
    network.eval()
    images = torch.randn(4, 4, 6, 6) if isinstance(network, Winding) else torch.randn(4, 3, 32, 32)
    passes(network, convolutions(network), images, ReplayCache(memory=2**26))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_subset_of_layers_in_execution_order_can_be_replayed(data: st.DataObject) -> None:
    network = Winding()
    wanted = sorted(data.draw(st.sets(st.integers(0, 4), min_size=1)))
    memory = data.draw(st.sampled_from([0, 2000, 2**20]))
    passes(network, [network.layers[i] for i in wanted], torch.randn(4, 4, 6, 6), ReplayCache(memory))


def test_cached_operations_are_not_computed_again() -> None:
    network = resnet20().eval()
    layers, images, cache = convolutions(network), torch.randn(2, 3, 32, 32), ReplayCache(memory=2**26)
    counts = []
    with Counter() as counter:
        for layer in layers:
            before = counter.count
            cache.run(0, layer, lambda: network(images))
            counts.append(counter.count - before)
    # Each pass computes from the layer of the pass before.
    assert counts == [len(layers), *range(len(layers), 1, -1)]


def test_only_tensors_still_in_use_are_kept() -> None:
    network = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(6)))
    images, cache = torch.randn(2, 4, 16, 16), ReplayCache(memory=2**26)
    sizes = []
    for layer in network:
        cache.run(0, layer, lambda: network(images))
        sizes.append(cache.cached[0].size // images.nbytes)
    assert max(sizes) <= 1


def test_batches_beyond_the_memory_run_from_the_beginning() -> None:
    network = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))).eval()
    batches = torch.randn(6, 4, 8, 8).split(2)
    cache = ReplayCache(memory=batches[0].nbytes)
    for layer in network:
        for i, batch in enumerate(batches):
            expected = network(batch)
            assert torch.equal(cache.run(i, layer, lambda batch=batch: network(batch)), expected)
    assert list(cache.cached) == [0]


class Fickle(nn.Module):
    """Two layers, and between them something else at each call; ``None`` for leaving the second out."""

    def __init__(self, *between: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)
        self.between = iter(between)

    def forward(self, x: Tensor) -> Tensor:
        function = next(self.between)
        x = self.first(x)
        return x if function is None else self.last(function(x))


def test_network_that_diverges_runs_from_the_beginning() -> None:
    network, x, cache = (
        Fickle(torch.relu, torch.sigmoid, torch.tanh),
        torch.randn(2, 3),
        ReplayCache(memory=2**20),
    )
    cache.run(0, network.last, lambda: network(x))
    with torch.no_grad():
        result = cache.run(0, network.last, lambda: network(x))
        torch.testing.assert_close(result, network.last(network.first(x).tanh()))  # the second call was given up


def test_network_that_ends_before_the_layer_runs_from_the_beginning() -> None:
    network, x, cache = Fickle(torch.relu, None, None), torch.randn(2, 3), ReplayCache(memory=2**20)
    cache.run(0, network.last, lambda: network(x))
    torch.testing.assert_close(cache.run(0, network.last, lambda: network(x)), network.first(x))


def test_tensors_without_storage_are_computed_again() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.sparse.mm(x.to_sparse(), self.first.weight))

    network, cache = Sparse(), ReplayCache(memory=2**20)
    for x in torch.randn(2, 2, 3):
        torch.testing.assert_close(cache.run(0, network.last, lambda x=x: network(x)), network(x))
    assert not cache.cached


def test_pass_may_stop_at_the_layer() -> None:
    class EnoughError(Exception):
        pass

    network, x, cache = (
        nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)),
        torch.randn(2, 3),
        ReplayCache(99),
    )

    def leave(*_: Any) -> None:
        raise EnoughError

    for layer in network:
        handle = layer.register_forward_hook(leave)
        with pytest.raises(EnoughError):
            cache.run(0, layer, lambda: network(x))
        handle.remove()
    assert torch.equal(cache.run(0, network[2], lambda: network(x)), network(x))
