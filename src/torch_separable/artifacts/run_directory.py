"""The run directory: weights, plan, settings and results of a run, enough to repeat it and to continue from it."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from torch_separable._network.weights_file import load_weights, save_weights
from torch_separable._system.files import flush, read_json, replacing, write_json, write_text
from torch_separable._system.hardware import processor
from torch_separable._system.locking import sole_writer
from torch_separable._version import __version__
from torch_separable.artifacts.model_card import MARK, model_card
from torch_separable.conversion import Plan
from torch_separable.conversion.apply_plan import build_skeleton
from torch_separable.data import Preparation
from torch_separable.errors import SeparableError
from torch_separable.models.registry import Network, bounded

WEIGHTS, PLAN, CONFIG, RESULTS, PAGE = "model.safetensors", "plan.json", "config.json", "results.json", "index.html"
CARD = "README.md"
GRAPH = "network.json"  # the operators of a quantized network, which no function builds
FILES = {WEIGHTS, PLAN, CONFIG, RESULTS, PAGE, CARD, GRAPH}
SCHEMA = 1
LOCK_TIMEOUT = 30.0  # seconds to wait for another writer, which holds the lock while it writes the files


def machine() -> dict[str, Any]:
    """Return what measured figures depend on: processor, threads, versions."""
    return {
        "processor": processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_separable": __version__,
    }


def command_line() -> str:
    """Return the running ``separable`` command as typed in a shell."""
    return shlex.join(["separable", *sys.argv[1:]])


def check_place(folder: Path) -> None:
    """Check that a folder can be written, before anything is computed.

    Raises:
        SeparableError: a part of the path is not a folder, or is read-only.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise SeparableError(f"cannot write to the folder {folder}: {there} is not a folder. Choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SeparableError(f"cannot write to the folder {folder}: {there} is read-only. Choose another folder")


def write_run(
    folder: Path,
    model: nn.Module,
    plan: Plan,
    network: Network,
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    *,
    command: str | None = None,
    preparation: Preparation | None = None,
) -> None:
    """Write a converted network with plan, settings and results atomically.

    All files are first written to temporary names. Then the old weights are removed, the new files are renamed, and the
    weights are renamed last. A folder that has weights therefore always holds the files of one conversion.

    Args:
        folder: the folder; other files in it stay.
        model: the network.
        plan: the plan of the conversion.
        network: how to build the dense network.
        settings: settings of the run.
        results: measured results.
        command: the command that repeats the run.
        preparation: how images are prepared for the network.

    Raises:
        SeparableError: the folder cannot be written, or a value cannot be written as JSON.
    """
    network.check("the network to save")
    config = {
        "version": SCHEMA,
        "model": network.model,
        "arguments": network.arguments,
        "input_shape": network.input_shape,
        **({} if preparation is None else {"preparation": preparation.to_dict()}),
        "settings": dict(settings),
        "command": command,
        "machine": machine(),
    }
    with ExitStack() as stack:
        stack.enter_context(sole_writer(folder, wait=LOCK_TIMEOUT))
        # The first name is renamed last.
        names = [WEIGHTS, PLAN, CONFIG, RESULTS, *([CARD] if card_is_ours(folder / CARD) else [])]
        aside = {name: stack.enter_context(replacing(folder / name)) for name in names}
        save_weights(model, aside[WEIGHTS])
        plan.save(aside[PLAN])
        write_json(aside[CONFIG], config)
        write_json(aside[RESULTS], dict(results))
        if CARD in aside:
            size = aside[WEIGHTS].stat().st_size
            write_text(aside[CARD], _card(plan, network, results, size, command))
        for path in aside.values():
            flush(path)
        for old in (WEIGHTS, GRAPH):  # a quantized network that the folder held
            (folder / old).unlink(missing_ok=True)


def write_results(folder: Path, results: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write the results of a run that has no network of its own, such as a benchmark, and describe the machine."""
    config = {"version": SCHEMA, "settings": dict(settings), "command": command_line(), "machine": machine()}
    with sole_writer(folder, wait=LOCK_TIMEOUT):
        write_json(folder / CONFIG, config)
        write_json(folder / RESULTS, dict(results))


def _card(plan: Plan, network: Network, results: Mapping[str, Any], size: int, command: str | None) -> str:
    try:
        return model_card(plan, network, results, size, machine(), command)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise SeparableError(f"the results cannot be written to the model card: {error}") from error


def card_is_ours(path: Path) -> bool:
    """Whether the model card may be replaced: it does not exist, or still has the mark of a generated file.

    Raises:
        SeparableError: it cannot be read.
    """
    try:
        return MARK in path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return True
    except OSError as error:
        raise SeparableError(f"cannot read {path}: {error.strerror or error}") from error


def read_network(folder: Path) -> Network:
    """Read how to build the dense network of a run, without importing anything.

    Raises:
        SeparableError: the folder is not a run directory, or its config is damaged.
    """
    if not (folder / CONFIG).is_file():
        raise SeparableError(
            f"{folder} is not a converted network: it has no {CONFIG}. Give a folder written by convert"
        )
    where = str(folder / CONFIG)
    config = read_json(folder / CONFIG, "how to build the dense network")
    if isinstance(config, dict) and config.get("quantized") is True:
        raise SeparableError(
            f"{folder} holds a quantized network, which cannot be converted or trained. Give the folder of the float "
            "network that it was made from"
        )
    if not isinstance(config, dict) or not isinstance(config.get("model"), str):
        raise SeparableError(f'{where} does not name a model: "model" must be a string')
    version = config.get("version", SCHEMA)
    if type(version) is not int or version != SCHEMA:
        raise SeparableError(f"{where} has version {version!r}; this release reads version {SCHEMA}: convert again")
    arguments, shape = config.get("arguments", {}), config.get("input_shape")
    if not isinstance(arguments, dict):
        raise SeparableError(f'{where}: "arguments" must be a JSON object')
    if not isinstance(shape, list | None):
        raise SeparableError(f'{where}: "input_shape" must be a list of integers, such as [3, 32, 32]')
    network = Network(config["model"], arguments, None if shape is None else tuple(shape))
    network.check(where)
    return network


def read_preparation(folder: Path) -> Preparation | None:
    """Read how images are prepared for the network of a run; ``None`` if the run does not record it.

    Raises:
        SeparableError: the config is damaged, or the preparation is invalid.
    """
    config = read_json(folder / CONFIG, "how images are prepared")
    if not isinstance(config, dict):
        raise SeparableError(f"{folder / CONFIG} must be a JSON object, but is a {type(config).__name__}")
    if "preparation" in config:
        return Preparation.from_dict(config["preparation"], str(folder / CONFIG))
    # Runs of earlier releases record the normalisation with the data.
    settings = config.get("settings")
    data = settings.get("data") if isinstance(settings, dict) else None
    if not isinstance(data, dict) or not isinstance(data.get("shape"), list) or len(data["shape"]) != 3:
        return None
    channels, *size = data["shape"]
    values = {name: data.get(name, []) for name in ("mean", "std")}
    return Preparation.from_dict({"image_size": size, "channels": channels, **values}, str(folder / CONFIG))


def read_results(folder: Path) -> dict[str, Any]:
    """Read the measured results of a run; return an empty dictionary if there is no file.

    Raises:
        SeparableError: the file is damaged.
    """
    if not (folder / RESULTS).exists():
        return {}
    results = read_json(folder / RESULTS, "a run's results")
    if not isinstance(results, dict):
        raise SeparableError(f"{folder / RESULTS} must be a JSON object, but is a {type(results).__name__}")
    return results


def build_dense(folder: Path, network: Network) -> nn.Module:
    """Build the dense network of a run, with a limit on its size that follows from the run's weights.

    Raises:
        SeparableError: the network exceeds the limit or cannot be built, or the weights are missing or damaged.
    """
    with bounded(*_dense_size(folder / WEIGHTS)):
        return network.build()


def _dense_size(weights: Path) -> tuple[int, int]:
    """Return the largest possible number of values, and the number of tensors, of the dense network.

    Only the header of the weights file is read.
    """
    if not weights.is_file():
        raise SeparableError(f"{weights} does not exist: the folder holds no complete network. Save it again")
    try:
        with safe_open(weights, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - it has no others
    except (SafetensorError, OSError, ValueError) as error:
        raise SeparableError(f"{weights} is not a complete safetensors file ({error}): save it again") from error
    sizes = {name: int(torch.Size(shape).numel()) for name, shape in shapes.items()}
    values = sum(sizes.values())
    for name, shape in shapes.items():
        layer, found, _ = name.rpartition("conv_dw.weight")
        if found:  # a dense kernel has at most as many entries per tap as the pointwise kernel
            values += sizes.get(f"{layer}conv_pw.weight", 0) * int(torch.Size(shape[2:]).numel())
    return values, len(shapes)


def load_converted(folder: Path, dense: nn.Module) -> nn.Module:
    """Build the converted network of a run from its dense network and plan, and load its weights in their saved types.

    Raises:
        SeparableError: a file is missing or damaged, or plan or weights do not match the network.
    """
    converted = build_skeleton(dense, Plan.load(folder / PLAN))
    load_weights(converted, folder / WEIGHTS, keep_types=True)
    return converted
