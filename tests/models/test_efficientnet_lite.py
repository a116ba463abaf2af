"""EfficientNet-Lite against the figures that its authors publish, and against a closed form of its table."""

from __future__ import annotations

import math

import pytest
import torch

import torch_separable as ts
from torch_separable.models import EfficientNetLite, efficientnet_lite0

# The table beside the authors' networks (tensorflow/tpu, models/official/efficientnet/lite): width, depth, resolution,
# millions of parameters, millions of multiply-accumulates.
PUBLISHED = {
    0: (1.0, 1.0, 224, 4.7, 407),
    1: (1.0, 1.1, 240, 5.4, 631),
    2: (1.1, 1.2, 260, 6.1, 899),
    3: (1.2, 1.4, 280, 8.2, 1440),
    4: (1.4, 1.8, 300, 13.0, 2640),
}


def count(network: EfficientNetLite) -> tuple[int, int]:
    size = network.resolution
    counted = ts.analyze(network.eval(), torch.zeros(1, 3, size, size, device="meta"))
    assert not counted.uncounted
    return counted.macs, counted.parameters


@pytest.mark.parametrize("variant", PUBLISHED)
def test_variants_have_the_published_sizes(variant: int) -> None:
    width, depth, resolution, parameters, macs = PUBLISHED[variant]
    with torch.device("meta"):
        network = EfficientNetLite(width, depth, resolution)
    counted, weights = count(network)
    assert round(weights / 1e6, 1) == parameters
    # The authors count what TensorFlow's profiler does: batch norms and biases, too, which come to a few per cent.
    assert macs * 0.93 < counted / 1e6 <= macs


def test_lite0_is_the_closed_form_of_its_table() -> None:
    table = [
        (1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2), (6, 5, 112, 3, 1), (6, 5, 192, 4, 2),
        (6, 3, 320, 1, 1),
    ]  # fmt: skip
    size, channels = math.ceil(224 / 2), 32
    weights = 27 * 32
    macs, norms = weights * size**2, 2 * 32
    for expand, kernel, width, repeats, stride in table:
        for i in range(repeats):
            inner = channels * expand
            widening = channels * inner if expand > 1 else 0
            macs += widening * size**2
            size = math.ceil(size / stride) if i == 0 else size
            macs += inner * (kernel**2 + width) * size**2
            weights += widening + inner * (kernel**2 + width)
            norms += 2 * ((inner if expand > 1 else 0) + inner + width)
            channels = width
    macs += 320 * 1280 * size**2 + 1280 * 1000
    weights += 320 * 1280 + 1280 * 1000
    with torch.device("meta"):
        network = efficientnet_lite0()
    assert count(network) == (macs, weights + norms + 2 * 1280 + 1000)


def test_output_of_every_stage_is_the_size_over_the_stride_rounded_up() -> None:
    network = efficientnet_lite0(num_classes=3).eval()
    x = network.stem(torch.zeros(1, 3, 75, 61))
    assert x.shape[2:] == (38, 31)
    assert network.blocks(x).shape[2:] == (3, 2)
