"""The optimizer, the learning rate schedule, and the exponential moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from torch_separable.distillation.config import DistillConfig
from torch_separable.errors import SeparableError

_MOMENTUM = 0.9


def learning_rate_share(step: int, steps: int, warmup: float) -> float:
    """Return the learning rate at ``step`` relative to its peak: linear warmup, then cosine decay to 0.

    Args:
        step: number of completed steps.
        steps: number of steps of the whole run.
        warmup: share of the steps that warm up, 0..1.

    Example:
        >>> [round(learning_rate_share(step, 10, warmup=0.2), 3) for step in range(11)]
        [0.333, 0.667, 1.0, 0.962, 0.854, 0.691, 0.5, 0.309, 0.146, 0.038, 0.0]
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def make_optimizer(model: nn.Module, config: DistillConfig) -> Optimizer:
    """Return the optimizer over all parameters that require gradients; biases and norms (1-d) have no weight decay.

    Raises:
        SeparableError: no parameter requires a gradient.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise SeparableError(
            f"no parameter of the student ({type(model).__name__}) requires a gradient: nothing to train"
        )
    lr = config.learning_rate
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay, "initial_lr": lr},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, "initial_lr": lr},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return SGD(groups, lr=lr, momentum=_MOMENTUM, nesterov=True)
    return AdamW(groups, lr=lr, fused=True)


def make_scheduler(optimizer: Optimizer, config: DistillConfig, steps: int, done: int = 0) -> LambdaLR:
    """Return the schedule for a run of ``steps`` steps that resumes after ``done`` of them."""
    return LambdaLR(optimizer, lambda step: learning_rate_share(step, steps, config.warmup), last_epoch=done - 1)


def make_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of weights and buffers.

    After t updates the decay is min(decay, (1 + t) / (10 + t)): it starts low, so that the initial weights do not
    dominate the average of a short run.
    """

    def average(averaged: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
        done = int(updates)
        update = get_ema_multi_avg_fn(min(decay, (1 + done) / (10 + done)))
        update(averaged, current, done)

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)
