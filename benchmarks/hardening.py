"""Kill commands at random moments: their files must be complete or absent, and the command must then finish.

    python benchmarks/hardening.py --moments 20        # half an hour on two busy cores
    python benchmarks/hardening.py convert --moments 5

Each of ``convert``, ``distill`` and ``export`` runs once undisturbed. Further runs are killed by SIGKILL at a time
drawn uniformly over the duration of the first run after its imports. After every kill the folder is read as a user
would read it. Then the same command runs to its end and must leave what the undisturbed run left: bit-identical
weights, and nothing half written. A failure is printed with its time, and the exit code is 1.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

import torch_separable as ts
from torch_separable._network.weights_file import read_weights, save_weights
from torch_separable.models import CifarResNet

# Imports take longer than the commands and write nothing, so the time starts after them.
_RUN = """
import sys
import torch_separable.cli.main, torch_separable.conversion, torch_separable.exporting, torch_separable.distillation
import accelerate, sklearn.datasets, onnxscript, onnxruntime
print("ready", file=sys.stderr, flush=True)
torch_separable.cli.main.main()
"""
_NETWORK = ("--model-arg", "blocks=1", "--model-arg", "in_channels=1")


@dataclass(frozen=True)
class Job:
    """A command, and a function that reads its results.

    Attributes:
        arguments: arguments of ``separable``; ``{out}`` stands for the output folder.
        again: arguments to add when the command has finished before.
        look: returns a digest of the folder's contents, ``None`` if there is no result yet, and raises if a file is
            incomplete.
    """

    arguments: tuple[str, ...]
    again: tuple[str, ...]
    look: Callable[[Path], str | None]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one kill: its time in seconds, whether the result existed by then, and the problem, if any."""

    moment: float
    found: bool
    problem: str | None


def digest(path: Path) -> str:
    """Return a digest of the tensors in a weights file."""
    sha = hashlib.sha256()
    for name, tensor in sorted(read_weights(path).items()):
        sha.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


def converted(folder: Path) -> str | None:
    """Return the digest of a converted network, which must load; `load` must refuse a folder without weights."""
    if not (folder / "model.safetensors").exists():
        with suppress(ts.SeparableError):
            ts.load(folder)
            raise AssertionError("a folder without weights was loaded")
        return None
    ts.load(folder)
    json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return digest(folder / "model.safetensors")


def distilled(folder: Path) -> str | None:
    """Check that every weights file is complete, and the network if it exists."""
    for name in ("checkpoint", "best"):
        if (folder / f"{name}.safetensors").exists():
            read_weights(folder / f"{name}.safetensors")
    return converted(folder)


def exported(folder: Path) -> str | None:
    """Return a digest of the exported program's outputs, or None if the file is absent."""
    path = folder / "model.pt2"
    if not path.exists():
        return None
    program = torch.export.load(path).module()
    with torch.no_grad():
        return hashlib.sha256(program(torch.ones(2, 1, 32, 32)).numpy().tobytes()).hexdigest()


JOBS = {
    "convert": Job(
        (
            *("convert", "torch_separable.models:CifarResNet", *_NETWORK, "--weights", "dense.safetensors"),
            *("--data", "digits", "--images", "64", "--rank", "2", "-o", "{out}"),
        ),
        ("--force",),
        converted,
    ),
    "distill": Job(
        (
            *("distill", "converted", "--teacher", "dense.safetensors", "--data", "digits", "--epochs", "2"),
            *("--set", "max_steps=12", "--set", "checkpoint_every=2", "-o", "{out}"),
        ),
        (),
        distilled,
    ),
    "export": Job(("export", "converted", "--to", "pt2", "-o", "{out}/model.pt2"), (), exported),
}


def prepare(place: Path) -> None:
    """Save a dense network and its conversion."""
    torch.manual_seed(0)
    network = CifarResNet(1, in_channels=1).eval()
    save_weights(network, place / "dense.safetensors")
    images = torch.rand(32, 1, 32, 32)
    ts.save(ts.convert(network, images, rank=1, method="svd", progress=False), place / "converted")


def start(job: Job, place: Path, out: str, *more: str) -> subprocess.Popen[str]:
    """Start the command in a folder with an unusual name, and wait until its imports are done."""
    arguments = [argument.replace("{out}", out) for argument in (*job.arguments, *more)]
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN, *arguments],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line == "ready\n":
            break
    return process


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for the end, which must be successful."""
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-500:]


def survive(name: str, place: Path, moments: int, seed: int = 0) -> list[Outcome]:
    """Kill the command ``moments`` times, each time in a folder of its own."""
    job, draw = JOBS[name], random.Random(seed)
    process = start(job, place, f"{name} whole")
    began = time.monotonic()
    finish(process)
    seconds = time.monotonic() - began
    expected = job.look(place / f"{name} whole")
    assert expected is not None
    outcomes = []
    for i in range(moments):
        out = f"{name} Größe 大 {i}"
        moment = draw.uniform(0, seconds)
        process = start(job, place, out)
        time.sleep(moment)
        process.kill()
        process.communicate()
        found, problem = False, None
        try:
            found = job.look(place / out) is not None
            finish(start(job, place, out, *(job.again if found else ())))
            left = [path.name for path in (place / out).glob(".*")]
            assert not left, f"{left} were left"
            assert job.look(place / out) == expected, "not what the undisturbed run leaves"
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        outcomes.append(Outcome(moment, found, problem))
        shutil.rmtree(place / out, ignore_errors=True)
    return outcomes


def main(
    commands: Annotated[list[str] | None, typer.Argument(help="convert, distill, export; by default all.")] = None,
    moments: Annotated[int, typer.Option(help="Kills of each command.")] = 20,
    seed: int = 0,
) -> None:
    """Kill the commands and print a line for each kill."""
    problems = 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prepare(place)
        for name in commands or JOBS:
            outcomes = survive(name, place, moments, seed)
            for outcome in outcomes:
                state = "result there" if outcome.found else "no result yet"
                print(f"{name}  killed after {outcome.moment:5.2f} s  {state}  {outcome.problem or 'finished again'}")
            problems += sum(outcome.problem is not None for outcome in outcomes)
            there = sum(outcome.found for outcome in outcomes)
            print(f"{name}: {len(outcomes)} kills, {there} of them after the result was there, {problems} problems")
    raise typer.Exit(bool(problems))


if __name__ == "__main__":
    typer.run(main)
