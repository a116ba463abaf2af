from __future__ import annotations

import json
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from torch_separable._network.weights_file import read_weights, save_weights
from torch_separable.distillation import DistillConfig
from torch_separable.distillation.checkpoint import Checkpoint, describe_network, optimizer_state, restore_optimizer
from torch_separable.distillation.optimizer import make_optimizer
from torch_separable.distillation.training_log import read_records
from torch_separable.errors import SeparableError

WORKER = Path(__file__).with_name("distillation_worker.py")
run: Callable[..., nn.Module] = runpy.run_path(str(WORKER))["run"]
IDENTITY = {"settings": {"epochs": 3, "augment": ["crop"]}, "student": {"type": "Net", "norm": 12.5}}


def saved(folder: Path) -> Path:
    path = folder / "checkpoint.safetensors"
    tensors = {"student": {"a/b.weight": torch.randn(3)}, "optimizer": {"0/step": torch.tensor(7.0)}}
    Checkpoint(IDENTITY, {"step": 7, "loss": 0.1}, tensors).save(path)
    return path


def test_checkpoint_round_trips(tmp_path: Path) -> None:
    loaded = Checkpoint.load(saved(tmp_path))
    assert loaded.identity == IDENTITY
    assert loaded.numbers == {"step": 7, "loss": 0.1}
    assert loaded.tensors["student"]["a/b.weight"].shape == (3,)
    assert float(loaded.tensors["optimizer"]["0/step"]) == 7


