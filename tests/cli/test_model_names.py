"""Networks of timm and torchvision by their names."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torch_separable.cli.model_argument import expand_name


def test_names_become_the_functions_of_their_packages() -> None:
    assert expand_name("torchvision:resnet18", {}) == ("torchvision.models:get_model", {"name": "resnet18"})
    assert expand_name("timm:create_model", {"model_name": "a"}) == ("timm:create_model", {"model_name": "a"})
    assert expand_name("resnet20", {}) == ("resnet20", {})


@pytest.mark.slow
def test_timm_network_is_converted_and_evaluated_by_its_name(separable: Callable[..., Any], place: Path) -> None:
    pytest.importorskip("timm")
    name = "timm:resnet10t --model-arg in_chans=1 --model-arg num_classes=10"
    convert = f"convert {name} --data digits --images 16 --rank 1 --method svd -o from-timm --quiet"
    outcome = separable(*shlex.split(convert))
    assert outcome.code == 0, outcome.err
    config = json.loads((place / "from-timm" / "config.json").read_text())
    assert (config["model"], config["arguments"]["model_name"]) == ("timm:create_model", "resnet10t")
    again = separable(*shlex.split("evaluate from-timm --model timm:resnet10t --data digits --json"))
    assert json.loads(again.out)["count"] == 450
