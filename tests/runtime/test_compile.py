"""Compiled networks give the network's outputs, whatever the shape, the strides, the threads and who calls."""

from __future__ import annotations

import copy
import gc
import math
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import pytest
import torch
from torch import Tensor, nn

import torch_separable as ts
from torch_separable._system.hardware import cache_bytes
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.runtime import compile, instruction_sets
from torch_separable.runtime.graph.ir import Convolution


def trained_like(model: nn.Module) -> nn.Module:
    """Give batch norms statistics and weights of their own, so that folding them is tested."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def assert_same(compiled: ts.CompiledModel, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected = model(x)
    got = compiled(x)
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max().clamp_min(1e-3))


NETWORKS = {
    "mobilenet_v1": (lambda: ts.models.mobilenet_v1(0.25), (2, 3, 64, 64)),
    "conv_mobilenet": (lambda: ts.models.conv_mobilenet(0.25), (1, 3, 64, 64)),
    "mobilenet_v2": (lambda: ts.models.mobilenet_v2(0.35), (1, 3, 64, 64)),
    "resnet20": (ts.models.resnet20, (3, 3, 32, 32)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("threads", [1, 2])
def test_our_networks_run_without_pytorch(name: str, threads: int) -> None:
    make, shape = NETWORKS[name]
    model, x = trained_like(make()), torch.randn(shape)
    compiled = compile(model, x, threads=threads)
    assert compiled.fallbacks == ()
    assert_same(compiled, model, x)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("isa", list(instruction_sets()) if ts.runtime.available() else [])
def test_in_bfloat16_they_are_as_near_as_its_eight_bits_allow(
    name: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_SEPARABLE_ISA", isa)
    make, shape = NETWORKS[name]
    model, x = trained_like(make()), torch.randn(shape)
    one, two = (compile(model, x, threads=n, dtype=torch.bfloat16) for n in (1, 2))
    assert one.fallbacks == ()
    found = one.verify(x)
    assert str(found).startswith("bfloat16: largest difference")
    assert 1e-4 < found.error < 5e-2  # every layer rounds by 2^-9 at most, of values of all signs
    assert one(x).dtype == torch.float32
    # Threads share the work out in other parts, whose sums are rounded to bfloat16 alike but for those near a tie.
    torch.testing.assert_close(one(x), two(x), rtol=2e-2, atol=2e-2 * float(one(x).abs().max()))


def test_in_bfloat16_it_is_no_further_from_float32_than_pytorchs_autocast() -> None:
    model, x = trained_like(ts.models.mobilenet_v1(0.5)), torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            theirs = model(x).float()
    ours = compile(model, x, dtype=torch.bfloat16)(x)
    assert float((ours - expected).norm()) <= float((theirs - expected).norm())


def test_bfloat16_takes_half_of_the_memory_and_says_what_it_can_reach() -> None:
    model, x = trained_like(ts.models.mobilenet_v1(0.5)), torch.randn(1, 3, 64, 64)
    narrow, full = (compile(model, x, threads=1, dtype=d).explain(rounds=2) for d in (torch.bfloat16, torch.float32))
    for ours, theirs in zip(narrow.nodes, full.nodes, strict=True):
        assert ours.flops == theirs.flops
        assert ours.bytes < 0.65 * theirs.bytes  # depthwise kernels and biases stay as they are
    assert narrow.peak.precision == "bfloat16"
    assert "bfloat16, 1 thread" in str(narrow)


def test_what_pytorch_runs_in_a_bfloat16_network_sees_float32() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.LogSoftmax(1), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(144, 5)
    ).eval()
    x = torch.randn(2, 3, 8, 8)
    compiled = compile(model, x, dtype=torch.bfloat16)
    assert any("log_softmax" in text for text in compiled.fallbacks)
    assert compiled.verify(x).error < 2e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8, "bfloat16"])
def test_other_types_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(SeparableValueError, match=r"dtype=.*: must be torch.float32 or torch.bfloat16"):
        compile(nn.Conv2d(3, 8, 3), torch.randn(1, 3, 8, 8), dtype=dtype)


@pytest.mark.parametrize("order", ["depthwise_first", "pointwise_first"])
@pytest.mark.parametrize("rank", [1, 3])
def test_converted_networks_run_without_pytorch(order: str, rank: int) -> None:
    model, images = trained_like(ts.models.CifarResNet(1)), torch.randn(16, 3, 16, 16)
    statistics = ts.calibrate(model, images)
    converted = ts.apply(model, ts.plan(model, statistics, rank=rank, order=order), statistics)  # type: ignore[arg-type]
    compiled = compile(converted, images)
    assert compiled.fallbacks == ()
    assert_same(compiled, converted.eval(), images)


class Attention(nn.Module):
    """A squeeze-and-excite block, an average pool, and what has no kernel: the logarithm of a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.Hardswish(inplace=True))
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 12, 1), nn.Hardsigmoid()
        )
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.pool(x * self.squeeze(x)).log_softmax(1)
        return self.head(x.mean((2, 3)))


