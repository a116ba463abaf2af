"""The share of the earlier layers' error that a layer corrects: all of a signal, little of noise."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from torch_separable.conversion import apply, calibrate, plan
from torch_separable.conversion.calibration.moments import sample_moments
from torch_separable.conversion.solvers.mismatch import combine, corrected_moments, correction_share, half_moments


def samples(count: int, entries: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    mix = torch.randn(entries, entries, generator=generator)
    x = torch.randn(count, entries, generator=generator) @ mix + torch.randn(entries, generator=generator)
    return x, torch.randn(count, 4, generator=generator)


@pytest.mark.parametrize("groups", [1, 2])
def test_moments_of_halves_combine_to_those_of_all(groups: int) -> None:
    x, t = samples(101)
    whole = sample_moments(x, t, groups)
    for one, other, expected in zip(*half_moments(x, t, groups), whole, strict=True):
        combined = combine(one, other)
        for name in ("patches", "cross", "patch_mean", "target_mean", "target_variance"):
            torch.testing.assert_close(getattr(combined, name), getattr(expected, name))
        assert combined.count == 101


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_corrected_moments_equal_those_of_the_corrected_target(share: float) -> None:
    x, correction = samples(200)
    weight, bias = torch.randn(2, 2, 2, 3).double(), torch.randn(4).double()
    own = torch.cat([part @ w.flatten(1).T.float() for part, w in zip(x.chunk(2, 1), weight, strict=True)], 1)
    expected = sample_moments(x, own + bias.float() + share * correction, 2)
    found = corrected_moments(half_moments(x, correction, 2), weight, bias, share)
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("patches", "cross", "patch_mean", "target_mean", "target_variance"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-4)


def test_share_is_one_for_a_signal_and_small_for_noise() -> None:
    x, noise = samples(400)
    importance = torch.ones(4).double()
    signal = x @ torch.randn(12, 4)
    assert correction_share(half_moments(x, signal, 1), importance) == pytest.approx(1, abs=1e-3)
    assert correction_share(half_moments(x, noise, 1), importance) < 0.6
    assert correction_share(half_moments(x, 0 * noise, 1), importance) == 1


def test_share_is_near_the_best_on_fresh_samples() -> None:
    torch.manual_seed(0)
    kernel, best, chosen = 0.12 * torch.randn(40, 4), [], []
    for _ in range(30):
        x = torch.randn(320, 40)
        correction = x @ kernel + torch.randn(320, 4)
        chosen.append(correction_share(half_moments(x, correction, 1), torch.ones(4).double()))
        delta = torch.linalg.lstsq(x - x.mean(0), correction - correction.mean(0)).solution
        best.append(float((kernel * delta).sum() / delta.square().sum()))  # fresh inputs are white
    assert sum(chosen) / 30 == pytest.approx(sum(best) / 30, abs=0.1)
    assert 0.3 < sum(best) / 30 < 0.8


def test_share_lowers_the_error_on_other_images_when_there_are_few() -> None:
    lost = {True: 0.0, False: 0.0}
    for seed in range(3):
        torch.manual_seed(seed)
        widths = [3, 24, 24, 24, 24]
        layers = [m for a, b in pairwise(widths) for m in (nn.Conv2d(a, b, 3), nn.ReLU())]
        model, images, fresh = nn.Sequential(*layers).eval(), torch.randn(8, 3, 12, 12), torch.randn(64, 3, 12, 12)
        statistics = calibrate(model, images)
        chosen = plan(model, statistics, rank=2, order="depthwise_first")
        with torch.no_grad():
            dense = model(fresh)
            for share in lost:
                outputs = apply(model, chosen, statistics, share=share)(fresh)
                lost[share] += float((outputs - dense).square().mean() / dense.var(0).mean())
    assert lost[True] < lost[False]
