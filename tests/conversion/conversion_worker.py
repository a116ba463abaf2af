"""A small conversion as a program of its own, for the test that launches it in several processes.

python conversion_worker.py OUTPUT_DIR
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from accelerate import PartialState
from torch import Tensor, nn

from torch_separable.conversion import Budget, Plan, apply, calibrate, plan


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 8, 3),
        nn.Flatten(),
        nn.Linear(128, 5),
    ).eval()


def images() -> Tensor:
    return torch.randn(48, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def run(given: Tensor | Sequence[Tensor]) -> tuple[Plan, nn.Module]:
    """Convert; the share of the correction is left out, as it depends on which images are in which half."""
    model = network()
    statistics = calibrate(model, given)
    chosen = plan(model, statistics, budget=Budget(macs=0.4))
    return chosen, apply(model, chosen, statistics, share=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    chosen, converted = run(images().split([16, 32])[state.process_index])
    chosen.save(f"{sys.argv[1]}/plan{state.process_index}.json")
    torch.save(converted.state_dict(), f"{sys.argv[1]}/{state.process_index}.pth")
    torch.distributed.destroy_process_group()
