"""Engines are compared only on what they compute alike; what takes no part is named; ratios follow from the times."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import torch_separable as ts
from torch_separable.bench import ENGINES, Benchmark, Case, Timing, benchmark
from torch_separable.bench import benchmark as bench_function
from torch_separable.bench.engines import Job
from torch_separable.bench.harness import _take_turns, default_engines
from torch_separable.bench.randomize import randomize_batch_norms
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.runtime import available
from torch_separable.runtime.profiling.roofline import Peak


def timing(engine: str, milliseconds: float, precision: Any = "float32") -> Timing:
    return Timing(engine, precision, milliseconds, (milliseconds, milliseconds), 10, 0.0)


@pytest.fixture
def done() -> Benchmark:
    """A network of 1 M MACs beside its dense twin of 8 M."""
    peak = Peak("avx2", 1, gflops=10.0, cache=5.0, memory=1.0)
    ours = Case(1, 1, 1_000_000, (timing("separable", 0.5), timing("eager", 4.0), timing("openvino", 1.0)), peak)
    dense = Case(1, 1, 8_000_000, (timing("separable", 1.0), timing("openvino", 2.0), timing("eager", 9.0)), peak)
    twin = Benchmark("dense", (3, 8, 8), 8_000_000, 10, (dense,))
    return Benchmark("network", (3, 8, 8), 1_000_000, 10, (ours,), ("One is missing.",), twin)


def test_ratio_is_to_the_fastest_peer_and_realized_speedup_to_the_dense_network(done: Benchmark) -> None:
    (case,) = done.cases
    assert case.fastest_peer() == timing("openvino", 1.0)
    assert case.ratio() == 2.0
    assert case.gflops(case.timings[0]) == pytest.approx(4.0)  # 2 · 10⁶ operations in half a millisecond
    # The dense network's best peer takes 2 ms, ours 0.5: 4 times as fast for 8 times fewer MACs.
    assert done.realized_speedup(case) == pytest.approx(0.5)
    assert case.ratio("bfloat16") is None
    assert done.dense is not None
    assert done.dense.realized_speedup(done.dense.cases[0]) is None


def test_table_fits_a_terminal_and_lists_problems(done: Benchmark) -> None:
    text = str(done)
    assert max(map(len, text.splitlines())) <= 80
    assert "One is missing." in text
    assert "float32: 2.00x the speed of the fastest peer, OpenVINO." in text
    assert "The measured speedup is 50 % of the MAC reduction." in text
    row = next(line for line in text.splitlines() if "torch-separable" in line)
    assert "40 %" in row  # 4 of the 10 GFLOP/s


def test_dictionary_has_json_types_and_the_ratios(done: Benchmark) -> None:
    document = json.loads(json.dumps(done.to_dict()))
    assert document["cases"][0]["ratio"] == {"float32": 2.0, "bfloat16": None, "int8": None}
    assert document["cases"][0]["realized_speedup"] == pytest.approx(0.5)
    assert document["dense"]["cases"][0]["timings"][1]["title"] == "OpenVINO"


def test_int8_is_compared_with_float32_and_with_its_own_peers(done: Benchmark) -> None:
    times = (("separable_int8", 0.25), ("openvino_int8", 1.0), ("onnxruntime_int8", 0.75))
    integers = tuple(timing(engine, time, "int8") for engine, time in times)
    case = replace(done.cases[0], timings=(*done.cases[0].timings, *integers))
    assert case.ratio("int8") == 3.0
    text = " ".join(str(replace(done, cases=(case,))).split())
    assert "int8: 3.00x the speed of the fastest peer, ONNX Runtime int8." in text
    assert "int8 is 2.00x as fast as float32." in text
    slow = replace(case, timings=(*done.cases[0].timings, timing("separable_int8", 0.75, "int8")))
    text = " ".join(str(replace(done, cases=(slow,))).split())
    assert "int8 is slower than float32 on this machine: it takes 1.50x as long." in text


def test_engines_in_int8_need_the_quantized_network() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    assert not [key for key in default_engines(model, None) if "int8" in key]
    assert {"separable", "separable_int8", "openvino_int8"} <= set(default_engines(model, nn.Identity()))
    assert default_engines(model, model) == ["separable_int8", "onnxruntime_int8", "openvino_int8"]
    with pytest.raises(SeparableError, match="torch-separable int8 is left out: it needs the quantized network"):
        benchmark(model, torch.randn(1, 3, 8, 8), engines=["separable_int8"], rounds=1, progress=False)


@pytest.mark.slow
def test_engines_run_the_same_network_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else found(name))
    model = randomize_batch_norms(ts.models.mobilenet_v1(0.25), torch.randn(16, 3, 32, 32))
    wanted = ["separable", "eager", "onnxruntime", "openvino"]
    run = benchmark(
        model, torch.randn(1, 3, 32, 32), engines=wanted, threads=[1], batches=[2], rounds=2, progress=False
    )
    (case,) = run.cases
    expected = {"separable", "eager", "onnxruntime"} - (set() if available() else {"separable"})
    assert {t.engine for t in case.timings} == expected
    assert all(t.milliseconds > 0 and t.error <= 1e-4 for t in case.timings)
    assert case.macs == 2 * ts.analyze(model, torch.zeros(1, 3, 32, 32)).macs
    assert "OpenVINO is not installed: pip install openvino." in run.problems


@pytest.fixture
def job() -> Job:
    return Job("eager", nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 8, 8), 1)


def test_engine_with_other_outputs_is_left_out(job: Job) -> None:
    problems: list[str] = []
    with torch.no_grad():
        expected = 1.01 * job.model(job.images)
    assert _take_turns([job], {"float32": expected}, 1, problems, [], lambda: None) == ()
    assert problems == [
        "PyTorch eager left out: its outputs differ from PyTorch's by 0.01 of their scale, above the limit 0.001."
    ]


def test_an_engine_that_fails_is_named_with_its_reason() -> None:
    wrong = Job("eager", nn.Conv2d(5, 4, 3).eval(), torch.randn(1, 3, 8, 8), 1)
    problems: list[str] = []
    assert _take_turns([wrong], {"float32": torch.zeros(1)}, 1, problems, [], lambda: None) == ()
    assert len(problems) == 1
    assert problems[0].startswith("PyTorch eager: ")
    assert "channels" in problems[0]


def test_unpicklable_networks_and_invalid_arguments_are_refused() -> None:
    class Local(nn.Sequential):
        pass

    images = torch.randn(1, 3, 8, 8)
    with pytest.raises(SeparableError, match=r"Local cannot be sent to another process .*in a module"):
        bench_function(Local(nn.Conv2d(3, 4, 3)), images, engines=["eager"], threads=[1], batches=[1], rounds=1)
    with pytest.raises(SeparableValueError, match="engine 'tvm' is unknown"):
        bench_function(nn.Conv2d(3, 4, 3), images, engines=["tvm"])
    with pytest.raises(SeparableValueError, match=r"threads=\[0\]"):
        bench_function(nn.Conv2d(3, 4, 3), images, threads=[0])


def test_randomized_batch_norms_make_outputs_depend_on_the_image() -> None:
    model, images = ts.models.mobilenet_v1(0.25).eval(), torch.randn(16, 3, 64, 64)
    with torch.no_grad():
        plain, made = model(images), randomize_batch_norms(model, images)(images)
    assert float(plain.std(0).mean() / plain.abs().max()) < 1e-3
    assert float(made.std(0).mean() / made.abs().max()) > 0.05


def test_every_engine_names_its_package() -> None:
    assert all(engine.pip and engine.title for engine in ENGINES.values())
    assert [key for key, engine in ENGINES.items() if engine.slow] == ["inductor"]
