"""Calls of a compiled network: threads, shared weights, input shapes, memory and refused arguments."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import pytest
import torch
from torch import nn

import torch_separable as ts
from compile_cases import assert_same, randomize_batch_norms
from torch_separable._system.hardware import cache_bytes
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.runtime import compile, instruction_sets
from torch_separable.runtime.graph.ir import Convolution


def test_later_changes_of_the_network_do_not_affect_the_compiled_one() -> None:
    model, x = randomize_batch_norms(ts.models.resnet20()), torch.randn(1, 3, 32, 32)
    compiled = compile(model, x)
    before = compiled(x).clone()
    assert model.training is False
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(compiled(x), before)


def test_later_shapes_use_the_compiled_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 3, 3)).eval()  # the latter in PyTorch
    before, x, more = copy.deepcopy(model), torch.randn(1, 3, 9, 9), torch.randn(2, 3, 12, 10)
    compiled = compile(model, x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    assert_same(compiled, before, x)
    assert_same(compiled, before, more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_shared_by_all_shapes_and_threads(dtype: torch.dtype) -> None:
    model = randomize_batch_norms(ts.models.mobilenet_v2(0.35))
    shapes = [(1, 3, 64, 64), (2, 3, 64, 64), (8, 3, 32, 32), (1, 3, 48, 80)]
    compiled = compile(model, torch.randn(shapes[0]), dtype=dtype)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for shape in shapes:
                x = torch.randn(shape)
                alone = compile(model, x, dtype=dtype)  # which shares with nobody
                assert torch.equal(compiled(x), alone(x))
    finally:
        torch.set_num_threads(threads)
    plans = [prepared.plan for prepared in compiled._schedules.values()]
    assert len(plans) == 2 * len(shapes)
    assert len({tuple(piece.data_ptr() for piece in plan.weights) for plan in plans}) == 1
    kept = [*compiled._programs.values(), *(plan.program for plan in plans)]
    convolutions = [node for program in kept for node in program.nodes if isinstance(node, Convolution)]
    assert all(node.weight.is_meta and node.bias.is_meta for node in convolutions)


@pytest.mark.parametrize("collecting", [True, False])
def test_garbage_collector_keeps_its_state(collecting: bool) -> None:
    assert gc.isenabled()
    if not collecting:
        gc.disable()
    try:
        compile(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8))
        assert gc.isenabled() is collecting
        with pytest.raises(SeparableError):
            compile(nn.Conv2d(3, 4, 3), torch.randn(1, 5, 8, 8))
        assert gc.isenabled() is collecting
    finally:
        gc.enable()


def test_networks_that_cannot_be_copied_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3)).eval()
    model.lock = Lock()  # type: ignore[assignment]
    with pytest.raises(SeparableError, match=r"Sequential cannot be copied: lock, of type lock \(cannot pickle"):
        compile(model, torch.randn(1, 3, 9, 9))


def test_several_threads_compile_shapes_at_the_same_time() -> None:
    models = [nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval() for _ in range(2)]
    compiled = [compile(model, torch.randn(1, 3, 8, 8)) for model in models]

    def one(size: int) -> None:
        x = torch.randn(1, 3, size, 9)
        for network, model in zip(compiled, models, strict=True):
            assert_same(network, model, x)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(8, 20)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("outputs", [984, 1000, 1024])  # with AVX-512 61.5, 62.5 and 64 vectors
def test_channel_splits_of_a_classifier_do_not_change_the_result(outputs: int, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 1280, 4), nn.Flatten(), nn.Linear(1280, outputs)).eval()
    x = torch.randn(1, 3, 4, 4)
    one, two = (compile(model, x, threads=threads, dtype=dtype) for threads in (1, 2))
    (prepared,) = two._schedules.values()
    if cache_bytes(2) <= 4 << 20:  # bytes, of which the weights fill more than half
        assert prepared.plan.steps[0].operations[-1].convolution.channel_splits == 2
    assert torch.equal(one(x), two(x))
    assert one.verify(x).error < (1e-5 if dtype == torch.float32 else 2e-2)


def test_compiled_network_is_not_copied_or_pickled() -> None:
    compiled = compile(nn.Conv2d(3, 8, 3), torch.randn(1, 3, 9, 9))
    assert copy.deepcopy(compiled) is compiled
    with pytest.raises(SeparableError, match=r"cannot be pickled: pickle the network, and compile it"):
        pickle.dumps(compiled)


def test_other_objects_and_devices_are_refused() -> None:
    with pytest.raises(SeparableValueError, match=r"model is a function: expected a network"):
        compile(lambda x: x, torch.randn(1, 3, 9, 9))  # type: ignore[arg-type]
    with pytest.raises(SeparableError, match=r"weights are on meta: move the network to the CPU"):
        compile(nn.Conv2d(3, 8, 3, device="meta"), torch.randn(1, 3, 9, 9))


def test_concurrent_callers_get_identical_results() -> None:
    model, x = randomize_batch_norms(ts.models.resnet20()), torch.randn(4, 1, 3, 32, 32)
    compiled = compile(model, x[0], threads=1)
    alone = [compiled(image).clone() for image in x]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: compiled(x[i % 4]), range(200)))
    assert all(torch.equal(result, alone[i % 4]) for i, result in enumerate(results))


def test_concurrent_callers_with_several_threads_each_get_identical_results() -> None:
    model = randomize_batch_norms(ts.models.mobilenet_v1(0.25))
    images = torch.randn(8, 1, 3, 64, 64)
    compiled = compile(model, images[0], threads=3)
    expected = [compiled(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            got = list(pool.map(compiled, images))
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    model, x = randomize_batch_norms(ts.models.mobilenet_v1(0.5)), torch.randn(1, 3, 64, 64)
    one, two = (compile(model, x, threads=n)(x) for n in (1, 2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_late_layers_split_by_channels(rank: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_separable.runtime.planning.schedule.cache_bytes", lambda level: 2**14)
    layers = [
        nn.Sequential(nn.Conv2d(72, 72 * rank, 3, padding=1, groups=72), nn.Conv2d(72 * rank, 72, 1), nn.ReLU())
        for _ in range(2)
    ]
    model, x = nn.Sequential(*layers).eval(), torch.randn(2, 72, 5, 5)
    compiled = compile(model, x, threads=threads)
    parts = 2 * (rank if threads > 1 else 0)
    assert sum(node.kind == "depthwise" for node in compiled.profile(x)) == parts
    assert_same(compiled, model, x)


def test_repeated_calls_do_not_leak_memory() -> None:
    import resource

    model, x = randomize_batch_norms(ts.models.mobilenet_v1(0.25)), torch.randn(1, 3, 32, 32)
    compiled = compile(model, x)
    for _ in range(200):
        compiled(x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(5000):
        compiled(x)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2048  # KiB


@pytest.mark.parametrize("isa", list(instruction_sets()) if ts.runtime.available() else [])
def test_instruction_set_can_be_chosen(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_SEPARABLE_ISA", isa)
    model, x = randomize_batch_norms(ts.models.mobilenet_v2(0.35)), torch.randn(1, 3, 64, 64)
    compiled = compile(model, x)
    assert compiled.kernels.name == isa
    assert_same(compiled, model, x)


def test_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_SEPARABLE_ISA", "mmx")
    with pytest.raises(SeparableError, match=r"TORCH_SEPARABLE_ISA=mmx: this processor can run .*baseline"):
        compile(nn.Conv2d(3, 8, 3), torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(3), r"shape \(3,\): expected \(N, C, H, W\)"),
        (torch.randn(1, 3, 8, 8).double(), r"torch.float64 on cpu: expected torch.float32 on the CPU"),
        (torch.randn(1, 3, 8, 8, device="meta"), r"on meta: expected torch.float32 on the CPU"),
        ([1, 2], r"the input is a list: expected a tensor"),
    ],
)
def test_wrong_input_is_refused_before_any_kernel_runs(x: object, message: str) -> None:
    compiled = compile(nn.Conv2d(3, 8, 3), torch.randn(1, 3, 8, 8))
    with pytest.raises(SeparableValueError, match=message):
        compiled(x)  # type: ignore[arg-type]


def test_wrong_channels_are_refused_with_the_shape() -> None:
    compiled = compile(nn.Conv2d(3, 8, 3), torch.randn(1, 3, 8, 8))
    with pytest.raises(SeparableError, match="Conv2d cannot be captured"):
        compiled(torch.randn(1, 4, 8, 8))


def test_weights_that_are_not_finite_and_wrong_threads_are_refused() -> None:
    broken = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        broken.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(SeparableError, match="weight holds NaN"):
        compile(broken, torch.randn(1, 3, 8, 8))
    with pytest.raises(SeparableValueError, match="threads=0"):
        compile(nn.Conv2d(3, 8, 3), torch.randn(1, 3, 8, 8), threads=0)


def test_without_the_kernel_library_only_compile_fails(tmp_path: Path) -> None:
    code = (
        "import torch, torch_separable as ts\n"
        "from torch_separable.runtime.native import library\n"
        "library._FILE = 'absent.so'\n"
        "print(ts.analyze(torch.nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 8, 8)).macs)\n"
        "try:\n    ts.compile(torch.nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 8, 8))\n"
        "except ts.SeparableError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[0] == "7776"
    assert "this installation has no kernel library" in done.stdout


def test_library_of_another_version_is_refused(tmp_path: Path) -> None:
    other = next(path for path in Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"))  # surely not ours
    code = (
        "import torch, torch_separable as ts\n"
        "try:\n    ts.compile(torch.nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 8, 8))\n"
        "except ts.SeparableError as error:\n    print(error)\n"
    )
    env = {**os.environ, "TORCH_SEPARABLE_LIBRARY": str(other)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=env
    )
    assert f"{other} belongs to another version of torch-separable" in done.stdout
