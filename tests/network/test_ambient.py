"""What is compiled, converted, calibrated and exported does not depend on the context of the call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import torch_separable as ts
from torch_separable._network.ambient import default_settings


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


CONTEXTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default dtype": lambda: default_dtype(torch.float64),
    "default device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "deterministic": deterministic,
}
each_context = pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
needs_kernels = pytest.mark.skipif(not ts.runtime.available(), reason="this installation has no kernel library")


class Network(nn.Module):
    """Convolutions, a tensor made in the forward pass, and an operator (sine) without a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(torch.relu(self.first(x)))
        return self.head((torch.sin(y) + torch.ones(1)).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def outputs(call: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with torch.no_grad():
        return call(images)


@needs_kernels
@each_context
def test_network_compiled_and_called_in_a_context_computes_in_float32(
    context: Callable[[], AbstractContextManager[object]], network: Network, images: Tensor
) -> None:
    outside = ts.compile(network, images[:1])
    with context():
        inside = ts.compile(network, images[:1])
        called = outside(images[:1])
        new_shape = outside(images[:2])
        verified = inside.verify(images[:1])
    assert verified.error < 1e-5
    assert inside.fallbacks == outside.fallbacks
    expected = outputs(network, images[:2])
    for result in (called, new_shape[:1], inside(images[:1]), outside(images[:2])[:1]):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, expected[:1], rtol=1e-5, atol=1e-5)


@each_context
def test_network_converted_in_a_context_is_the_same(
    context: Callable[[], AbstractContextManager[object]], network: Network, images: Tensor
) -> None:
    outside = ts.convert(network, images, rank=1).model
    with context():
        inside = ts.convert(network, images, rank=1).model
    assert {tensor.dtype for tensor in inside.state_dict().values()} == {torch.float32}
    torch.testing.assert_close(outputs(inside, images), outputs(outside, images), rtol=1e-4, atol=1e-5)


@each_context
def test_statistics_gathered_in_a_context_are_the_same(
    context: Callable[[], AbstractContextManager[object]], network: Network, images: Tensor
) -> None:
    outside = ts.calibrate(network, images)
    with context():
        inside = ts.calibrate(network, images)
    torch.testing.assert_close(dict(inside.outputs.values), dict(outside.outputs.values), rtol=1e-5, atol=1e-6)


@each_context
def test_network_exported_in_a_context_computes_the_same(
    context: Callable[[], AbstractContextManager[object]], network: Network, images: Tensor, tmp_path: Path
) -> None:
    with context():
        ts.export(network, tmp_path / "network.pt2", images=images)
    loaded = torch.export.load(tmp_path / "network.pt2").module()
    torch.testing.assert_close(outputs(loaded, images), outputs(network, images), rtol=1e-4, atol=1e-5)


@each_context
def test_settings_of_the_caller_come_back(context: Callable[[], AbstractContextManager[object]]) -> None:
    def settings() -> tuple[object, ...]:
        return (
            torch.is_autocast_enabled("cpu"), torch.get_default_dtype(), torch.get_default_device(),
            torch.is_inference_mode_enabled(), torch.is_grad_enabled(),
        )  # fmt: skip

    with context():
        before = settings()
        with default_settings():
            assert settings() == (False, torch.float32, torch.device("cpu"), False, True)
        assert settings() == before