def test_operators_without_a_kernel_are_named_fallbacks() -> None:
    model, x = Attention().eval(), torch.randn(2, 3, 9, 11)
    compiled = compile(model, x)
    assert [text.partition(":")[0] for text in compiled.fallbacks] == ["log_softmax"]
    assert "no kernel" in compiled.fallbacks[0]
    assert_same(compiled, model, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_infinities_do_not_leak_into_the_next_call(dtype: torch.dtype) -> None:
    # What PyTorch computes is put where the call before left the output.
    separable = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 3, 1))
    model = nn.Sequential(nn.Softmax2d(), separable, nn.Conv2d(3, 16, 1)).eval()
    x = torch.randn(1, 3, 16, 16)
    compiled = compile(model, x, dtype=dtype)
    expected = compiled(x)
    assert compiled(torch.full_like(x, math.inf)).isnan().all()
    assert torch.equal(compiled(x), expected)


@pytest.mark.parametrize("isa", sorted(instruction_sets(torch.bfloat16)))
@pytest.mark.parametrize("channels", [3, 17, 40])
def test_infinity_survives_partly_filled_vectors(isa: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_SEPARABLE_ISA", isa)
    layers = [
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        nn.Conv2d(channels, channels, 1),
    ]
    model, x = nn.Sequential(*layers).eval(), torch.rand(1, channels, 7, 7)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.1, 0.2)
    for dtype in (torch.float32, torch.bfloat16):
        compiled = compile(model, torch.rand_like(x), dtype=dtype)
        x[0, 0, 3, 3] = math.inf
        with torch.no_grad():
            expected = model(x)
        assert expected.isinf().sum() == channels * 25
        got = compiled(x)
        assert not got.isnan().any()
        assert torch.equal(got.isinf(), expected.isinf())


def test_any_strides_and_other_batches_and_sizes() -> None:
    model, x = trained_like(ts.models.mobilenet_v1(0.25)), torch.randn(2, 3, 64, 64)
    compiled = compile(model, x)
    assert_same(compiled, model, x.to(memory_format=torch.channels_last))
    assert_same(compiled, model, torch.randn(2, 64, 3, 128)[:, :, :, ::2].permute(0, 2, 1, 3))
    assert_same(compiled, model, torch.randn(1, 3, 64, 64))
    assert_same(compiled, model, torch.randn(3, 3, 33, 47))


def test_changes_of_the_network_do_not_affect_the_compiled_one() -> None:
    model, x = trained_like(ts.models.resnet20()), torch.randn(1, 3, 32, 32)
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
    model = trained_like(ts.models.mobilenet_v2(0.35))
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
    convolutions = [
        [node for node in program.nodes if isinstance(node, Convolution)] for program in compiled._programs.values()
    ]
    for first, *others in zip(*convolutions, strict=True):
        assert all(node.weight is first.weight and node.bias is first.bias for node in others)


