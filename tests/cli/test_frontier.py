"""``separable frontier``, and ``separable convert --precision``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torch_separable.runtime import available

NETWORK = ("networks_for_cli:small", "--weights", "small.safetensors", "--data", "digits")


@pytest.mark.slow
@pytest.mark.skipif(not available(), reason="this installation has no kernel library: nothing can be timed")
def test_it_measures_and_writes(separable: Callable[..., Any], place: Path) -> None:
    done = separable(
        "frontier", *NETWORK, "--images", "64", "--evaluate", "test", "--evaluate-images", "50", "--peers", "none",
        "--budget", "macs=0.8", "--rounds", "1", "-o", "measured", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["quality"], found["images"]) == ("accuracy", 50)
    assert {point["form"] for point in found["points"]} == {"dense", "macs=0.8"}
    assert sorted(path.name for path in (place / "measured").iterdir())[:1] == ["frontier.html"]
    refused = separable("frontier", *NETWORK, "--peers", "tensorrt")
    assert refused.code == 2
    assert "tensorrt" in refused.err


def test_a_conversion_in_int8_is_written_with_its_plan(separable: Callable[..., Any], place: Path) -> None:
    given = ("--images", "64", "--budget", "macs=0.8", "--precision", "int8")
    done = separable("convert", *NETWORK, *given, "-o", "small-int8", "--quiet")
    assert done.code == 0, done.err
    assert "int8" in done.out
    plan = json.loads((place / "small-int8" / "plan.json").read_text(encoding="utf-8"))
    assert {layer["precision"] for layer in plan["layers"]} == {"int8"}
    refused = separable("convert", *NETWORK, "--budget", "macs=0.5", "--precision", "auto", "-o", "other")
    assert refused.code == 2
    assert "latency_ms" in refused.err
