"""The CIFAR ResNets: closed forms, the shortcut without parameters, and the published checkpoints."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import torch_separable as ts
from torch_separable._network import weights_file
from torch_separable.models import CifarResNet, resnet20, resnet32, resnet44, resnet56
from torch_separable.models.resnet import BasicBlock

DEPTHS: list[tuple[Callable[..., CifarResNet], int, float]] = [
    (resnet20, 3, 0.27),
    (resnet32, 5, 0.46),
    (resnet44, 7, 0.66),
    (resnet56, 9, 0.85),
]


@pytest.mark.parametrize(("make", "n", "millions"), DEPTHS)
def test_cost_by_closed_form_and_the_papers_size(make: Callable[..., CifarResNet], n: int, millions: float) -> None:
    stages = [(16, 32), (32, 16), (64, 8)]  # channels, size
    convolutions = [(3, 16, 32)]
    for i, (channels, size) in enumerate(stages):
        convolutions += [(stages[max(i - 1, 0)][0], channels, size)] + [(channels, channels, size)] * (2 * n - 1)
    assert len(convolutions) + 1 == 6 * n + 2
    macs = sum(9 * c * m * size**2 for c, m, size in convolutions) + 64 * 10
    parameters = sum(9 * c * m + 2 * m for c, m, _ in convolutions) + 64 * 10 + 10
    with torch.device("meta"):
        counted = ts.analyze(make().eval(), torch.zeros(1, 3, 32, 32))
    assert (counted.macs, counted.parameters) == (macs, parameters)
    assert round(parameters / 1e6, 2) == millions  # table 6 of arXiv 1512.03385


@pytest.mark.parametrize(("make", "n", "millions"), DEPTHS)
def test_keys_are_those_of_the_published_checkpoints(make: Callable[..., CifarResNet], n: int, millions: float) -> None:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = ["conv1.weight", *(f"bn1.{name}" for name in norm)]
    for stage in (1, 2, 3):
        for i in range(n):
            for part in (1, 2):
                keys += [f"layer{stage}.{i}.conv{part}.weight", *(f"layer{stage}.{i}.bn{part}.{name}" for name in norm)]
    with torch.device("meta"):
        assert list(make().state_dict()) == [*keys, "linear.weight", "linear.bias"]


@given(
    st.integers(1, 4),
    st.integers(0, 5),
    st.sampled_from((1, 2)),
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(1, 3),
)
def test_shortcut_takes_every_second_pixel_and_pads_channels_with_zeros(
    channels: int, more: int, stride: int, height: int, width: int, batch: int
) -> None:
    block = BasicBlock(channels, channels + more, stride).double().eval()
    nn.init.zeros_(block.bn2.weight)  # the branch gives nothing, so that the shortcut is seen alone
    x = torch.randn(batch, channels, height, width, dtype=torch.float64)
    pixels = F.avg_pool2d(x, kernel_size=1, stride=stride)
    expected = torch.zeros(batch, channels + more, *pixels.shape[2:], dtype=torch.float64)
    for c in range(channels):
        expected[:, more // 2 + c] = pixels[:, c]
    assert torch.equal(block(x), expected.relu())


@pytest.mark.parametrize(("in_channels", "out_channels", "stride"), [(4, 4, 1), (4, 8, 2), (3, 6, 2)])
def test_block_adds_two_convolutions_to_its_shortcut(in_channels: int, out_channels: int, stride: int) -> None:
    block = BasicBlock(in_channels, out_channels, stride).eval()
    branch = nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False),
        nn.BatchNorm2d(out_channels),
    ).eval()
    branch.load_state_dict(dict(zip(branch.state_dict(), block.state_dict().values(), strict=True)))
    x = torch.randn(2, in_channels, 6, 6)
    padded = torch.zeros(2, out_channels, 6, 6)
    before = (out_channels - in_channels) // 2
    padded[:, before : before + in_channels] = x
    torch.testing.assert_close(block(x), torch.relu(branch(x) + padded[:, :, ::stride, ::stride]))


def test_classes_and_channels_are_free() -> None:
    assert resnet20(num_classes=100, in_channels=1)(torch.randn(2, 1, 28, 28)).shape == (2, 100)


@pytest.fixture(scope="module")
def cifar10_test(shared_data: Path) -> tuple[Tensor, Tensor]:
    """The 10,000 test images of CIFAR-10 as the checkpoints expect them, and their classes."""
    pixels, labels = runpy.run_path(str(shared_data.parent / "tools" / "unpack_cifar10.py"))["load"]("test")
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, deviation = torch.tensor([(0.485, 0.456, 0.406), (0.229, 0.224, 0.225)]).view(2, 3, 1, 1)
    return (images - mean) / deviation, torch.from_numpy(labels)


def correct(network: nn.Module, images: Tensor, labels: Tensor) -> int:
    network.eval()
    with torch.inference_mode():
        batches = zip(images.split(250), labels.split(250), strict=True)
        return sum(int((network(x).argmax(1) == y).sum()) for x, y in batches)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "checkpoint", "first", "expected"),
    [
        (resnet20, "resnet20-12fca82f.th", 10_000, 9173),
        (resnet56, "resnet56-4bfd9763.th", 1_000, 923),  # of all 10,000 it is 9339; that takes 40 s on one core
    ],
)
def test_published_checkpoint_reaches_its_accuracy(
    make: Any, checkpoint: str, first: int, expected: int, shared_data: Path, cifar10_test: tuple[Tensor, Tensor]
) -> None:
    network = make()
    weights_file.load_weights(network, shared_data / checkpoint)
    images, labels = cifar10_test
    # Exact, since the closest two classes are 5e-4 of a logit apart, far more than the order of summation changes.
    assert correct(network, images[:first], labels[:first]) == expected


def test_published_checkpoint_of_another_depth_is_refused(shared_data: Path) -> None:
    with pytest.raises(ts.SeparableError, match=r"not the weights of this network \(CifarResNet\): \d+ unknown"):
        weights_file.load_weights(resnet20(), shared_data / "resnet56-4bfd9763.th")
