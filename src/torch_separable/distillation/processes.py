"""Devices and processes, chosen by Hugging Face Accelerate."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torch_separable._system.extras import optional
from torch_separable.errors import SeparableError


def start_accelerator() -> Any:
    """Return an ``accelerate.Accelerator`` for one device or for data parallelism; raise for other launches."""
    accelerate = optional("accelerate", "train")
    accelerator = accelerate.Accelerator()
    if accelerator.mixed_precision != "no":
        raise SeparableError(
            f"accelerate was started with mixed_precision={accelerator.mixed_precision}: start it with "
            "--mixed_precision no, and give distill mixed_precision='bf16'"
        )
    if accelerator.distributed_type.value not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise SeparableError(
            f"accelerate was started as {accelerator.distributed_type.value}: distill supports one device and data "
            "parallelism (MULTI_CPU, MULTI_GPU)"
        )
    return accelerator


def shared(accelerator: Any, model: nn.Module) -> nn.Module:
    """Wrap the model for data parallelism, with averaged gradients, if there are several processes."""
    prepared: nn.Module = accelerator.prepare_model(model)
    if isinstance(prepared, DistributedDataParallel):
        # `_average_buffers` averages buffers after each step; broadcasting would overwrite them with the first
        # process's.
        prepared.broadcast_buffers = False
    return prepared
