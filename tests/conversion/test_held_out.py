"""Reported figures are measured on images that nothing was fitted to."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import torch_separable as ts
from torch_separable.conversion.calibration.images import hold_out, images_in


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 5),
    ).eval()  # fmt: skip


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("sizes", [[64], [64, 64, 3], [1] * 9, [3, 5, 2, 6]])
def test_a_quarter_of_the_images_is_held_out_and_none_is_lost(sizes: list[int]) -> None:
    given = torch.arange(sum(sizes)).view(-1, 1, 1, 1)
    fitted, held_out = hold_out(given.split(sizes))
    assert sum(map(images_in, held_out)) == sum(sizes) // 4
    everything = torch.cat([batch for batch in (*fitted, *held_out) if isinstance(batch, Tensor)])
    assert sorted(everything.flatten().tolist()) == list(range(sum(sizes)))


def test_batches_of_keyword_arguments_are_split_alike() -> None:
    (fitted,), (held_out,) = hold_out([{"image": images(8), "id": torch.arange(8)}])
    assert isinstance(fitted, Mapping)
    assert isinstance(held_out, Mapping)
    assert held_out["id"].tolist() == [6, 7]
    assert torch.equal(fitted["image"], images(8)[:6])


@pytest.mark.filterwarnings("ignore:.* have fewer output pixels")
def test_report_is_that_of_images_that_were_not_fitted_to() -> None:
    model, given = network(), images(12)
    with pytest.warns(UserWarning, match=r"12 images are too few"):
        conversion = ts.convert(model, given, rank=6)
    report, (_, (held_out,)) = conversion.report, hold_out([given])
    with torch.no_grad():
        ours, dense = conversion.model(held_out), model(held_out)
        fresh = images(2000)
        elsewhere = conversion.model(fresh), model(fresh)
        variance = model(given[:9]).var(0, unbiased=False).mean()
    assert report.output_error == pytest.approx(float((ours - dense).square().mean() / variance), rel=1e-3)
    assert report.agreement == pytest.approx(float((ours.argmax(1) == dense.argmax(1)).float().mean()))
    true = float((elsewhere[0] - elsewhere[1]).square().mean() / elsewhere[1].var(0).mean())
    assert report.fitted_error < true
    assert 0.3 * true < report.output_error < 3 * true
    assert (report.fitted_images, report.held_out_images) == (9, 3)
    assert "3 held-out images" in str(report)


@pytest.mark.filterwarnings("ignore:.* have fewer output pixels")
def test_as_many_images_as_the_warning_says_do_not_warn() -> None:
    with pytest.warns(UserWarning, match="too few") as caught:
        ts.convert(network(), images(12), rank=6)
    text = next(str(warning.message) for warning in caught if "too few" in str(warning.message))
    enough = re.search(r"About ([\d,]+) would do", text)
    assert enough is not None
    count = int(enough[1].replace(",", ""))
    assert 12 < count < 2000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = ts.convert(network(), images(2 * count), rank=6).report
    assert report.output_error < 2 * report.fitted_error
