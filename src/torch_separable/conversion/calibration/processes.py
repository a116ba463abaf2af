"""Sums over the processes of ``torch.distributed``, so that all of them make the same plan and the same fits."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def sum_over_processes(*sums: Tensor) -> tuple[Tensor, ...]:
    """Sum tensors over the processes of ``torch.distributed``, in place; without several processes, return them."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for tensor in sums:
            dist.all_reduce(tensor)
    return sums
