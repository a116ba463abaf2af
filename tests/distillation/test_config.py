from __future__ import annotations

import json
from typing import Any

import pytest

from torch_separable.distillation import DistillConfig
from torch_separable.errors import SeparableValueError


def test_settings_round_trip_through_json() -> None:
    config = DistillConfig(
        optimizer="sgd", features=("a", "b"), augment=(), max_steps=7, mixed_precision="bf16", seed=3
    )
    assert DistillConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_learning_rate_and_decay_follow_the_optimizer_unless_given() -> None:
    assert (DistillConfig().learning_rate, DistillConfig(optimizer="sgd").learning_rate) == (1e-3, 1e-3)
    assert DistillConfig(optimizer="sgd", frozen_norms=False).learning_rate == 0.05
    assert DistillConfig(optimizer="sgd", learning_rate=0.2, weight_decay=0).to_dict()["weight_decay"] == 0
    assert DistillConfig(learning_rate=0.2).learning_rate == 0.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs=0: must be a whole number of at least 1"),
        ({"epochs": 2.5}, r"epochs=2\.5"),
        ({"batch_size": True}, "batch_size=True"),
        ({"seed": -1}, "seed=-1: .* at least 0"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"checkpoint_every": 0}, "checkpoint_every=0"),
        ({"optimizer": "adam"}, "optimizer='adam': must be one of 'adamw', 'sgd'"),
        ({"mixed_precision": "fp16"}, "mixed_precision='fp16': must be one of None, 'bf16'"),
        ({"learning_rate": 0}, "learning_rate=0: must be a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"learning_rate": "fast"}, "learning_rate='fast'"),
        ({"weight_decay": -1.0}, r"weight_decay=-1\.0: must be a number at least 0"),
        ({"temperature": 0.0}, r"temperature=0\.0"),
        ({"warmup": 1.0}, r"warmup=1\.0: must be a number at least 0 and below 1"),
        ({"ema_decay": 1}, "ema_decay=1"),
        ({"augment": ("crop", "rotate")}, "augment='rotate': must be one of 'crop', 'flip'"),
        ({"augment": "crop"}, r"augment='crop': give a tuple of names, \('crop',\)"),
        ({"augment": ("crop", "crop")}, r"augment=\('crop', 'crop'\)"),
        ({"augment": None}, "augment=None: must be a tuple of names"),
        ({"augment": {"crop": 1}}, "augment={'crop': 1}: must be a tuple of names"),
        ({"features": 5}, "features=5: must be a tuple of names"),
        ({"features": (3,)}, r"features=\(3,\): must be a tuple of names"),
        ({"features": (), "feature_weight": 1}, r"features=\(\).* feature_weight is 1"),
        ({"logits_weight": 0}, "logits_weight, label_weight and feature_weight"),
        ({"batch_size": 4, "gradient_accumulation": 5}, "gradient_accumulation=5 .*batch_size=4"),
        ({"lr": 0.1}, "'lr'.*learning_rate"),
    ],
)
def test_invalid_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SeparableValueError, match=message):
        DistillConfig.from_dict(settings)