def test_other_shapes_that_need_other_weights_get_them() -> None:
    """Dense kernels read lines of 4 channels in bfloat16, where these are long enough, and of 3 where they are not."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    x, narrow = torch.randn(1, 3, 40, 40), torch.randn(1, 3, 40, 6)
    compiled = compile(model, x, dtype=torch.bfloat16)
    for images in (x, narrow, x):
        assert torch.equal(compiled(images), compile(model, images, dtype=torch.bfloat16)(images))
    plans = [prepared.plan for prepared in compiled._schedules.values()]
    if compiled.kernels.name == "avx512bf16":  # others multiply floats, of which a row of any number is a line
        assert len({tuple(piece.data_ptr() for piece in plan.weights) for plan in plans}) == 2


@pytest.mark.parametrize("collecting", [True, False])
def test_the_garbage_collector_is_as_it_was(collecting: bool) -> None:
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


def test_empty_batch_gives_empty_outputs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    compiled = compile(model, torch.randn(2, 3, 9, 9))
    assert compiled(torch.randn(0, 3, 9, 9)).shape == (0, 5)


def test_calls_within_inference_mode_and_outside_of_it() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 3, 3)).eval(), torch.randn(1, 3, 9, 9)
    with torch.inference_mode():
        compiled = compile(model, x)
        assert_same(compiled, model, x)
    assert_same(compiled, model, x)
    assert_same(compiled, model, torch.randn(2, 3, 11, 9))


def test_negated_views() -> None:
    model, z = nn.Conv2d(3, 8, 3).eval(), torch.randn(1, 3, 9, 9, dtype=torch.complex64)
    x = z.conj().imag
    assert x.is_neg()
    assert_same(compile(model, x), model, x)


def test_networks_are_prepared_from_several_threads_while_they_run_themselves() -> None:
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
def test_threads_that_share_out_the_channels_of_a_classifier_give_what_one_gives(
    outputs: int, dtype: torch.dtype
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 1280, 4), nn.Flatten(), nn.Linear(1280, outputs)).eval()
    x = torch.randn(1, 3, 4, 4)
    one, two = (compile(model, x, threads=threads, dtype=dtype) for threads in (1, 2))
    (prepared,) = two._schedules.values()
    if cache_bytes(2) <= 4 << 20:  # bytes, of which the weights fill more than half
        assert prepared.plan.steps[0].operations[-1].convolution.channel_splits == 2
    assert torch.equal(one(x), two(x))
    assert one.verify(x).error < (1e-5 if dtype == torch.float32 else 2e-2)


def test_a_compiled_network_is_its_own_copy_and_is_not_pickled() -> None:
    compiled = compile(nn.Conv2d(3, 8, 3), torch.randn(1, 3, 9, 9))
    assert copy.deepcopy(compiled) is compiled
    with pytest.raises(SeparableError, match=r"cannot be pickled: pickle the network, and compile it"):
        pickle.dumps(compiled)


def test_other_objects_and_devices_are_refused() -> None:
    with pytest.raises(SeparableValueError, match=r"model is a function: expected a network"):
        compile(lambda x: x, torch.randn(1, 3, 9, 9))  # type: ignore[arg-type]
    with pytest.raises(SeparableError, match=r"weights are on meta: move the network to the CPU"):
        compile(nn.Conv2d(3, 8, 3, device="meta"), torch.randn(1, 3, 9, 9))


def test_one_number_for_each_image_is_verified() -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 8), nn.Flatten(0)).eval()
    assert compile(model, torch.randn(2, 3, 8, 8)).verify(torch.randn(2, 3, 8, 8)).error < 1e-5


def test_many_threads_calling_one_network_get_identical_results() -> None:
    model, x = trained_like(ts.models.resnet20()), torch.randn(4, 1, 3, 32, 32)
    compiled = compile(model, x[0], threads=1)
    alone = [compiled(image).clone() for image in x]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: compiled(x[i % 4]), range(200)))
    assert all(torch.equal(result, alone[i % 4]) for i, result in enumerate(results))


def test_many_threads_that_each_share_out_their_work_get_identical_results() -> None:
    model = trained_like(ts.models.mobilenet_v1(0.25))
    images = torch.randn(8, 1, 3, 64, 64)
    compiled = compile(model, images[0], threads=3)
    expected = [compiled(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            got = list(pool.map(compiled, images))
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    model, x = trained_like(ts.models.mobilenet_v1(0.5)), torch.randn(1, 3, 64, 64)
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


def test_repeated_calls_keep_their_memory() -> None:
    import resource

    model, x = trained_like(ts.models.mobilenet_v1(0.25)), torch.randn(1, 3, 32, 32)
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
    model, x = trained_like(ts.models.mobilenet_v2(0.35)), torch.randn(1, 3, 64, 64)
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
        (torch.randn(3, 8, 8), r"shape \(3, 8, 8\): expected \(N, C, H, W\)"),
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


@pytest.mark.parametrize("size", [(16, 16), (17, 15)])
@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
def test_padding_on_one_side_is_part_of_the_convolution(size: tuple[int, int], kernel: int) -> None:
    model = nn.Sequential(
        nn.ZeroPad2d((0, kernel - 1, 1, kernel - 1)),
        nn.Conv2d(3, 8, kernel, 2),
        nn.ReLU(),
        nn.ZeroPad2d((2, 1, 0, 3)),
        nn.Conv2d(8, 8, kernel, padding=1, groups=8),
        nn.Conv2d(8, 5, 1),
        nn.Conv2d(5, 4, kernel, padding="same"),
    ).eval()
    x = torch.randn(2, 3, *size)
    compiled = compile(model, x)
    assert compiled.fallbacks == ()
    assert_same(compiled, model, x)


class Padded(nn.Module):
    """Padding that more than one convolution reads, one of which has no kernel, and one that reads single pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.scaled = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3)
        self.pointwise = nn.Conv2d(4, 6, 1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        padded, other = nn.functional.pad(x, (0, 2, 0, 1)), nn.functional.pad(x, (0, 1, 1, 0))
        scaled = nn.functional.conv2d(padded, self.scaled.weight * padded.mean(), self.scaled.bias)
        return self.dense(padded) + scaled + self.pointwise(other)[:, :, 1:-1, 1:-2].mean((2, 3), True)


def test_padding_that_others_read_is_still_there_for_them() -> None:
    model, x = Padded().eval(), torch.randn(2, 4, 9, 9)
    compiled = compile(model, x)
    assert any("conv2d" in text and "its weights are computed" in text for text in compiled.fallbacks)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)


class AlwaysDropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(nn.functional.relu(x), 0.5, training=True)


def test_dropout_of_evaluation_mode_is_kept() -> None:
    compiled = compile(nn.Sequential(nn.Conv2d(3, 8, 1), AlwaysDropping()).eval(), torch.randn(1, 3, 32, 32))
    assert "dropout" in compiled.fallbacks[0]
    zeros = float((compiled(torch.randn(1, 3, 32, 32)) == 0).float().mean())
    assert 0.6 < zeros < 0.9  # half by the ReLU, half of the rest by the dropout


def test_grouped_convolutions_run_without_pytorch() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        nn.Conv2d(24, 48, 3, 2, 1, groups=6),  # as in ResNeXt
        nn.BatchNorm2d(48),
        nn.ReLU(),
        nn.Conv2d(48, 30, 1, groups=3),
        nn.Conv2d(30, 60, 3, groups=30),  # two outputs for each channel, and no pointwise convolution after it
        nn.SiLU(),
    )
    model, x = trained_like(model), torch.randn(2, 3, 17, 15)
    for threads in (1, 3):
        compiled = compile(model, x, threads=threads)
        assert compiled.fallbacks == ()
        assert_same(compiled, model, x)
    counted = 2 * ts.analyze(model, x).macs
    assert sum(node.flops for node in compiled.explain(rounds=2).nodes) == counted


def test_efficientnet_runs_without_pytorch() -> None:
    model, x = trained_like(ts.models.efficientnet_lite0()), torch.randn(1, 3, 65, 64)
    compiled = compile(model, x)
    assert compiled.fallbacks == ()
    assert compiled.verify(x).error <= 1e-5


def test_verification_and_profile() -> None:
    model, x = trained_like(ts.models.resnet20()), torch.randn(2, 3, 32, 32)
    compiled = compile(model, x)
    assert compiled.verify(x).error <= 1e-5
    assert compiled.verify(x).agreement == 1.0
    times = compiled.profile(x, rounds=3)
    assert {"dense", "import", "mean", "copy", "pointwise"} == {each.kind for each in times}
    assert all(each.milliseconds > 0 for each in times)


def test_without_the_library_compile_says_so_and_all_else_works(tmp_path: Path) -> None:
    code = (
        "import torch, torch_separable as ts\n"
        "from torch_separable.runtime.native import bindings\n"
        "bindings._FILE = 'absent.so'\n"
        "print(ts.analyze(torch.nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 8, 8)).macs)\n"
        "try:\n    ts.compile(torch.nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 8, 8))\n"
        "except ts.SeparableError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[0] == "7776"
    assert "this installation has no kernel library" in done.stdout


def test_a_library_of_another_version_is_refused(tmp_path: Path) -> None:
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
    assert f"{other} is of another version of torch-separable: reinstall the package" in done.stdout


def test_dense_convolution_to_one_channel_is_not_taken_for_a_depthwise_one() -> None:
    head = nn.Sequential(nn.Conv2d(12, 8, 1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1), nn.Sigmoid()).eval()
    x = torch.randn(2, 12, 9, 7)
    assert_same(compile(head, x), head, x)
