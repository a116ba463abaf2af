"""What several folders of tests share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn


@pytest.fixture
def trained() -> Callable[[nn.Module], nn.Module]:
    """Gives every norm of a network a mean, a variance, a scale and a shift of its own, that keep activations alive."""

    def train(network: nn.Module) -> nn.Module:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = torch.empty(module.num_features).uniform_(-0.3, 0.3)
                module.running_var = torch.empty(module.num_features).uniform_(0.02, 0.2)
                nn.init.uniform_(module.weight, 0.5, 1.0)
                nn.init.uniform_(module.bias, -0.5, 0.5)
        return network.eval()

    return train
