"""The run directory of a quantized network: its operators as JSON, its scales and int8 weights as safetensors.

A captured network needs no function that builds it, so such a folder loads without importing anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_separable._network.weights_file import read_weights, save_weights
from torch_separable._system.files import flush, read_json, replacing, write_json, write_text
from torch_separable._system.locking import sole_writer
from torch_separable.artifacts import run_directory
from torch_separable.artifacts.model_card import quantized_card
from torch_separable.artifacts.run_directory import CARD, CONFIG, GRAPH, PLAN, RESULTS, SCHEMA, WEIGHTS
from torch_separable.conversion import Plan
from torch_separable.data import Preparation
from torch_separable.errors import SeparableError
from torch_separable.quantization import QuantizedNetwork
from torch_separable.quantization.stored import build, check_runs, describe


def write_quantized(
    folder: Path,
    model: QuantizedNetwork,
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    *,
    plan: Plan | None = None,
    command: str | None = None,
    preparation: Preparation | None = None,
) -> None:
    """Write a quantized network atomically, as `run_directory.write_run` writes a converted one.

    Args:
        folder: the folder; other files in it stay.
        model: the network.
        settings: settings of the run.
        results: measured results.
        plan: plan of the conversion that the network comes from.
        command: the command that repeats the run.
        preparation: how images are prepared for the network.

    Raises:
        SeparableError: an operator cannot be written, or the folder cannot.
    """
    graph = describe(model.captured)
    config = {
        "version": SCHEMA,
        "quantized": True,
        "input_shape": list(model.input_shape),
        **({} if preparation is None else {"preparation": preparation.to_dict()}),
        "settings": dict(settings),
        "command": command,
        "machine": run_directory.machine(),
    }
    with ExitStack() as stack:
        stack.enter_context(sole_writer(folder, wait=run_directory.LOCK_TIMEOUT))
        # The first name is renamed last.
        names = [WEIGHTS, GRAPH, CONFIG, RESULTS, *([] if plan is None else [PLAN])]
        names += [CARD] if run_directory.card_is_ours(folder / CARD) else []
        aside = {name: stack.enter_context(replacing(folder / name)) for name in names}
        save_weights(model.captured, aside[WEIGHTS])
        write_json(aside[GRAPH], graph)
        write_json(aside[CONFIG], config)
        write_json(aside[RESULTS], dict(results))
        if plan is not None:
            plan.save(aside[PLAN])
        if CARD in aside:
            size = aside[WEIGHTS].stat().st_size
            write_text(aside[CARD], quantized_card(model.input_shape, results, size, run_directory.machine(), command))
        for path in aside.values():
            flush(path)
        for old in (WEIGHTS, *([PLAN] if plan is None else [])):
            (folder / old).unlink(missing_ok=True)


def is_quantized(folder: Path) -> bool:
    """Whether a folder holds a quantized network; damaged files are reported by what reads them."""
    if not (folder / CONFIG).is_file():
        return False
    config = read_json(folder / CONFIG, "what the folder holds")
    return isinstance(config, dict) and config.get("quantized") is True


def load_quantized(folder: Path) -> QuantizedNetwork:
    """Load the network that `write_quantized` wrote, which computes the same bits.

    Raises:
        SeparableError: a file is missing, damaged, or of another release.
    """
    where = str(folder / GRAPH)
    config = read_json(folder / CONFIG, "the shape of an image")
    version = config.get("version")
    if version != SCHEMA:
        raise SeparableError(
            f"{folder / CONFIG} has version {version!r:.20}; this release reads version {SCHEMA}: quantize again"
        )
    shape = config.get("input_shape")
    if not (isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and 0 < n < 2**16 for n in shape)):
        raise SeparableError(f'{folder / CONFIG}: "input_shape" must be the shape of an image, such as [3, 32, 32]')
    if not (folder / GRAPH).is_file():
        raise SeparableError(f"{where} does not exist: the folder holds no complete network. Save it again")
    description = read_json(folder / GRAPH, "the operators of the network")
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise SeparableError(f"{weights} does not exist: the folder holds no complete network. Save it again")
    tensors = read_weights(weights)
    graph = build(description, tensors, where)
    unread = sorted(tensors.keys() - graph.state_dict().keys())
    if unread:
        raise SeparableError(
            f"{weights} holds tensors that {GRAPH} does not name ({unread[0]}): save the network again"
        )
    for name, tensor in tensors.items():
        _check_tensor(weights, name, tensor)
    check_runs(graph, tuple(shape), where)
    return QuantizedNetwork(graph, shape)


def _check_tensor(path: Path, name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise SeparableError(f"{path} holds NaN or infinity ({name}): save the network again")
    if name.endswith("_scales") and name.startswith("int8_") and not bool((tensor > 0).all()):
        raise SeparableError(f"{path} holds a scale that is not above 0 ({name}): save the network again")
