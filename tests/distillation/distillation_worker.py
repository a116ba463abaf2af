"""A small distillation as a program of its own, for the tests that kill it or launch it in several processes.

python distillation_worker.py OUTPUT_DIR JSON_SETTINGS
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch
from torch import nn

from torch_separable.data import ImageData
from torch_separable.distillation import distill


def network(seed: int, width: int = 6, batch_norm: bool = True) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.BatchNorm2d(width) if batch_norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(0.1) if batch_norm else nn.Identity(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * width, 4),
        )


def images(split: str = "train", count: int = 96) -> ImageData:
    generator = torch.Generator().manual_seed(len(split))
    pixels = torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(4, (count,), generator=generator)
    return ImageData("noise", split, pixels, labels, ("a", "b", "c", "d"), (0.5,) * 3, (0.25,) * 3)


def run(
    output_dir: str | None, batch_norm: bool = True, validated: bool = True, width: int = 9, **settings: Any
) -> nn.Module:
    student, teacher = network(0, batch_norm=batch_norm), network(1, width=width, batch_norm=batch_norm)
    validation = images("valid", 40) if validated else None
    return distill(student, teacher, images(), validation=validation, output_dir=output_dir, **settings)


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    run(sys.argv[1], **json.loads(sys.argv[2]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
