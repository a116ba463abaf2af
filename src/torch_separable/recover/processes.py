"""The door to Hugging Face Accelerate: which device, and how many processes."""

from __future__ import annotations

from typing import Any

from torch_separable.errors import SeparableError
from torch_separable.extras import optional


def start_accelerator() -> Any:
    """An ``accelerate.Accelerator`` for one device, or for data parallelism; other launches are refused."""
    accelerate = optional("accelerate", "train")
    # Buffers are averaged after each step (`_average_buffers`) instead of copied from the first process before it.
    ddp = accelerate.DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = accelerate.Accelerator(kwargs_handlers=[ddp])
    if accelerator.mixed_precision != "no":
        raise SeparableError(
            f"accelerate was started with mixed_precision={accelerator.mixed_precision}: start it with "
            "--mixed_precision no, and ask recover for mixed_precision='bf16'"
        )
    if accelerator.distributed_type.value not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise SeparableError(
            f"accelerate was started as {accelerator.distributed_type.value}: recover runs on one device, or on many "
            "by data parallelism (MULTI_CPU, MULTI_GPU)"
        )
    return accelerator
