"""The directory that a run leaves: weights, plan, settings and results, enough to repeat it and to go on from it."""

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
from torch_separable.errors import SeparableError
from torch_separable.models.registry import Network, bounded

WEIGHTS, PLAN, CONFIG, RESULTS, PAGE = "model.safetensors", "plan.json", "config.json", "results.json", "index.html"
CARD = "README.md"
FILES = {WEIGHTS, PLAN, CONFIG, RESULTS, PAGE, CARD}
SCHEMA = 1
_PATIENCE = 30.0  # seconds; another writer takes as long as the disk does


def machine() -> dict[str, Any]:
    """Return what figures depend on: processor, threads, versions."""
    return {
        "processor": processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_separable": __version__,
    }


def command_line() -> str:
    """Return the command ``separable`` that is running, as one would type it."""
    return shlex.join(["separable", *sys.argv[1:]])


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
    folder: Path,
    model: nn.Module,
    plan: Plan,
    network: Network,
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    *,
    command: str | None = None,
) -> None:
    """Write a converted network and how it came to be: whole, or not at all.

    Everything is written aside first. Then the old weights go, the new files take their places, and the weights come
    last; so a folder with weights is whole at any moment, and of one conversion.

    Args:
        folder: for the files; others in it stay.
        model: the network.
        plan: what was carried out.
        network: how to build the dense network.
        settings: of the run.
        results: what was measured.
        command: that repeats it.

    Raises:
        SeparableError: the folder cannot be written, or something cannot stand in a file.
    """
    network.check("the network to save")
    config = {
        "version": SCHEMA,
        "model": network.model,
        "arguments": network.arguments,
        "input_shape": network.input_shape,
        "settings": dict(settings),
        "command": command,
        "machine": machine(),
    }
    with ExitStack() as stack:
        stack.enter_context(sole_writer(folder, wait=_PATIENCE))
        # The first of them takes its place last.
        names = [WEIGHTS, PLAN, CONFIG, RESULTS, *([CARD] if _card_is_ours(folder / CARD) else [])]
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
        (folder / WEIGHTS).unlink(missing_ok=True)


def write_results(folder: Path, results: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write what was measured without a network of its own, as a benchmark does, and what it was measured on."""
    config = {"version": SCHEMA, "settings": dict(settings), "command": command_line(), "machine": machine()}
    with sole_writer(folder, wait=_PATIENCE):
        write_json(folder / CONFIG, config)
        write_json(folder / RESULTS, dict(results))


def _card(plan: Plan, network: Network, results: Mapping[str, Any], size: int, command: str | None) -> str:
    try:
        return model_card(plan, network, results, size, machine(), command)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise SeparableError(f"the results do not fit the model card: {error}. Give figures as numbers") from error


def _card_is_ours(path: Path) -> bool:
    """Whether the model card may be replaced: there is none, or nobody has made it their own."""
    try:
        return MARK in path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return True
    except OSError as error:
        raise SeparableError(f"cannot read {path}: {error.strerror or error}") from error


def read_network(folder: Path) -> Network:
    """Read how to build the dense network of a run; nothing is imported.

    Raises:
        SeparableError: the folder is not of a run, or its config is damaged.
    """
    if not (folder / CONFIG).is_file():
        raise SeparableError(
            f"{folder} is not a converted network: it has no {CONFIG}. Give a folder that convert wrote"
        )
    where = str(folder / CONFIG)
    config = read_json(folder / CONFIG, "how to build the dense network")
    if not isinstance(config, dict) or not isinstance(config.get("model"), str):
        raise SeparableError(f'{where} does not name a model: it should hold "model" and "arguments"')
    version = config.get("version", SCHEMA)
    if type(version) is not int or version != SCHEMA:
        raise SeparableError(f"{where} has version {version!r}; this release reads version {SCHEMA}: convert again")
    arguments, shape = config.get("arguments", {}), config.get("input_shape")
    if not isinstance(arguments, dict):
        raise SeparableError(f'{where}: "arguments" should be a JSON object')
    if not isinstance(shape, list | None):
        raise SeparableError(f'{where}: "input_shape" should be a list of whole numbers, as [3, 32, 32]')
    network = Network(config["model"], arguments, None if shape is None else tuple(shape))
    network.check(where)
    return network


def read_results(folder: Path) -> dict[str, Any]:
    """Read what was measured of a network; an absent file is an empty one.

    Raises:
        SeparableError: the file is damaged.
    """
    if not (folder / RESULTS).exists():
        return {}
    results = read_json(folder / RESULTS, "a run's results")
    if not isinstance(results, dict):
        raise SeparableError(f"{folder / RESULTS} should hold a run's results, but is a {type(results).__name__}")
    return results


def build_dense(folder: Path, network: Network) -> nn.Module:
    """Build the dense network of a run, unless it would be far larger than the run's weights say.

    Raises:
        SeparableError: it would be, it cannot be built, or the weights are missing or damaged.
    """
    with bounded(*_dense_size(folder / WEIGHTS)):
        return network.build()


def _dense_size(weights: Path) -> tuple[int, int]:
    """How many values, at most, and tensors the dense network of these weights has; only the file's header is read."""
    if not weights.is_file():
        raise SeparableError(f"no weights at {weights}: the network was not saved to its end; save it again")
    try:
        with safe_open(weights, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - it has no others
    except (SafetensorError, OSError, ValueError) as error:
        raise SeparableError(f"{weights} is not a whole safetensors file ({error}): fetch or save it again") from error
    sizes = {name: int(torch.Size(shape).numel()) for name, shape in shapes.items()}
    values = sum(sizes.values())
    for name, shape in shapes.items():
        layer, found, _ = name.rpartition("conv_dw.weight")
        if found:  # a dense kernel has at most as many entries as the pointwise one has, for each tap
            values += sizes.get(f"{layer}conv_pw.weight", 0) * int(torch.Size(shape[2:]).numel())
    return values, len(shapes)


def load_converted(folder: Path, dense: nn.Module) -> nn.Module:
    """Build the converted network of a run from its dense network and plan, and load its weights, in their own types.

    Raises:
        SeparableError: a file is missing or damaged, or plan and weights do not fit the network.
    """
    converted = build_skeleton(dense, Plan.load(folder / PLAN))
    load_weights(converted, folder / WEIGHTS, keep_types=True)
    return converted
