from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torch_separable.distillation import DistillConfig
from torch_separable.distillation.optimizer import learning_rate_share, make_average, make_optimizer, make_scheduler
from torch_separable.errors import SeparableError


@given(steps=st.integers(1, 300), warmup=st.floats(0, 0.99))
def test_learning_rate_rises_to_one_then_falls_to_zero(steps: int, warmup: float) -> None:
    shares = [learning_rate_share(step, steps, warmup) for step in range(steps + 1)]
    top = shares.index(max(shares))
    assert top == round(warmup * steps)
    assert all(a < b for a, b in itertools.pairwise(shares[: top + 1]))
    assert all(a > b for a, b in itertools.pairwise(shares[top:]))
    assert all(share > 0 for share in shares[:-1])
    if top < steps:
        assert max(shares) == 1
        assert shares[-1] == pytest.approx(0, abs=1e-12)


def test_learning_rate_is_half_a_cosine_without_warmup() -> None:
    assert learning_rate_share(25, 100, 0) == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 4))


@pytest.mark.parametrize("done", [0, 3, 9])
def test_scheduler_resumes(done: int) -> None:
    config = DistillConfig(learning_rate=0.1, warmup=0.2)
    optimizer = make_optimizer(nn.Linear(2, 2), config)
    scheduler = make_scheduler(optimizer, config, 10, done)
    for step in range(done, 10):
        expected = 0.1 * learning_rate_share(step, 10, 0.2)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected] * 2)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_biases_and_norms_are_not_decayed(kind: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = make_optimizer(model, DistillConfig(optimizer=kind, weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in model.named_parameters()} == {
        "0.weight": 0.3,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
    }


def test_parameters_without_gradient_are_not_optimized() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert [len(g["params"]) for g in make_optimizer(model, DistillConfig()).param_groups] == [1]
    with pytest.raises(SeparableError, match=r"no parameter of the student .Linear. requires a gradient"):
        make_optimizer(model.requires_grad_(False), DistillConfig())


def test_moving_average_follows_its_recurrence() -> None:
    model = nn.BatchNorm1d(1)
    average, expected = make_average(model, 0.5), 0.0
    for update in range(12):
        with torch.no_grad():
            model.weight.fill_(update**2)
            model.running_mean.fill_(update**2)
        decay = 0.0 if update == 0 else min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * update**2
        average.update_parameters(model)
        assert float(average.module.weight.detach()) == pytest.approx(expected, rel=1e-6)
        assert float(average.module.running_mean) == pytest.approx(expected, rel=1e-6)
