"""What a run leaves is enough to build its network again, and to say where its figures come from."""

from __future__ import annotations

import json
import math
import os
import shlex
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torch_separable.artifacts import run_directory
from torch_separable.conversion import LayerPlan, Plan, apply, calibrate, plan
from torch_separable.errors import SeparableError

NETWORK = run_directory.Network("some.package:function", {"width": 4})


def dense() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3))


def written(folder: Path, method: Any = "least_squares") -> nn.Module:
    model, images = dense(), torch.randn(16, 3, 8, 8)
    statistics = calibrate(model, images)
    chosen = plan(model, statistics, rank=2, method=method)
    converted = apply(model, chosen, statistics)
    run_directory.write_run(
        folder, converted, chosen, NETWORK, {"seed": 3}, {"kind": "test"}, command=run_directory.command_line()
    )
    return converted


@pytest.mark.parametrize("method", ["least_squares", "svd"])
def test_converted_network_is_rebuilt_from_its_dense_network(tmp_path: Path, method: str) -> None:
    converted = written(tmp_path / "run", method)
    again = run_directory.load_converted(tmp_path / "run", dense())
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(converted.eval()(images), again.eval()(images))
    assert not torch.equal(again(images), dense().eval()(images))
    assert run_directory.read_network(tmp_path / "run") == NETWORK


def test_run_records_command_settings_and_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["convert", "my net:f", "--model-arg", "a=$HOME;*"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/separable", *arguments])
    written(tmp_path)
    config = json.loads((tmp_path / run_directory.CONFIG).read_text())
    assert shlex.split(config["command"]) == ["separable", *arguments]
    assert (config["model"], config["arguments"], config["settings"]) == (NETWORK.model, {"width": 4}, {"seed": 3})
    assert config["machine"] == run_directory.machine()
    assert config["machine"]["torch"] == torch.__version__
    assert config["machine"]["threads"] == torch.get_num_threads()
    assert json.loads((tmp_path / run_directory.RESULTS).read_text()) == {"kind": "test"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "plan.json",
        "results.json",
    ]


def test_incomplete_run_is_not_written(tmp_path: Path) -> None:
    empty = Plan("svd", ())
    with pytest.raises(ValueError, match="JSON"):
        run_directory.write_run(tmp_path, dense(), empty, NETWORK, {}, {"accuracy": math.nan})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"has no config\.json"),
        ("{", "is not JSON"),
        ("[]", "does not name a model"),
        ("{}", "does not name a model"),
        ('{"model": 3}', "does not name a model"),
        ('{"model": "a:b", "arguments": [1]}', '"arguments" must be a JSON object'),
    ],
)
def test_invalid_config_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / run_directory.CONFIG).write_text(content)
    with pytest.raises(SeparableError, match=message):
        run_directory.read_network(tmp_path)


def test_missing_files_and_files_of_another_network_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(SeparableError, match="the plan is for another network: its layer 0"):
        run_directory.load_converted(tmp_path, nn.Sequential(nn.Conv2d(3, 8, 3)))
    Plan("svd", (LayerPlan("0", (6, 3, 3, 3), "pointwise_first", 1),)).save(tmp_path / run_directory.PLAN)
    with pytest.raises(SeparableError, match="are not the weights of this network"):
        run_directory.load_converted(tmp_path, dense())
    (tmp_path / run_directory.WEIGHTS).unlink()
    with pytest.raises(SeparableError, match=r"no weights at .*model\.safetensors"):
        run_directory.load_converted(tmp_path, dense())
    (tmp_path / run_directory.PLAN).unlink()
    with pytest.raises(SeparableError, match=r"cannot read a plan from .*plan\.json"):
        run_directory.load_converted(tmp_path, dense())


def test_writable_folder_is_accepted_and_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path, tmp_path / "a" / "b", Path("a/b"), Path("a"), Path()):
        run_directory.check_place(place)
    assert not list(tmp_path.iterdir())


def test_path_through_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(SeparableError, match=f"folder {place}: {tmp_path / 'file'} is not a"):
            run_directory.check_place(place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
def test_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(SeparableError, match="is read-only"):
        run_directory.check_place(tmp_path / "run")
