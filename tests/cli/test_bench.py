"""``separable bench``: one JSON document, a table, a folder with its page; wrong options are lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from torch_separable.runtime import available

needs_kernels = pytest.mark.skipif(not available(), reason="this installation has no kernel library")
QUICK = ("--input", "1,16,16", "--threads", "1", "--batch", "1", "--rounds", "1", "--peers", "eager")


@needs_kernels
def test_json_is_one_document(separable: Callable[..., Any]) -> None:
    outcome = separable("bench", "networks_for_cli:small", *QUICK, "--weights", "small.safetensors", "--json")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert document["kind"] == "bench"
    (case,) = document["bench"]["cases"]
    assert {timing["engine"] for timing in case["timings"]} == {"separable", "eager"}
    assert case["ratio"]["float32"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--input", "3,32"), "--input: give the shape of one image, as 3,224,224"),
        ((), "--input: give the shape of one image, as 3,224,224"),
        (("--input", "3,32,32", "--peers", "tvm"), "no engine is called tvm"),
        (("--input", "3,32,32", "--threads", "0"), "--threads 0: expected whole numbers"),
    ],
)
def test_wrong_options_are_one_line(separable: Callable[..., Any], arguments: tuple[str, ...], message: str) -> None:
    outcome = separable("bench", "resnet20", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1
