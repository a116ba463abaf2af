"""Time networks with other values of the constants that decide tile sizes.

``python benchmarks/tiles.py`` prints, for each value of a constant, the median time over that of the value in use. The
values are interleaved, so that a change of the processor's clock affects all of them.

- ``_DEPTH_FIRST_BYTES``: MobileNetV1, eight images of 224x224, whose early layers run depth first.
- ``FEW_PIXELS``: the late layers of MobileNetV1 (1,024 channels) on 7x7 to 20x20 pixels, with two threads.
"""

from __future__ import annotations

import statistics
import time
from unittest.mock import patch

import torch
from torch import nn

import torch_separable as ts
from torch_separable.runtime.planning import schedule, tiling


def compiled(network: nn.Module, images: torch.Tensor, constant: str, value: int) -> ts.CompiledModel:
    """Compile with another value of a constant of tiling.py."""
    modules = [module for module in (tiling, schedule) if hasattr(module, constant)]
    patches = [patch.object(module, constant, value) for module in modules]
    for each in patches:
        each.start()
    try:
        return ts.compile(network, images)
    finally:
        for each in patches:
            each.stop()


def medians(models: list[ts.CompiledModel], images: torch.Tensor, repeats: int) -> list[float]:
    """Median seconds of a call of each model, interleaved."""
    seconds: list[list[float]] = [[] for _ in models]
    for _ in range(repeats):
        for model, times in zip(models, seconds, strict=True):
            start = time.perf_counter()
            model(images)
            times.append(time.perf_counter() - start)
    return [statistics.median(times[repeats // 5 :]) for times in seconds]


def compare(name: str, network: nn.Module, images: torch.Tensor, constant: str, values: list[int]) -> None:
    """Print the time for each value over that of the value in use."""
    used = getattr(tiling, constant)
    every = [used, *(value for value in values if value != used)]
    times = medians([compiled(network, images, constant, value) for value in every], images, 30)
    ratios = ", ".join(f"{v}: {t / times[0]:.2f}" for v, t in sorted(zip(every, times, strict=True)))
    print(f"{constant} ({used} in use), {name}: {ratios}")


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = ts.models.mobilenet_v1(1.0).eval()
    values = [kilobytes * 1024 for kilobytes in (16, 32, 48, 64, 96, 128)]
    compare("MobileNetV1, 8 images", network, torch.randn(8, 3, 224, 224), "_DEPTH_FIRST_BYTES", values)
    torch.set_num_threads(2)
    layers = [nn.Sequential(nn.Conv2d(1024, 1024, 1), nn.ReLU()) for _ in range(4)]
    for side in (7, 10, 14, 20):
        late, images = nn.Sequential(*layers).eval(), torch.randn(1, 1024, side, side)
        compare(f"4 pointwise layers at {side}x{side}", late, images, "FEW_PIXELS", [16, 64, 256])


if __name__ == "__main__":
    main()