def test_damaged_and_foreign_files_are_distinguished(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:20], whole[:-3], b"\xff" * 8 + whole[8:]):
        path.write_bytes(damaged)
        with pytest.raises(SeparableError, match=r"checkpoint\.safetensors is not a complete checkpoint"):
            Checkpoint.load(path)
    save_weights(nn.Linear(2, 2), path)
    with pytest.raises(SeparableError, match="is not a distillation checkpoint"):
        Checkpoint.load(path)
    for header, message in (("{", "damaged header"), ("[]", "damaged header"), ('{"schema": 1}', "damaged header")):
        save_file({"student/a": torch.zeros(1)}, path, metadata={"torch_separable_distillation": header})
        with pytest.raises(SeparableError, match=message):
            Checkpoint.load(path)
    newer = json.dumps({"schema": 99, "identity": {}, "numbers": {}})
    save_file({"student/a": torch.zeros(1)}, path, metadata={"torch_separable_distillation": newer})
    with pytest.raises(SeparableError, match=r"schema 99.* reads 1"):
        Checkpoint.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"epochs": 4, "augment": ["crop"]}}, r"settings\.epochs is 3 there and 4 here"),
        ({"settings": {"epochs": 3, "augment": []}}, r"settings\.augment is \['crop'\] there and \[\] here"),
        ({"student": {"type": "Other", "norm": 12.5}}, r"student\.type is 'Net' there and 'Other' here"),
        ({"student": {"type": "Net", "norm": 12.6}}, r"student\.norm"),
        ({"teacher": {"type": "Net"}}, r"teacher\.type is None there"),
    ],
)
def test_checkpoint_of_another_run_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = saved(tmp_path)
    checkpoint = Checkpoint.load(path)
    checkpoint.check(IDENTITY, path)
    checkpoint.check({**IDENTITY, "student": {"type": "Net", "norm": 12.5 * (1 + 1e-6)}}, path)
    with pytest.raises(SeparableError, match=message):
        checkpoint.check({**IDENTITY, **changes}, path)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_restored_optimizer_takes_the_same_steps(kind: str) -> None:
    def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, times: int, start: int) -> None:
        for step in range(start, start + times):
            optimizer.zero_grad()
            images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
            model(images.to(memory_format=torch.channels_last)).square().sum().backward()
            optimizer.step()

    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(5)
        model = nn.Conv2d(3, 6, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model, make_optimizer(model, DistillConfig(optimizer=kind))  # type: ignore[arg-type]

    model, optimizer = made()
    stepped(model, optimizer, 5, start=0)
    resumed, its_optimizer = made()
    resumed.load_state_dict(model.state_dict())
    restore_optimizer(its_optimizer, optimizer_state(optimizer))
    stepped(model, optimizer, 5, start=5)
    stepped(resumed, its_optimizer, 5, start=5)
    assert torch.equal(model.weight, resumed.weight)
    assert torch.equal(model.bias, resumed.bias)


def test_networks_are_identified_by_type_size_and_weights() -> None:
    model = nn.BatchNorm2d(3)
    described = describe_network(model)
    assert described == {"type": "BatchNorm2d", "tensors": 5, "values": 13, "norm": pytest.approx(6**0.5)}
    nn.init.constant_(model.weight, 2)
    assert describe_network(model)["norm"] > described["norm"]


def test_run_interrupted_by_ctrl_c_resumes_to_the_same_weights(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "epochs": 3,
        "batch_size": 16,
        "checkpoint_every": 4,
        "ema_decay": 0.9,
        "progress": False,
    }
    whole = run(str(tmp_path / "whole"), **settings)

    def stop(record: Any) -> None:
        if record.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        run(str(tmp_path / "parts"), on_epoch=stop, **settings)
    kept = f"{tmp_path / 'parts'} has the checkpoint of step 8; repeat the call to resume from it"
    assert caught.value.__notes__ == [f"stopped at step 12 of 18; {kept}"]
    (tmp_path / "parts" / ".checkpoint.safetensors.killed00.part").write_text("half")
    epochs: list[Any] = []
    resumed = run(str(tmp_path / "parts"), on_epoch=epochs.append, **settings)
    assert [record.epoch for record in epochs] == [2, 3]
    assert_equal_weights(whole, resumed)
    assert_equal_logs(tmp_path / "whole", tmp_path / "parts")
    assert not list((tmp_path / "parts").glob(".*"))

    again = run(
        str(tmp_path / "parts"), on_epoch=lambda record: pytest.fail("a finished run trains no more"), **settings
    )
    assert_equal_weights(whole, again)


def test_checkpoint_is_used_only_by_its_own_run_and_only_if_resume_is_given(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 32, "progress": False}
    run(str(tmp_path), **settings)
    with pytest.raises(
        SeparableError, match=r"settings\.temperature is 2\.0 there and 4\.0 here; give another output_dir"
    ):
        run(str(tmp_path), temperature=4.0, **settings)
    with pytest.raises(SeparableError, match=r"validation\.name is 'noise' there and None here"):
        run(str(tmp_path), validated=False, **settings)
    epochs: list[Any] = []
    run(str(tmp_path), temperature=4.0, resume=False, on_epoch=epochs.append, **settings)
    assert [record.epoch for record in epochs] == [0, 1]
    assert json.loads((tmp_path / "settings.json").read_text())["settings"]["temperature"] == 4


@pytest.mark.slow
def test_run_killed_repeatedly_ends_in_the_same_weights(tmp_path: Path) -> None:
    settings = {"epochs": 8, "batch_size": 8, "checkpoint_every": 1, "ema_decay": 0.95, "progress": False}
    whole = run(str(tmp_path / "whole"), **settings)

    folder, random, kills = tmp_path / "killed", np.random.default_rng(0), 0
    command = [sys.executable, str(WORKER), str(folder), json.dumps(settings)]
    for done in (3, 20, 41, 70):
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        while process.poll() is None and len(read_records(folder / "log.jsonl")) < done:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert not errors, errors.decode()
    subprocess.run(command, check=True, capture_output=True)

    assert kills == 4
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, read_weights(folder / "best.safetensors")[name]), name
    last = [read_weights(path / "checkpoint.safetensors") for path in (tmp_path / "whole", folder)]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])
    assert_equal_logs(tmp_path / "whole", folder)


def assert_equal_weights(one: nn.Module, other: nn.Module) -> None:
    others = other.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, others[name]), name


def assert_equal_logs(one: Path, other: Path) -> None:
    logs = [
        [
            {key: value for key, value in record.items() if key != "seconds"}
            for record in read_records(folder / "log.jsonl")
        ]
        for folder in (one, other)
    ]
    assert logs[0] == logs[1]
