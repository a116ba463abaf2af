"""The fused operator and the layers that use it compute what the plain layers do, and leave training as it was."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import torch_separable as ts
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.nn import DepthwiseSeparableConv2d
from torch_separable.runtime import fuse_modules
from torch_separable.runtime.modules import FusedSeparableConv2d
from torch_separable.runtime.ops import separable_conv2d

NONE, RELU = [0, -math.inf, math.inf], [0, 0.0, math.inf]


def randomised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max().clamp_min(1e-2))


ACTIVATIONS = [
    None, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.GELU, nn.LeakyReLU, nn.Identity,
    lambda: nn.Hardtanh(-0.5, 2.0), lambda: nn.GELU("tanh"),
]  # fmt: skip
NORMS = [None, nn.BatchNorm2d, lambda channels: nn.BatchNorm2d(channels, affine=False), lambda channels: nn.Identity()]


@settings(max_examples=100)
@given(st.data())
def test_a_fused_layer_computes_what_its_layers_do(data: st.DataObject) -> None:
    draw = data.draw
    padding = draw(st.one_of(st.just("same"), st.integers(0, 3), st.tuples(st.integers(0, 2), st.integers(0, 3))))
    layer = DepthwiseSeparableConv2d(
        draw(st.integers(1, 20)),
        draw(st.integers(1, 24)),
        draw(st.one_of(st.integers(1, 5), st.tuples(st.integers(1, 4), st.integers(1, 4)))),
        stride=draw(st.integers(1, 3)),
        padding=padding,
        dilation=draw(st.integers(1, 2)),
        depth_multiplier=draw(st.integers(1, 3)),
        bias=draw(st.booleans()),
        order=draw(st.sampled_from(["depthwise_first", "pointwise_first"])),
        norm_layer=draw(st.sampled_from(NORMS)),
        act_layer=draw(st.sampled_from(ACTIVATIONS)),
        norm_between=draw(st.booleans()),
        act_between=draw(st.booleans()),
    )
    plain = randomised(nn.Sequential(layer))
    fused = copy.deepcopy(plain)
    assert fuse_modules(fused).fused == ("0",)
    size = [draw(st.integers(9, 20)) for _ in range(2)]  # no kernel reaches further than 9 pixels
    x = torch.randn(draw(st.integers(1, 2)), layer.in_channels, *size)
    if draw(st.booleans()):
        x = x.to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert_close(fused(x), plain.double()(x.double()).float())


def network() -> nn.Module:
    return randomised(ts.models.mobilenet_v1(0.25))


def test_names_of_the_state_stay_and_weights_that_are_loaded_count() -> None:
    model, x = network(), torch.randn(2, 3, 32, 32)
    other = randomised(ts.models.mobilenet_v1(0.25))
    names = list(model.state_dict())
    assert len(fuse_modules(model).fused) == 13
    assert list(model.state_dict()) == names
    with torch.no_grad():
        model(x)
        model.load_state_dict(other.state_dict())
        assert_close(model(x), other(x))
        model.stem[1].running_mean.add_(0.5)
        model.blocks[3].bn1.running_var.mul_(2)
        other.load_state_dict(model.state_dict())
        assert_close(model(x), other(x))


def test_training_runs_the_layers_themselves() -> None:
    plain, x = network(), torch.randn(4, 3, 32, 32)
    fused = copy.deepcopy(plain)
    fuse_modules(fused)
    for model in (plain.train(), fused.train()):
        model(x).square().mean().backward()
    for (name, one), (_, two) in zip(plain.named_parameters(), fused.named_parameters(), strict=True):
        assert one.grad is not None, name
        assert torch.equal(one.grad, two.grad), name
    assert all(torch.equal(one, two) for one, two in zip(plain.buffers(), fused.buffers(), strict=True))


def test_parts_in_training_mode_and_hooks_run_the_layers_themselves() -> None:
    model = randomised(nn.Sequential(DepthwiseSeparableConv2d(4, 8, 3, padding=1, norm_layer=nn.BatchNorm2d)))
    plain, x = copy.deepcopy(model), torch.randn(2, 4, 8, 8)
    fuse_modules(model)
    called: list[nn.Module] = []
    for network in (model, plain):
        network[0].bn1.train()
    model[0].conv_pw.register_forward_hook(lambda module, args, output: called.append(module))
    with torch.no_grad():
        assert_close(model(x), plain(x))
        assert torch.equal(model[0].bn1.running_mean, plain[0].bn1.running_mean)
    assert called


def test_another_default_type_changes_nothing() -> None:
    model = randomised(nn.Sequential(DepthwiseSeparableConv2d(4, 8, 3, padding=1), nn.Conv2d(8, 2, 1)))
    plain, x = copy.deepcopy(model), torch.randn(2, 4, 8, 8)
    fuse_modules(model)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            assert_close(model(x), plain(x))
    finally:
        torch.set_default_dtype(torch.float32)


def test_gradients_in_evaluation_mode_are_those_of_the_layers() -> None:
    model, x = network(), torch.randn(1, 3, 32, 32, requires_grad=True)
    model(x).sum().backward()
    expected, x.grad = x.grad, None
    fuse_modules(model.requires_grad_(False))
    model(x).sum().backward()
    assert x.grad is not None
    assert expected is not None
    torch.testing.assert_close(x.grad, expected)


class Counting(nn.ReLU):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        return super().forward(x)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"groups": 2}, "its pointwise convolution has 2 groups"),
        ({"padding_mode": "reflect", "padding": 1}, "it pads with reflect, not with zeros"),
        ({"norm_layer": nn.InstanceNorm2d}, "bn1 is a InstanceNorm2d, which cannot be folded into weights"),
        ({"norm_layer": lambda n: nn.BatchNorm2d(n, track_running_stats=False)}, "bn1 has no running statistics"),
        ({"act_layer": Counting}, "act1 is a Counting, which has no kernel"),
    ],
)
def test_unsupported_layers_are_not_replaced(options: dict[str, object], reason: str) -> None:
    model = nn.Sequential(DepthwiseSeparableConv2d(4, 6, 3, **options))  # type: ignore[arg-type]
    done = fuse_modules(model)
    assert (done.fused, done.kept) == ((), {"0": reason})
    assert f"0 was not replaced: {reason}." in str(done)
    assert type(model[0]) is DepthwiseSeparableConv2d


def test_hooks_subclasses_and_the_model_itself() -> None:
    class Own(DepthwiseSeparableConv2d):
        pass

    hooked = DepthwiseSeparableConv2d(4, 6, 3)
    hooked.conv_pw.register_forward_hook(lambda *_: None)
    done = fuse_modules(nn.Sequential(Own(4, 4, 3), hooked))
    assert done.fused == ()
    assert done.kept["0"].startswith("it is a Own")
    assert done.kept["1"].startswith("its child modules have hooks")
    with pytest.raises(SeparableError, match=r"wrap it in nn\.Sequential"):
        fuse_modules(DepthwiseSeparableConv2d(4, 6, 3))


def test_layer_with_two_names_stays_one_layer() -> None:
    layer = DepthwiseSeparableConv2d(4, 4, 3, padding=1)
    model = nn.Sequential(layer, nn.ReLU(), layer).eval()
    assert fuse_modules(model).fused == ("0", "2")
    assert model[0] is model[2]
    assert fuse_modules(model).fused == ()


def test_fused_networks_are_captured_copied_and_pickled() -> None:
    plain, x = network(), torch.randn(2, 3, 32, 32)
    fused = copy.deepcopy(plain)
    fuse_modules(fused)
    with torch.no_grad():
        expected = plain(x)
        fused(x)
        exported = torch.export.export(fused, (x,))
        assert sum("separable_conv2d" in str(node.target) for node in exported.graph.nodes) == 13
        assert_close(exported.module()(x), expected)
        for copied in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
            assert isinstance(copied.blocks[0], FusedSeparableConv2d)
            assert_close(copied(x), expected)


def separable_inputs(pointwise_first: bool, rank: int = 2) -> tuple[object, ...]:
    x = torch.randn(2, 10, 9, 8)
    first = torch.randn(6 * rank, 10, 1, 1) if pointwise_first else torch.randn(10 * rank, 1, 3, 2)
    second = torch.randn(6, rank, 3, 2) if pointwise_first else torch.randn(6, 10 * rank, 1, 1)
    return (
        x, first, torch.randn(len(first)), second, torch.randn(6), [2, 1], [1, 0, 2, 1], [1, 2], RELU, NONE,
        pointwise_first,
    )  # fmt: skip


@pytest.mark.parametrize("pointwise_first", [False, True])
@pytest.mark.parametrize("rank", [1, 2])
def test_the_operator_passes_pytorchs_own_check(pointwise_first: bool, rank: int) -> None:
    arguments = separable_inputs(pointwise_first, rank)
    checks = torch.library.opcheck(separable_conv2d, arguments)
    assert set(checks.values()) == {"SUCCESS"}
    x, first, first_bias, second, second_bias, stride, (left, right, top, bottom), dilation, *_ = arguments  # type: ignore[misc]
    padded: Sequence[int] = (left, right, top, bottom)
    if pointwise_first:
        inner = F.pad(F.conv2d(x, first, first_bias).relu(), padded)  # type: ignore[arg-type]
        expected = F.conv2d(inner, second, second_bias, stride, 0, dilation, 6)  # type: ignore[arg-type]
    else:
        inner = F.conv2d(F.pad(x, padded), first, first_bias, stride, 0, dilation, 10).relu()  # type: ignore[arg-type]
        expected = F.conv2d(inner, second, second_bias)  # type: ignore[arg-type]
    assert_close(separable_conv2d(*arguments), expected)  # type: ignore[arg-type]


def test_the_operator_refuses_what_does_not_fit() -> None:
    x, first, *rest = separable_inputs(False)
    with pytest.raises(SeparableValueError, match=r"\(2, 9, 9, 8\)"):
        separable_conv2d(x[:, :9], first, *rest)  # type: ignore[index, arg-type]
    with pytest.raises(SeparableValueError, match="expected"):
        separable_conv2d(x.double(), first, *rest)  # type: ignore[attr-defined, arg-type]


def test_packed_weights_are_freed_with_the_weights() -> None:
    from torch_separable.runtime import ops

    before = len(ops._prepared)
    arguments = separable_inputs(False)
    separable_conv2d(*arguments)  # type: ignore[arg-type]
    assert len(ops._prepared) == before + 1
    del arguments
    assert len(ops._prepared) == before
