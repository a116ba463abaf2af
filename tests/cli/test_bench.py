"""``separable bench``: one JSON document, a table, a folder with its page; wrong options are lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
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


@needs_kernels
@pytest.mark.slow
def test_folder_of_an_own_network_is_timed_beside_the_dense_one(separable: Callable[..., Any]) -> None:
    arguments = ("bench", "converted", *QUICK[2:], "--json")
    assert "give --model networks_for_cli:small" in separable(*arguments).err
    outcome = separable(*arguments, "--model", "networks_for_cli:small")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["bench"]["cases"]
    outcome = separable("bench", "resnet20", *QUICK, "--model", "networks_for_cli:small")
    assert "resnet20 is not a folder" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--input", "3,32"), "--input 3,32: has 2 numbers"),
        ((), "--input is missing: give the shape of one image, as 3,224,224"),
        (("--input", "3,32,32", "--peers", "tvm"), "engine 'tvm' is unknown"),
        (("--input", "3,32,32", "--threads", "0"), "--threads 0"),
        (("--input", "5,8,8"), "CifarResNet"),
        (("--input", "3,32,32", "--dense-arg", "a=1"), "--dense-arg a=1 needs --dense"),
    ],
)
def test_wrong_options_are_one_line(separable: Callable[..., Any], arguments: tuple[str, ...], message: str) -> None:
    outcome = separable("bench", "resnet20", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1


@needs_kernels
def test_results_are_written_for_the_page(separable: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("altair", reason="altair is not installed: pip install '.[report]'")
    outcome = separable("bench", "networks_for_cli:small", *QUICK, "-o", tmp_path / "run", "--quiet")
    assert outcome.code == 0, outcome.err
    assert f"page: {tmp_path / 'run' / 'index.html'}" in outcome.out
    assert "is missing" not in outcome.out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["operations"]["nodes"][1]["kind"] == "dense"
    page = (tmp_path / "run" / "index.html").read_text()
    assert "Inference engines compared" in page
    assert 'id="roof"' in page
    assert "separable bench networks_for_cli:small" in page


@needs_kernels
def test_tune_keeps_what_it_finds(
    separable: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_SEPARABLE_CACHE", str(tmp_path))
    arguments = ("tune", "networks_for_cli:small", "--input", "1,16,16", "--threads", "1")
    first = json.loads(separable(*arguments, "--json").out)
    assert first["file"] == str(tmp_path / "tiles.json")
    assert len(first["runs"][0]["found"]) == 3  # two convolutions and the linear layer
    second = separable(*arguments)
    assert second.code == 0, second.err
    assert "0 shapes measured" in second.out
    assert f"stored in {tmp_path / 'tiles.json'}" in second.out
    narrow = json.loads(separable(*arguments, "--dtype", "bfloat16", "--json").out)
    assert len(narrow["runs"][0]["found"]) == 3  # tiles of one precision say nothing of the other's
    wrong = separable(*arguments, "--dtype", "float16")
    assert (wrong.code, wrong.err.strip()) == (2, "separable: error: --dtype float16: must be float32 or bfloat16")
    folder = separable("tune", "converted", "--model", "networks_for_cli:small", "--threads", "1", "--json")
    assert folder.code == 0, folder.err
    assert json.loads(folder.out)["runs"][0]["found"]  # its layers, at the shape that it knows
    nothing = separable("tune", "networks_for_cli:small")
    assert (nothing.code, nothing.err.strip()) == (
        2, "separable: error: --input is missing: give the shape of one image, as 3,224,224"
    )  # fmt: skip
