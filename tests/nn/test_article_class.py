"""The introductory article's class works as the article writes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_separable as ts


class WrittenInTheArticle(nn.Module):
    def __init__(self, ch_in: int, ch_out: int) -> None:
        super().__init__()
        self.depth_conv = nn.Conv2d(ch_in, ch_in, kernel_size=3, padding=1, groups=ch_in)
        self.point_conv = nn.Conv2d(ch_in, ch_out, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.point_conv(self.depth_conv(x))  # type: ignore[no-any-return]


class Network(nn.Module):
    def __init__(self, conv2d: nn.Module) -> None:
        super().__init__()
        self.conv2d = conv2d
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv2d(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("ch_in", "ch_out"), [(4, 8), (1, 1), (3, 5)])
def test_weights_move_between_the_articles_class_and_ours(ch_in: int, ch_out: int) -> None:
    theirs, ours = WrittenInTheArticle(ch_in, ch_out), ts.depthwise_separable_conv(ch_in, ch_out)
    x = torch.randn(2, ch_in, 5, 4)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))
    ours.point_conv.reset_parameters()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize(
    ("conv2d", "parameters", "without_bias"),
    [
        (lambda: nn.Conv2d(in_channels=4, out_channels=8, kernel_size=3, stride=1, padding=1, groups=1), 296, 288),
        (lambda: nn.Conv2d(in_channels=4, out_channels=8, kernel_size=3, stride=1, padding=1, groups=2), 152, 144),
        (lambda: ts.depthwise_separable_conv(4, 8), 80, 68),
    ],
)
def test_the_articles_three_networks_and_its_summary_call(
    conv2d: Callable[[], nn.Module], parameters: int, without_bias: int, capsys: Any
) -> None:
    network = Network(conv2d()).to(torch.device("cpu"))
    assert ts.summary(network, (4, 3, 3)).parameters == parameters
    assert f"Total params: {parameters}" in capsys.readouterr().out
    assert sum(p.numel() for name, p in network.named_parameters() if name.endswith("weight")) == without_bias
    assert network(torch.randn(1, 4, 3, 3)).shape == (1, 8, 3, 3)


def test_the_general_layer_does_the_same() -> None:
    article, general = ts.depthwise_separable_conv(4, 8), ts.nn.DepthwiseSeparableConv2d(4, 8, 3, padding=1)
    names = {"depth_conv": "conv_dw", "point_conv": "conv_pw"}
    state = {f"{names[k.split('.')[0]]}.{k.split('.')[1]}": tensor for k, tensor in article.state_dict().items()}
    general.load_state_dict(state)
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(general(x), article(x))
