"""Compiled networks give the outputs of the original network, whatever its operators and the input's strides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torch_separable as ts
from compile_cases import NETWORKS, assert_same, randomize_batch_norms
from torch_separable.runtime import compile


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("threads", [1, 2])
def test_built_in_networks_run_without_fallbacks(name: str, threads: int) -> None:
    make, shape = NETWORKS[name]
    model, x = randomize_batch_norms(make()), torch.randn(shape)
    compiled = compile(model, x, threads=threads)
    assert compiled.fallbacks == ()
    assert_same(compiled, model, x)


@pytest.mark.parametrize("order", ["depthwise_first", "pointwise_first"])
@pytest.mark.parametrize("rank", [1, 3])
def test_converted_networks_run_without_fallbacks(order: str, rank: int) -> None:
    model, images = randomize_batch_norms(ts.models.CifarResNet(1)), torch.randn(16, 3, 16, 16)
    statistics = ts.calibrate(model, images)
    converted = ts.apply(model, ts.plan(model, statistics, rank=rank, order=order), statistics)  # type: ignore[arg-type]
    compiled = compile(converted, images)
    assert compiled.fallbacks == ()
    assert_same(compiled, converted.eval(), images)


class Attention(nn.Module):
    """A squeeze-and-excite block, an average pool, and what has no kernel: the logarithm of a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.Hardswish(inplace=True))
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 12, 1), nn.Hardsigmoid()
        )
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.pool(x * self.squeeze(x)).log_softmax(1)
        return self.head(x.mean((2, 3)))


def test_operators_without_a_kernel_are_named_fallbacks() -> None:
    model, x = Attention().eval(), torch.randn(2, 3, 9, 11)
    compiled = compile(model, x)
    assert [text.partition(":")[0] for text in compiled.fallbacks] == ["log_softmax"]
    assert "no kernel" in compiled.fallbacks[0]
    assert_same(compiled, model, x)


def test_any_strides_batch_and_size() -> None:
    model, x = randomize_batch_norms(ts.models.mobilenet_v1(0.25)), torch.randn(2, 3, 64, 64)
    compiled = compile(model, x)
    assert_same(compiled, model, x.to(memory_format=torch.channels_last))
    assert_same(compiled, model, torch.randn(2, 64, 3, 128)[:, :, :, ::2].permute(0, 2, 1, 3))
    assert_same(compiled, model, torch.randn(1, 3, 64, 64))
    assert_same(compiled, model, torch.randn(3, 3, 33, 47))


def test_empty_batch_gives_empty_outputs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    compiled = compile(model, torch.randn(2, 3, 9, 9))
    assert compiled(torch.randn(0, 3, 9, 9)).shape == (0, 5)


def test_calls_inside_and_outside_inference_mode() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 3, 3)).eval(), torch.randn(1, 3, 9, 9)
    with torch.inference_mode():
        compiled = compile(model, x)
        assert_same(compiled, model, x)
    assert_same(compiled, model, x)
    assert_same(compiled, model, torch.randn(2, 3, 11, 9))


def test_negated_views() -> None:
    model, z = nn.Conv2d(3, 8, 3).eval(), torch.randn(1, 3, 9, 9, dtype=torch.complex64)
    x = z.conj().imag
    assert x.is_neg()
    assert_same(compile(model, x), model, x)


def test_verify_accepts_one_number_per_image() -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 8), nn.Flatten(0)).eval()
    assert compile(model, torch.randn(2, 3, 8, 8)).verify(torch.randn(2, 3, 8, 8)).error < 1e-5


@pytest.mark.parametrize("size", [(16, 16), (17, 15)])
@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
def test_one_sided_padding_is_part_of_the_convolution(size: tuple[int, int], kernel: int) -> None:
    model = nn.Sequential(
        nn.ZeroPad2d((0, kernel - 1, 1, kernel - 1)),
        nn.Conv2d(3, 8, kernel, 2),
        nn.ReLU(),
        nn.ZeroPad2d((2, 1, 0, 3)),
        nn.Conv2d(8, 8, kernel, padding=1, groups=8),
        nn.Conv2d(8, 5, 1),
        nn.Conv2d(5, 4, kernel, padding="same"),
    ).eval()
    x = torch.randn(2, 3, *size)
    compiled = compile(model, x)
    assert compiled.fallbacks == ()
    assert_same(compiled, model, x)


class Padded(nn.Module):
    """Padding that more than one convolution reads, one of which has no kernel, and one that reads single pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.scaled = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3)
        self.pointwise = nn.Conv2d(4, 6, 1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        padded, other = nn.functional.pad(x, (0, 2, 0, 1)), nn.functional.pad(x, (0, 1, 1, 0))
        scaled = nn.functional.conv2d(padded, self.scaled.weight * padded.mean(), self.scaled.bias)
        return self.dense(padded) + scaled + self.pointwise(other)[:, :, 1:-1, 1:-2].mean((2, 3), True)


def test_padding_with_several_readers_is_kept() -> None:
    model, x = Padded().eval(), torch.randn(2, 4, 9, 9)
    compiled = compile(model, x)
    assert any("conv2d" in text and "its weights are computed" in text for text in compiled.fallbacks)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)


class AlwaysDropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(nn.functional.relu(x), 0.5, training=True)


def test_dropout_in_evaluation_mode_is_kept() -> None:
    compiled = compile(nn.Sequential(nn.Conv2d(3, 8, 1), AlwaysDropping()).eval(), torch.randn(1, 3, 32, 32))
    assert "dropout" in compiled.fallbacks[0]
    zeros = float((compiled(torch.randn(1, 3, 32, 32)) == 0).float().mean())
    assert 0.6 < zeros < 0.9  # half by the ReLU, half of the rest by the dropout


def test_grouped_convolutions_run_without_fallbacks() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        nn.Conv2d(24, 48, 3, 2, 1, groups=6),  # as in ResNeXt
        nn.BatchNorm2d(48),
        nn.ReLU(),
        nn.Conv2d(48, 30, 1, groups=3),
        nn.Conv2d(30, 60, 3, groups=30),  # two outputs for each channel, and no pointwise convolution after it
        nn.SiLU(),
    )
    model, x = randomize_batch_norms(model), torch.randn(2, 3, 17, 15)
    for threads in (1, 3):
        compiled = compile(model, x, threads=threads)
        assert compiled.fallbacks == ()
        assert_same(compiled, model, x)
    counted = 2 * ts.analyze(model, x).macs
    assert sum(node.flops for node in compiled.explain(rounds=2).nodes) == counted


def test_efficientnet_runs_without_fallbacks() -> None:
    model, x = randomize_batch_norms(ts.models.efficientnet_lite0()), torch.randn(1, 3, 65, 64)
    compiled = compile(model, x)
    assert compiled.fallbacks == ()
    assert compiled.verify(x).error <= 1e-5


def test_verification_and_profile() -> None:
    model, x = randomize_batch_norms(ts.models.resnet20()), torch.randn(2, 3, 32, 32)
    compiled = compile(model, x)
    assert compiled.verify(x).error <= 1e-5
    assert compiled.verify(x).agreement == 1.0
    times = compiled.profile(x, rounds=3)
    assert {"dense", "import", "mean", "copy", "pointwise"} == {each.kind for each in times}
    assert all(each.milliseconds > 0 for each in times)


def test_dense_convolution_to_one_channel_is_not_depthwise() -> None:
    head = nn.Sequential(nn.Conv2d(12, 8, 1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1), nn.Sigmoid()).eval()
    x = torch.randn(2, 12, 9, 7)
    assert_same(compile(head, x), head, x)
