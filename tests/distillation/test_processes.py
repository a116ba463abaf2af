from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torch_separable._network.weights_file import read_weights
from torch_separable.distillation.processes import start_accelerator
from torch_separable.distillation.training_log import read_records
from torch_separable.errors import SeparableError

WORKER = Path(__file__).with_name("distillation_worker.py")
run: Callable[..., nn.Module] = runpy.run_path(str(WORKER))["run"]


def launch(folder: Path, settings: dict[str, Any]) -> None:
    """Run the worker in two processes on the CPU, as a user would.

    ``--multi_gpu`` starts several processes without MPI; ACCELERATE_USE_CPU puts them on the CPU.
    """
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    ports = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [*launcher, *ports, str(WORKER), str(folder), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads((folder / "settings.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    settings = {
        "epochs": 3,
        "batch_size": 15,  # shares of 8 and 7 images
        "batch_norm": False,
        "augment": ["crop", "flip", "mixup"],
        "label_weight": 0.5,
        "ema_decay": 0.9,
        "gradient_accumulation": 2,
        "progress": False,
    }
    alone = run(str(tmp_path / "one"), **settings)
    launch(tmp_path / "two", settings)

    one, two = (read_records(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) == 3 * 6 + 4
    for ours, theirs in zip(one, two, strict=True):
        assert (ours["kind"], ours["step"]) == (theirs["kind"], theirs["step"])
        if ours["loss"] is not None:
            assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
            assert theirs["agreement"] == pytest.approx(ours["agreement"])
        if ours["kind"] == "epoch":
            assert theirs["validation"]["correct"] == ours["validation"]["correct"]
            assert theirs["validation"]["loss"] == pytest.approx(ours["validation"]["loss"], rel=1e-5)
    best = read_weights(tmp_path / "two" / "best.safetensors")
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(best[name], tensor, rtol=1e-4, atol=1e-6)

    resumed = run(str(tmp_path / "two"), **settings)
    for name, tensor in resumed.state_dict().items():
        assert torch.equal(best[name], tensor), "one process goes on from the checkpoint of two"


@pytest.mark.slow
def test_batch_norms_of_two_processes_keep_the_statistics_of_both(tmp_path: Path) -> None:
    settings = {
        "epochs": 1,
        "batch_size": 96,
        "augment": [],
        "learning_rate": 1e-9,
        "validated": False,
        "progress": False,
    }
    alone = run(str(tmp_path / "one"), **settings).state_dict()
    launch(tmp_path / "two", settings)
    shared = read_weights(tmp_path / "two" / "best.safetensors")
    torch.testing.assert_close(shared["1.running_mean"], alone["1.running_mean"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(shared["1.running_var"], alone["1.running_var"], rtol=1e-2, atol=0)
    assert not torch.allclose(alone["1.running_mean"], torch.zeros(6))


@pytest.mark.slow
def test_two_processes_train_on_features_only(tmp_path: Path) -> None:
    settings = {
        "epochs": 1,
        "batch_norm": False,
        "logits_weight": 0,
        "feature_weight": 1,
        "features": ["2"],
        "width": 6,
    }
    alone = run(str(tmp_path / "one"), progress=False, **settings).state_dict()
    launch(tmp_path / "two", {**settings, "progress": False})
    shared = read_weights(tmp_path / "two" / "best.safetensors")
    for name, tensor in alone.items():
        torch.testing.assert_close(shared[name], tensor, rtol=1e-4, atol=1e-6)


def test_unsupported_launches_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "mixed_precision", property(lambda self: "fp16"))
    with pytest.raises(SeparableError, match=r"mixed_precision=fp16.* --mixed_precision no"):
        start_accelerator()
