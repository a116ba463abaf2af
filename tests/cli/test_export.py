"""``separable export``: from a folder written by convert to a file for another runtime."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_separable import load
from torch_separable.data import load_data

pytest.importorskip("onnx")
SMALL = "networks_for_cli:small"


def test_onnx_is_written_into_the_folder_with_its_size_and_parity(separable: Callable[..., Any], place: Path) -> None:
    outcome = separable(*shlex.split(f"export converted --model {SMALL} --data digits --images 16"))
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    size = (place / "converted" / "model.onnx").stat().st_size
    assert "onnx, opset 18" in outcome.out
    assert "Nx1x32x32" in outcome.out
    assert f"{size:,} bytes" in outcome.out
    assert "ONNX Runtime" in outcome.out
    assert "(16 images)" in " ".join(outcome.out.split())
    assert max(len(line) for line in outcome.out.splitlines()) <= 80


def test_json_says_what_was_written(separable: Callable[..., Any], place: Path) -> None:
    command = f"export converted --model {SMALL} --to pt2 -o 'Ünï code/net work.pt2' --batch 4 --input 1,32,32 --json"
    outcome = separable(*shlex.split(command))
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    path = place / "Ünï code" / "net work.pt2"
    assert (document["format"], document["bytes"], document["batch"]) == ("pt2", path.stat().st_size, 4)
    assert document["parity"]["torch.export"] < 1e-4
    assert document["operators"]["aten.conv2d.default"] == 4
    images = load_data("digits", "test").sample(4)
    expected = load(place / "converted", allow=SMALL)(images)
    torch.testing.assert_close(torch.export.load(path).module()(images), expected, rtol=0, atol=1e-4)


def test_distilled_weights_are_exported_where_they_are_given(separable: Callable[..., Any], place: Path) -> None:
    distill = f"distill converted --model {SMALL} --teacher small.safetensors --data digits --epochs 1 -o to-export"
    assert separable(*shlex.split(distill)).code == 0
    sizes = []
    for folder in ("to-export", "converted --weights to-export/model.safetensors"):
        outcome = separable(*shlex.split(f"export {folder} --model {SMALL} --to pt2 -o a.pt2 --json"))
        assert outcome.code == 0, outcome.err
        sizes.append(torch.export.load(place / "a.pt2").module()(torch.ones(2, 1, 32, 32)))
    assert torch.equal(*sizes)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("export converted", "which would have to be imported: if you trust it, give --model networks_for_cli:small"),
        ("export gone", "gone is not a converted network"),
        (f"export converted --model {SMALL} --to tflite", "--to tflite: must be one of onnx, pt2, executorch"),
        (f"export converted --model {SMALL} --input 1,32,x", "--input 1,32,x"),
        (f"export converted --model {SMALL} --input 3,32,32", "does not take images of shape (2, 3, 32, 32)"),
        (f"export converted --model {SMALL} --opset 7", "must be one of 18 to 23"),
        (f"export converted --model {SMALL} --to pt2 --opset 18", "opset=18: "),
        (f"export converted --model {SMALL} --batch 0", "batch=0: must be a whole number, at least 1"),
        (f"export converted --model {SMALL} --data npz:coloured.npz", "3 channels"),
        (f"export converted --model {SMALL} -o .", "is a folder: name a file, such as model.onnx"),
        (f"export converted --model {SMALL} -o small.pth/a.onnx", "cannot write into small.pth: "),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    separable: Callable[..., Any], place: Path, command: str, message: str
) -> None:
    (place / "converted" / "model.onnx").unlink(missing_ok=True)
    outcome = separable(*shlex.split(command))
    assert outcome.code == 2
    assert outcome.out == ""
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (place / "converted" / "model.onnx").exists()


def test_exporter_says_nothing_of_its_own(place: Path) -> None:
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch_separable",
            "export",
            "converted",
            "--model",
            SMALL,
            "-o",
            "quiet.onnx",
            "--json",
        ],
        cwd=place,
        capture_output=True,
        check=True,
    )
    assert ended.stderr == b""
    assert json.loads(ended.stdout)["path"] == "quiet.onnx"
