"""The article's tool beside ours, on the article's three networks: the same totals, to the letter."""

from __future__ import annotations

import pytest
import torchsummary
from torch import Tensor, nn

import torch_separable as ts


class Net(nn.Module):
    """The article's network around one convolution."""

    def __init__(self, conv2d: nn.Module) -> None:
        super().__init__()
        self.conv2d = conv2d
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.conv2d(x))
        return out


NETWORKS = {
    296: lambda: Net(nn.Conv2d(4, 8, 3, padding=1)),
    152: lambda: Net(nn.Conv2d(4, 8, 3, padding=1, groups=2)),
    80: lambda: ts.depthwise_separable_conv(4, 8),
}


def totals(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("Total params", "Trainable", "Non-trainable"))]


@pytest.mark.parametrize("parameters", NETWORKS)
def test_totals_are_torchsummarys_to_the_letter(parameters: int, capsys: pytest.CaptureFixture[str]) -> None:
    network = NETWORKS[parameters]()
    torchsummary.summary(network, (4, 3, 3), device="cpu")
    theirs = totals(capsys.readouterr().out)
    ours = totals(str(ts.summary(network, (4, 3, 3), verbose=False)))
    assert ours == theirs
    assert theirs == [f"Total params: {parameters}", f"Trainable params: {parameters}", "Non-trainable params: 0"]


def test_parameters_that_are_not_trained_are_told_apart_alike(capsys: pytest.CaptureFixture[str]) -> None:
    network = ts.depthwise_separable_conv(40, 80)
    network.depth_conv.requires_grad_(False)
    torchsummary.summary(network, (40, 3, 3), device="cpu")
    theirs = totals(capsys.readouterr().out)
    assert totals(str(ts.summary(network, (40, 3, 3), verbose=False))) == theirs
    assert theirs == ["Total params: 3,680", "Trainable params: 3,280", "Non-trainable params: 400"]
