"""The precision of compiled networks: bfloat16 accuracy and memory, infinities, and fallbacks in float32."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import torch_separable as ts
from compile_cases import NETWORKS, randomize_batch_norms
from torch_separable.errors import SeparableValueError
from torch_separable.runtime import compile, instruction_sets


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("isa", list(instruction_sets()) if ts.runtime.available() else [])
def test_bfloat16_error_is_within_its_rounding(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_SEPARABLE_ISA", isa)
    make, shape = NETWORKS[name]
    model, x = randomize_batch_norms(make()), torch.randn(shape)
    one, two = (compile(model, x, threads=n, dtype=torch.bfloat16) for n in (1, 2))
    assert one.fallbacks == ()
    found = one.verify(x)
    assert str(found).startswith("bfloat16: largest difference")
    assert 1e-4 < found.error < 5e-2  # every layer rounds by 2^-9 at most, of values of all signs
    assert one(x).dtype == torch.float32
    # Threads share the work out in other parts, whose sums are rounded to bfloat16 alike but for those near a tie.
    torch.testing.assert_close(one(x), two(x), rtol=2e-2, atol=2e-2 * float(one(x).abs().max()))


def test_bfloat16_is_at_least_as_accurate_as_autocast() -> None:
    model, x = randomize_batch_norms(ts.models.mobilenet_v1(0.5)), torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            theirs = model(x).float()
    ours = compile(model, x, dtype=torch.bfloat16)(x)
    assert float((ours - expected).norm()) <= float((theirs - expected).norm())


def test_bfloat16_halves_the_memory_traffic() -> None:
    model, x = randomize_batch_norms(ts.models.mobilenet_v1(0.5)), torch.randn(1, 3, 64, 64)
    narrow, full = (compile(model, x, threads=1, dtype=d).explain(rounds=2) for d in (torch.bfloat16, torch.float32))
    for ours, theirs in zip(narrow.nodes, full.nodes, strict=True):
        assert ours.flops == theirs.flops
        assert ours.bytes < 0.65 * theirs.bytes  # depthwise kernels and biases stay as they are
    assert narrow.peak.precision == "bfloat16"
    assert "bfloat16, 1 thread" in str(narrow)


def test_fallbacks_of_a_bfloat16_network_read_float32() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.LogSoftmax(1), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(144, 5)
    ).eval()
    x = torch.randn(2, 3, 8, 8)
    compiled = compile(model, x, dtype=torch.bfloat16)
    assert any("log_softmax" in text for text in compiled.fallbacks)
    assert compiled.verify(x).error < 2e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8, "bfloat16"])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(SeparableValueError, match=r"dtype=.*: must be torch.float32 or torch.bfloat16"):
        compile(nn.Conv2d(3, 8, 3), torch.randn(1, 3, 8, 8), dtype=dtype)


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


def test_shapes_that_need_another_packing_get_it() -> None:
    """Dense kernels read lines of 4 channels in bfloat16, where these are long enough, and of 3 where they are not."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    x, narrow = torch.randn(1, 3, 40, 40), torch.randn(1, 3, 40, 6)
    compiled = compile(model, x, dtype=torch.bfloat16)
    for images in (x, narrow, x):
        assert torch.equal(compiled(images), compile(model, images, dtype=torch.bfloat16)(images))
    plans = [prepared.plan for prepared in compiled._schedules.values()]
    if compiled.kernels.name == "avx512bf16":  # others multiply floats, of which a row of any number is a line
        assert len({tuple(piece.data_ptr() for piece in plan.weights) for plan in plans}) == 2
