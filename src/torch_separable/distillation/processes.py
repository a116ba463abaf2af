"""The door to Hugging Face Accelerate: which device, and how many processes."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torch_separable._system.extras import optional
from torch_separable.errors import SeparableError


def start_accelerator() -> Any:
    """An ``accelerate.Accelerator`` for one device, or for data parallelism; other launches are refused."""
    accelerate = optional("accelerate", "train")
    accelerator = accelerate.Accelerator()
    if accelerator.mixed_precision != "no":
        raise SeparableError(
            f"accelerate was started with mixed_precision={accelerator.mixed_precision}: start it with "
            "--mixed_precision no, and ask distill for mixed_precision='bf16'"
        )
    if accelerator.distributed_type.value not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise SeparableError(
            f"accelerate was started as {accelerator.distributed_type.value}: distill runs on one device, or on many "
            "by data parallelism (MULTI_CPU, MULTI_GPU)"
        )
    return accelerator


def shared(accelerator: Any, model: nn.Module) -> nn.Module:
    """The model as several processes train it: each on its share, the gradients averaged."""
    prepared: nn.Module = accelerator.prepare_model(model)
    if isinstance(prepared, DistributedDataParallel):
        # Buffers are averaged after each step (`_average_buffers`) instead of copied from the first process before it.
        prepared.broadcast_buffers = False
    return prepared
