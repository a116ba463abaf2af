"""Tune tile sizes by measurement; results are kept per convolution shape in the user's cache directory."""

from __future__ import annotations

import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from platformdirs import user_cache_path

from torch_separable._system.files import write_json
from torch_separable._system.hardware import cache_bytes, processor
from torch_separable._version import __version__
from torch_separable.runtime.graph.ir import Program
from torch_separable.runtime.native.bindings import measure, run
from torch_separable.runtime.native.instruction_sets import InstructionSet
from torch_separable.runtime.native.operations import Operation
from torch_separable.runtime.planning.schedule import schedule
from torch_separable.runtime.planning.tiling import Tile, panels_of, rows_of, shape_key

_FILE = "tiles.json"
_ROUNDS = 15
_WORTH = 0.98  # a gain below 2 % is within the noise, so the default tile is kept


@dataclass(frozen=True)
class Tuned:
    """The measurement of one convolution shape.

    Attributes:
        shape: key of the shape.
        rule: the default tile: rows per tile, and number of channel splits.
        chosen: the fastest tile.
        milliseconds: medians of the default tile and of the chosen one.
    """

    shape: str
    rule: Tile
    chosen: Tile
    milliseconds: tuple[float, float]


def cache_file() -> Path:
    """Return the file of tuned tiles, in ``TORCH_SEPARABLE_CACHE`` or the user's cache directory."""
    folder = os.environ.get("TORCH_SEPARABLE_CACHE")
    return (Path(folder) if folder else user_cache_path("torch-separable")) / _FILE


def known_tiles(kernels: InstructionSet, threads: int) -> dict[str, Tile]:
    """Return the tiles tuned on this machine for an instruction set and number of threads, by shape.

    A damaged file causes a warning and counts as empty.
    """
    return _read(cache_file()).get(_machine(kernels, threads), {})


def tune(
    program: Program, kernels: InstructionSet, threads: int, note: Callable[[Tuned], None] = lambda _: None
) -> dict[str, Tile]:
    """Tune every convolution of a program whose shape is not known yet, and store the results.

    Args:
        program: the fused program.
        kernels: the instruction set.
        threads: number of threads.
        note: called with each result.

    Returns:
        All known tiles by shape.
    """
    known = known_tiles(kernels, threads)
    found = {tuned.shape: tuned for tuned in _measured(program, kernels, threads, known, note)}
    if found:
        path, machine = cache_file(), _machine(kernels, threads)
        everything = _read(path)  # again, because another process may have written it in the meantime
        known = {**everything.get(machine, {}), **{shape: tuned.chosen for shape, tuned in found.items()}}
        write_json(path, {"version": 1, "tiles": {**everything, machine: known}})
    return known


def _measured(
    program: Program, kernels: InstructionSet, threads: int, known: Mapping[str, Tile], note: Callable[[Tuned], None]
) -> list[Tuned]:
    plan = schedule(program, kernels, threads)
    memory = torch.zeros(plan.size, dtype=kernels.dtype)
    # Reading this between runs evicts the operation's data, as the other layers of a network do.
    others = torch.zeros(threads * 2 * cache_bytes(2) // 4)
    found: dict[str, Tuned] = {}
    for step in plan.steps:
        # Of several shares of the images, tiles are by rule.
        shared = 0 if step.task_lists is None or threads == 1 else step.task_lists.covered
        for operation in step.operations[shared:]:
            shape = shape_key(operation)
            if shape is None or shape in known or shape in found:
                continue
            rule = operation.convolution.tile_rows, operation.convolution.channel_splits
            times: dict[Tile, list[float]] = {tile: [] for tile in candidates(operation, kernels, threads)}
            for _ in range(_ROUNDS):
                for tile, spent in times.items():
                    single = (Operation * 1)(operation)
                    params = single[0].convolution
                    params.tile_rows, params.channel_splits = tile
                    measure(kernels, 1, threads, others)
                    start = time.perf_counter()
                    run(single, memory, 0, threads)
                    spent.append(1e3 * (time.perf_counter() - start))
            medians = {tile: statistics.median(spent) for tile, spent in times.items()}
            best = min(medians, key=medians.__getitem__)
            chosen = best if medians[best] < _WORTH * medians[rule] else rule
            found[shape] = Tuned(shape, rule, chosen, (medians[rule], medians[chosen]))
            note(found[shape])
    return list(found.values())


def candidates(operation: Operation, kernels: InstructionSet, threads: int) -> list[Tile]:
    """Return the tiles to try, the default first: fewer and more rows, with and without channel splits."""
    rule, rows = (int(operation.convolution.tile_rows), int(operation.convolution.channel_splits)), rows_of(operation)
    panels = panels_of(operation, kernels)
    heights = {max(1, min(rows, int(rule[0] * factor))) for factor in (0.25, 0.5, 0.75, 1, 1.5, 2, 4)}
    heights |= {-(-rows // (threads * parts)) for parts in (1, 2, 4)}  # the same number of tiles for every thread
    parts = {1, rule[1]} | ({threads} if panels >= threads else set())
    tiles = [(height, part) for height in sorted(heights) for part in sorted(parts)]
    return [rule, *(tile for tile in tiles if tile != rule)]


def _machine(kernels: InstructionSet, threads: int) -> str:
    return f"{processor()}, {kernels.name}, {kernels.precision}, threads {threads}, torch-separable {__version__}"


def _read(path: Path) -> dict[str, dict[str, Tile]]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        return _ignored(path, str(error))
    tiles = document.get("tiles") if isinstance(document, dict) and document.get("version") == 1 else None
    if not isinstance(tiles, dict) or not all(isinstance(shapes, dict) for shapes in tiles.values()):
        return _ignored(path, "it is not a tile file of version 1")
    read: dict[str, dict[str, Tile]] = {}
    for machine, shapes in tiles.items():
        for shape, tile in shapes.items():
            if not isinstance(tile, list) or len(tile) != 2 or not all(type(n) is int and n > 0 for n in tile):
                return _ignored(path, f"the tile {tile!r:.40} of {shape:.60} is not two positive whole numbers")
            read.setdefault(machine, {})[shape] = tile[0], tile[1]
    return read


def _ignored(path: Path, reason: str) -> dict[str, dict[str, Tile]]:
    warnings.warn(f"{path} is damaged ({reason}) and is ignored; tuning will replace it", stacklevel=4)
    return {}
