"""What only a process of its own shows: exit codes, signals, closed pipes, the terminal's alphabet."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_separable._network.weights_file import read_weights
from torch_separable.distillation.training_log import read_records


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch_separable", *arguments]


def run(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(*arguments), cwd=folder, env={**os.environ, **environment}, capture_output=True, check=False
    )


def test_bad_input_ends_the_process_with_2_and_one_line(place: Path) -> None:
    ended = run("summary", "networks_for_cli:small", "--input", "1,8,8", "--weights", "code.pth", folder=place)
    assert ended.returncode == 2
    assert ended.stdout == b""
    assert ended.stderr.startswith(b"separable: error: code.pth holds more than weights")
    assert ended.stderr.count(b"\n") == 1


def test_installed_script_is_the_same_command(place: Path) -> None:
    script = shutil.which("separable", path=str(Path(sys.executable).parent))
    assert script is not None
    ended = subprocess.run(
        [script, "summary", "networks_for_cli:Noisy", "--input", "1,32,32", "--json"],
        cwd=place,
        capture_output=True,
        check=True,
    )
    assert json.loads(ended.stdout)["network"] == "Noisy"
    assert ended.stderr.decode().splitlines() == ["noise while it is built", "noise while it runs"]


def test_closed_pipe_is_not_an_error(place: Path) -> None:
    with subprocess.Popen(
        command("summary", "resnet56", "--input", "3,32,32"), cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_characters_outside_the_encoding_are_replaced(place: Path) -> None:
    arguments = ["explain", "--in", "4", "--out", "8", "--input", "3,3"]
    ended = run(*arguments, folder=place, LC_ALL="C", LANG="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert ended.returncode == 0
    assert ended.stderr == b""
    assert ended.stdout.isascii()
    assert b"3?3?4?8 = 288 weights" in ended.stdout


def test_json_is_complete_in_an_ascii_terminal(place: Path) -> None:
    arguments = ["explain", "--in", "4", "--out", "8", "--input", "3,3", "--json"]
    ended = run(*arguments, folder=place, LC_ALL="C", LANG="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert ended.returncode == 0
    assert "k·k·C·M" in {step["symbols"] for step in json.loads(ended.stdout)["steps"]}


@pytest.mark.slow
def test_interrupted_distillation_resumes_with_the_same_command(place: Path, separable: Callable[..., Any]) -> None:
    distill = [
        *("distill", "converted", "--model", "networks_for_cli:small", "--teacher", "small.safetensors"),
        *("--data", "digits", "--epochs", "4", "--set", "checkpoint_every=5", "--set", "batch_size=32"),
    ]
    folder = place / "stopped"
    process = subprocess.Popen(
        command(*distill, "-o", "stopped"),
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - one thread
    )
    while process.poll() is None and len(read_records(folder / "log.jsonl")) < 12:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    said, kept = errors.splitlines()
    assert said == "separable: interrupted; no incomplete file was left"
    assert "stopped has the checkpoint of step" in kept
    assert kept.endswith("repeat the call to resume from it")
    assert not list(folder.glob(".*"))
    assert not (folder / "model.safetensors").exists()
    for path in folder.glob("*.safetensors"):
        read_weights(path)

    resumed = separable(*distill, "-o", "stopped", "--json")
    assert resumed.code == 0, resumed.err
    whole = separable(*distill, "-o", "unstopped", "--json")
    epochs = [[record["epoch"] for record in json.loads(outcome.out)["epochs"]] for outcome in (resumed, whole)]
    assert epochs[0] == epochs[1] == [0, 1, 2, 3, 4]
    weights, expected = (read_weights(place / name / "model.safetensors") for name in ("stopped", "unstopped"))
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


DISTILL = (
    "distill converted --model networks_for_cli:small --teacher small.safetensors --data digits --set batch_size=16"
).split()


@pytest.mark.slow
def test_epochs_are_printed_as_they_end_and_the_pipe_may_close(place: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    folder = place / "left"
    with subprocess.Popen(
        command(*DISTILL, "--epochs", "4", "-o", "left"),
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("epoch 0  validation")
        assert len(read_records(folder / "log.jsonl")) < 4 * 80, "told before the last epoch has ended"
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert read_records(folder / "log.jsonl")[-1]["epoch"] == 4
    assert (folder / "model.safetensors").is_file()
    assert (folder / "index.html").is_file()


@pytest.mark.slow
def test_first_of_two_processes_writes_and_prints_the_run(place: Path) -> None:
    launched = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *("-m", "torch_separable", *DISTILL, "--epochs", "1", "--set", "max_steps=4", "-o", "launched"),
        ],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert launched.returncode == 0, launched.stderr
    assert json.loads((place / "launched" / "settings.json").read_text())["processes"] == 2
    assert launched.stdout.count("epoch 0") == 1
    assert launched.stdout.count("written to launched") == 1
    assert launched.stdout.count("page: ") == 1
    assert not list((place / "launched").glob(".*"))


def test_interrupt_during_the_import_of_pytorch_ends_in_one_line(place: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "import torch_separable_cli, sys; print(flush=True); torch_separable_cli.main()"],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - one thread
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.2)  # of the second that the import takes at least
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors == "separable: interrupted before the command started\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_output_that_cannot_be_written_is_an_error(place: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            command("explain", "--in", "4", "--out", "8", "--input", "3,3"),
            cwd=place,
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert ended.returncode != 0
    assert b"No space left on device" in ended.stderr
    assert b"Traceback" not in ended.stderr
