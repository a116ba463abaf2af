"""Weights under another package's names on the command line: recognised, and said to be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torch_separable._network.weights_file import save_weights
from torch_separable.importing import LAYOUTS
from torch_separable.models import mobilenet_v1

ARGUMENTS = ("--model-arg", "width_multiplier=0.25", "--model-arg", "num_classes=5")


@pytest.fixture(scope="module")
def renamed(place: Path) -> str:
    network = mobilenet_v1(0.25, num_classes=5)
    names = LAYOUTS["timm mobilenetv1"].names(network)
    state = {
        f"{names[module]}.{leaf}": tensor
        for (module, _, leaf), tensor in ((key.rpartition("."), t) for key, t in network.state_dict().items())
    }
    save_weights(state, place / "timm.safetensors")
    return "timm.safetensors"


def test_names_of_another_package_are_recognised(separable: Callable[..., Any], renamed: str) -> None:
    command = ("summary", "mobilenet_v1", "--weights", renamed, "--input", "3,32,32", *ARGUMENTS)
    done = separable(*command, "--model-arg", "activation=relu6", "--json")
    assert done.code == 0, done.err
    assert done.err == "separable: timm.safetensors uses the names of timm mobilenetv1\n"
    assert json.loads(done.out)


def test_network_of_another_convention_is_refused_with_the_arguments_to_give(
    separable: Callable[..., Any], renamed: str
) -> None:
    done = separable("summary", "mobilenet_v1", "--weights", renamed, "--input", "3,32,32", *ARGUMENTS)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "(--model-arg activation=relu6)" in done.err
