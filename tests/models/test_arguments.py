"""Every network by its name: it runs and learns, and wrong arguments are refused by name, value and rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torch_separable.errors import SeparableValueError
from torch_separable.models import NETWORKS, CifarResNet, EfficientNetLite, ImageNetResNet, MobileNetV1, MobileNetV2

MOBILENETS = ("mobilenet_v1", "conv_mobilenet", "mobilenet_v2")


@pytest.mark.parametrize("name", NETWORKS)
def test_named_network_gives_logits_and_a_gradient_to_every_parameter(name: str) -> None:
    narrow = {"width_multiplier": 0.25} if name in MOBILENETS else {}
    network = NETWORKS[name](num_classes=7, in_channels=2, **narrow)
    logits = network(torch.randn(2, 2, 32, 32))
    assert logits.shape == (2, 7)
    nn.functional.cross_entropy(logits, torch.tensor([0, 6])).backward()
    assert [key for key, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "10", None], ids=repr)
@pytest.mark.parametrize(
    ("name", "argument"),
    [
        *[(name, argument) for name in NETWORKS for argument in ("num_classes", "in_channels")],
        *[(name, "resolution") for name in MOBILENETS],
    ],
)
def test_numbers_are_whole_and_positive(name: str, argument: str, value: object) -> None:
    with pytest.raises(SeparableValueError) as caught:
        NETWORKS[name](**{argument: value})
    assert str(caught.value) == f"{argument}={value!r}: must be a whole number, at least 1"


@pytest.mark.parametrize("value", [0, -0.5, float("nan"), float("inf"), True, "1.0", None], ids=repr)
@pytest.mark.parametrize("name", MOBILENETS)
def test_width_multiplier_is_a_positive_number(name: str, value: object) -> None:
    with pytest.raises(SeparableValueError) as caught:
        NETWORKS[name](width_multiplier=value)
    assert str(caught.value) == f"width_multiplier={value!r}: must be a number above 0"


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        (MobileNetV1, {"shallow": 1}, "shallow=1: must be True or False"),
        (MobileNetV1, {"separable": None}, "separable=None: must be True or False"),
        (CifarResNet, {"blocks": 0}, "blocks=0: must be a whole number, at least 1"),
        (CifarResNet, {"blocks": 2.5}, "blocks=2.5: must be a whole number, at least 1"),
        *[
            (MobileNetV2, {"dropout": value}, f"dropout={value!r}: must be a probability, from 0 to 1")
            for value in (-0.1, 1.5, float("nan"), True, "0.2", None)
        ],
        (EfficientNetLite, {"depth_multiplier": 0}, "depth_multiplier=0: must be a number above 0"),
        (
            ImageNetResNet,
            {"blocks": (2, 2), "bottleneck": False},
            "blocks=(2, 2): must be four whole numbers, one for each stage",
        ),
        (
            ImageNetResNet,
            {"blocks": (2, 2, 0, 2), "bottleneck": False},
            "blocks=0: must be a whole number, at least 1",
        ),
        (MobileNetV1, {"activation": "gelu"}, "activation='gelu': must be one of 'relu', 'relu6'"),
        *[
            (network, {"padding": "valid"}, "padding='valid': must be one of 'symmetric', 'same'")
            for network in (MobileNetV1, MobileNetV2, EfficientNetLite)
        ],
        *[
            (network, {"batch_norm_eps": value}, f"batch_norm_eps={value!r}: must be a number between 0 and 1")
            for network in (MobileNetV1, MobileNetV2, EfficientNetLite)
            for value in (0, 1, True, float("nan"), "1e-3")
        ],
    ],
)
def test_other_arguments_follow_their_rules(network: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SeparableValueError) as caught:
        network(**arguments)
    assert str(caught.value).startswith(message)
