"""The directory that a run leaves: weights, plan, settings and results, enough to repeat it and to go on from it."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torch_separable._version import __version__
from torch_separable.convert import Plan, apply
from torch_separable.errors import SeparableError
from torch_separable.files import load_weights, read_json, save_weights, write_json

WEIGHTS, PLAN, CONFIG, RESULTS, PAGE = "model.safetensors", "plan.json", "config.json", "results.json", "index.html"


def machine() -> dict[str, Any]:
    """Return what figures depend on: processor, threads, versions."""
    return {
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_separable": __version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def command_line() -> str:
    """Return the command that is running, as one would type it."""
    return shlex.join(["separable", *sys.argv[1:]])


@dataclass(frozen=True)
class Network:
    """How to build a dense network: a function's name and its arguments."""

    model: str
    arguments: dict[str, Any]


def check_place(folder: Path) -> None:
    """Refuse a folder that could not be written in the end, before anything is computed.

    Raises:
        SeparableError: something else has its name, or writing there is not allowed.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise SeparableError(f"{folder} cannot be a run's folder: {there} is not a folder. Choose another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SeparableError(f"{folder} cannot be a run's folder: {there} is read-only. Choose another")


def write_run(
    folder: Path, model: nn.Module, plan: Plan, network: Network, settings: dict[str, Any], results: dict[str, Any]
) -> None:
    """Write a converted network and how it came to be; each file whole or not at all, the weights last."""
    plan.save(folder / PLAN)
    config = {
        "model": network.model,
        "arguments": network.arguments,
        "settings": settings,
        "command": command_line(),
        "machine": machine(),
    }
    write_json(folder / CONFIG, config)
    write_json(folder / RESULTS, results)
    save_weights(model, folder / WEIGHTS)


def read_network(folder: Path) -> Network:
    """Read how to build the dense network of a run.

    Raises:
        SeparableError: the folder is not of a run, or its config is damaged.
    """
    if not (folder / CONFIG).is_file():
        raise SeparableError(
            f"{folder} is not a converted network: it has no {CONFIG}. Give a folder that convert wrote"
        )
    config = read_json(folder / CONFIG, "how to build the dense network")
    if not isinstance(config, dict) or not isinstance(config.get("model"), str):
        raise SeparableError(f'{folder / CONFIG} does not name a model: it should hold "model" and "arguments"')
    arguments = config.get("arguments", {})
    if not isinstance(arguments, dict):
        raise SeparableError(f'{folder / CONFIG}: "arguments" should be a JSON object')
    return Network(config["model"], arguments)


def load_converted(folder: Path, dense: nn.Module) -> nn.Module:
    """Build the converted network of a run from its dense network and plan, and load its weights.

    Raises:
        SeparableError: a file is missing or damaged, or plan and weights do not fit the network.
    """
    converted = apply(dense, Plan.load(folder / PLAN))
    load_weights(converted, folder / WEIGHTS)
    return converted
