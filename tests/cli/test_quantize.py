"""``separable quantize``: from a network or a folder to a quantized folder that the other commands take."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_separable import load
from torch_separable.quantization import QuantizedNetwork
from torch_separable.runtime import available

SMALL = "networks_for_cli:small"


@pytest.fixture(scope="module")
def made(separable: Callable[..., Any], place: Path) -> Any:
    command = f"quantize converted --model {SMALL} --data digits --images 64 --evaluate test -o quantized --json"
    outcome = separable(*shlex.split(command))
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_the_answer_compares_both_precisions(made: Any) -> None:
    assert made["layers"][0]["name"] == "0.conv_dw"
    networks = made["precisions"]["networks"]
    assert [network["name"] for network in networks] == ["float32", "int8"]
    assert all(0 <= network["accuracy"] <= 1 and network["count"] > 100 for network in networks)
    assert networks[0]["bytes"] > networks[1]["bytes"]
    assert (made["precisions"]["int8"] is not None) == available()
    assert made["precisions"]["seen_by_teacher"] is False


def test_the_folder_loads_and_its_page_has_the_rows(made: Any, place: Path) -> None:
    network = load(place / made["output"])
    assert isinstance(network, QuantizedNetwork)
    assert network.input_shape == (1, 32, 32)
    page = (place / made["output"] / "index.html").read_text()
    assert "Missing on this page" not in page
    for row in ("float32", "int8"):
        assert f'<tr><th scope="row">{row}</th>' in page
    assert 'id="quantized-table"' in page


def test_the_other_commands_take_the_folder(made: Any, separable: Callable[..., Any], place: Path) -> None:
    measured = separable(*shlex.split(f"evaluate {made['output']} --data digits --json"))
    assert measured.code == 0, measured.err
    assert json.loads(measured.out)["accuracy"] == made["precisions"]["networks"][1]["accuracy"]
    exported = separable(*shlex.split(f"export {made['output']} --to pt2 --json"))
    assert exported.code == 0, exported.err
    assert "quantized_decomposed.quantize_per_tensor.default" in json.loads(exported.out)["operators"]
    shown = separable("report", made["output"])
    assert shown.code == 0, shown.err
    assert len(shown.out.splitlines()) == 1, "the page should lack nothing"


@pytest.mark.slow
@pytest.mark.skipif(not available(), reason="int8 engines need the kernel library")
def test_bench_times_the_folder_in_int8(made: Any, separable: Callable[..., Any]) -> None:
    outcome = separable(
        *shlex.split(f"bench {made['output']} --peers onnxruntime_int8 --threads 1 --batch 1 --rounds 1 --json")
    )
    assert outcome.code == 0, outcome.err
    (case,) = json.loads(outcome.out)["bench"]["cases"]
    assert {timing["engine"] for timing in case["timings"]} == {"separable_int8", "onnxruntime_int8"}
    assert case["ratio"]["int8"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (f"{SMALL} --data digits -o quantized", "quantized already contains a network"),
        (f"{SMALL} --data digits --exclude nowhere -o new", "'nowhere', which is no layer"),
        (f"{SMALL} --data digits --images 7 -o new", "--images"),
        (f"{SMALL} --data npz:spoilt.npz -o new", "NaN"),
        (f"{SMALL} --model {SMALL} --data digits -o new", "is not a folder"),
        ("quantized --data digits -o new", "holds a quantized network, which cannot be converted or trained"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    made: Any, separable: Callable[..., Any], place: Path, arguments: str, said: str
) -> None:
    outcome = separable("quantize", *shlex.split(arguments))
    assert outcome.code == 2
    assert said in outcome.err
    assert not (place / "new" / "model.safetensors").exists()


def test_options_of_other_networks_are_refused(made: Any, separable: Callable[..., Any]) -> None:
    outcome = separable(*shlex.split(f"evaluate {made['output']} --data digits --model {SMALL}"))
    assert outcome.code == 2
    assert "--model is given, but quantized holds a quantized network" in outcome.err


def test_too_few_images_are_refused(separable: Callable[..., Any], place: Path) -> None:
    import numpy as np

    np.savez(place / "few.npz", images=torch.rand(5, 32, 32).numpy())
    outcome = separable("quantize", SMALL, "--data", "npz:few.npz", "-o", "new")
    assert outcome.code == 2
    assert "5 calibration images: at least 8 are needed" in outcome.err
