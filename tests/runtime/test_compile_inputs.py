"""Networks for vectors, tokens, signals and volumes compile, too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torch_separable as ts
from compile_cases import assert_same


class Attention(nn.Module):
    """Self-attention over tokens (N, L, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix, self.out = nn.LayerNorm(24), nn.Linear(24, 72), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.mix(self.norm(x)).chunk(3, dim=-1)
        return self.out(x + nn.functional.scaled_dot_product_attention(query, key, value)).mean(1)


VECTORS = nn.Sequential(nn.Linear(20, 33), nn.ReLU(), nn.Linear(33, 5))
SIGNALS = nn.Sequential(nn.Conv1d(2, 8, 5, 2), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 3, 1))
VOLUMES = nn.Sequential(
    nn.Conv3d(2, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 4)
)
# Network, shape that it is compiled for, another shape.
NETWORKS = {
    "vectors": (VECTORS, (3, 20), (1, 20)),
    "tokens": (Attention(), (2, 7, 24), (1, 9, 24)),
    "signals": (SIGNALS, (2, 2, 31), (1, 2, 18)),
    "volumes": (VOLUMES, (2, 2, 6, 7, 8), (1, 2, 5, 9, 4)),
}


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_for_other_inputs_than_images(name: str, strided: bool) -> None:
    model, shape, other = NETWORKS[name]
    compiled = ts.compile(model.eval(), torch.randn(shape))
    for sizes in (shape, other):
        x = torch.randn(sizes)
        assert_same(compiled, model, x.mT.contiguous().mT if strided else x)
    x = torch.randn(shape)
    assert compiled.verify(x).error < 1e-5
    assert compiled.explain(x, rounds=1).nodes


def test_tokens_and_vectors_run_in_kernels() -> None:
    for name in ("vectors", "tokens"):
        model, shape, _ = NETWORKS[name]
        compiled = ts.compile(model.eval(), torch.randn(shape))
        assert not any("linear" in fallback for fallback in compiled.fallbacks)


def test_hooks_of_a_network_for_volumes_see_volumes() -> None:
    model, seen = NETWORKS["volumes"][0], []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(args[0].dim()))
    try:
        ts.compile(model.eval(), torch.randn(1, 2, 5, 5, 5), compare=False)
    finally:
        handle.remove()
    assert set(seen) == {5}
    assert not model._forward_pre_hooks
