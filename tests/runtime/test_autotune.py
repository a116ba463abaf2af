"""The tuner keeps what it finds, changes no result, and takes a damaged file for what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import torch_separable as ts
from torch_separable.runtime import compile, instruction_sets
from torch_separable.runtime.engine import capture
from torch_separable.runtime.native.instruction_sets import chosen_set
from torch_separable.runtime.planning.schedule import schedule
from torch_separable.runtime.planning.tiling import shape_key
from torch_separable.runtime.prepared import Prepared
from torch_separable.runtime.profiling.autotune import cache_file, candidates, known_tiles


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_SEPARABLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tiles.json"


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1),
        ts.nn.DepthwiseSeparableConv2d(16, 40, 3, padding=1, act_layer=nn.ReLU),
        ts.nn.DepthwiseSeparableConv2d(40, 40, 3, padding=1, act_layer=nn.ReLU),
        nn.Conv2d(40, 50, 1),
    ).eval()


@pytest.mark.parametrize("threads", [1, 2])
def test_tuned_tiles_change_no_result_and_are_kept(threads: int, cache: Path) -> None:
    model, x = network(), torch.randn(2, 3, 32, 32)
    expected = compile(model, x, threads=threads)(x)
    assert not cache.exists()
    tuned = compile(model, x, threads=threads, tune=True)
    torch.testing.assert_close(tuned(x), expected, rtol=1e-5, atol=1e-5)
    known = known_tiles(chosen_set(), threads)
    assert len(known) == 4
    assert known_tiles(chosen_set(), threads + 1) == {}
    before = cache.read_bytes()
    again = compile(model, x, threads=threads, tune=True)  # nothing is left to measure
    assert cache.read_bytes() == before
    torch.testing.assert_close(again(x), expected, rtol=1e-5, atol=1e-5)


def test_tiles_that_are_known_are_used(cache: Path) -> None:
    model, x = network(), torch.randn(1, 3, 32, 32)
    compile(model, x, threads=1, tune=True)
    document = json.loads(cache.read_text())
    ((machine, tiles),) = document["tiles"].items()
    assert chosen_set().name in machine
    assert ts.__version__ in machine
    document["tiles"][machine] = {shape: [3, 1] for shape in tiles}
    cache.write_text(json.dumps(document))
    compiled = compile(model, x, threads=1)
    plan = schedule(capture(model, x), compiled.kernels, 1, known_tiles(compiled.kernels, 1))
    rows = [op.convolution.tile_rows for step in plan.steps for op in step.operations if shape_key(op)]
    assert rows == [3, 3, 3, 3]
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("isa", list(instruction_sets()) if ts.runtime.available() else [])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_candidate_computes_the_same(isa: str, threads: int) -> None:
    model, x = network(), torch.randn(2, 3, 20, 20)
    kernels = instruction_sets()[isa]
    program, expected = capture(model, x), model(x).detach()
    operations = [op for step in schedule(program, kernels, threads).steps for op in step.operations if shape_key(op)]
    for operation in operations:
        for tile in candidates(operation, kernels, threads):
            plan = schedule(program, kernels, threads, {str(shape_key(operation)): tile})
            got = Prepared(plan, kernels, threads).run(x)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"version": 2, "tiles": {}}', '{"version": 1, "tiles": {"m": 3}}',
     '{"version": 1, "tiles": {"m": {"shape": [0, 1]}}}', '{"version": 1, "tiles": {"m": {"shape": [true, 1]}}}'],
)  # fmt: skip
def test_damaged_file_is_named_and_replaced(content: str, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text(content)
    x = torch.randn(1, 3, 8, 8)
    with pytest.warns(UserWarning, match=r"tiles\.json is damaged .* is ignored"):
        compile(nn.Conv2d(3, 8, 3), x, threads=1)
    with pytest.warns(UserWarning, match="is damaged"):
        compile(nn.Conv2d(3, 8, 3), x, threads=1, tune=True)
    assert len(known_tiles(chosen_set(), 1)) == 1


def test_oversized_known_tile_is_clamped(cache: Path) -> None:
    x = torch.randn(1, 3, 8, 8)
    model = nn.Conv2d(3, 8, 3)
    compiled = compile(model, x, threads=1, tune=True)
    ((_, tiles),) = json.loads(cache.read_text())["tiles"].items()
    huge = dict.fromkeys(tiles, (10**9, 10**9))
    (step,) = schedule(capture(model, x), compiled.kernels, 1, huge).steps
    assert (step.operations[1].convolution.tile_rows, step.operations[1].convolution.channel_splits) == (6, 1)


def test_the_file_is_in_the_users_cache_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_SEPARABLE_CACHE")
    assert cache_file().name == "tiles.json"
    assert "torch-separable" in cache_file().parts
