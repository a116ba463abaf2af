"""Networks put together at random give PyTorch's outputs, on any number of threads, with caches large and small."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import torch_separable as ts
from torch_separable.conversion.layers import find_convertible
from torch_separable.runtime import available, compile, instruction_sets

pytestmark = [
    pytest.mark.skipif(not available(), reason="the package was built without its kernel library"),
    pytest.mark.usefixtures("running_threads"),
]

ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x, F.relu, F.relu6, F.leaky_relu, F.silu, F.hardswish, F.gelu, F.hardsigmoid,
]  # fmt: skip

KINDS = (
    "convolution", "separable", "pointwise_first", "inverted", "residual", "attention", "pool", "norm", "grouped",
    "padded", "strided", "other",
)  # fmt: skip

# What each of the modules that schedule takes for the size of a cache; small ones make small layers large.
CACHES = [f"torch_separable.runtime.planning.{module}.cache_bytes" for module in ("schedule", "tiling", "depth_first")]


class Random(nn.Module):
    """Each step reads one of the tensors before it, or two of one shape; those that nothing reads are returned."""

    def __init__(self, draw: Callable[[st.SearchStrategy[int]], int], channels: int) -> None:
        super().__init__()
        self.draw, self.layers = draw, nn.ModuleList()
        # What computes each value, given this network and others of its values.
        self.steps: list[tuple[Callable[..., Tensor], tuple[int, ...]]] = []
        self.channels = [channels]
        for _ in range(self.upto(1, 7)):
            self.grow()

    def upto(self, first: int, last: int) -> int:
        return self.draw(st.integers(first, last))

    def one(self, *of: int) -> int:
        return self.draw(st.sampled_from(of))

    def add(self, step: Callable[..., Tensor], *inputs: int, channels: int) -> int:
        self.steps.append((step, inputs))
        self.channels.append(channels)
        return len(self.steps)

    def layer(self, module: nn.Module, source: int, channels: int) -> int:
        self.layers.append(module)
        activation = ACTIVATIONS[self.upto(0, len(ACTIVATIONS) - 1)]
        at = len(self.layers) - 1
        return self.add(lambda net, x: activation(net.layers[at](x)), source, channels=channels)

    def convolution(
        self, source: int, outputs: int, groups: int = 1, pointwise: bool = False, same: bool = False
    ) -> int:
        kernel = 1 if pointwise else self.one(3, 5) if same else self.one(1, 2, 3, 5)
        stride = 1 if same or pointwise else self.one(1, 1, 2)
        dilation = 1 if kernel > 3 or pointwise else self.one(1, 1, 2)
        padding = dilation * (kernel - 1) // 2 if same else self.upto(dilation * (kernel // 2), dilation * (kernel - 1))
        module = nn.Conv2d(
            self.channels[source], outputs, kernel, stride, padding, dilation, groups, bias=bool(self.upto(0, 1))
        )
        return self.layer(module, source, outputs)

    def grow(self) -> None:
        source = self.upto(0, len(self.channels) - 1)
        channels = self.channels[source]
        outputs = self.one(1, 4, 7, 8, 16, 24, 33, 64)
        match self.one(*KINDS):
            case "convolution":
                self.convolution(source, outputs)
            case "separable":
                rank = self.upto(1, 3)
                self.convolution(self.convolution(source, channels * rank, channels), outputs, pointwise=True)
            case "pointwise_first":
                between = outputs * self.upto(1, 3)
                self.convolution(self.convolution(source, between, pointwise=True), outputs, groups=outputs)
            case "inverted":
                between = self.convolution(source, outputs, pointwise=True)
                between = self.convolution(between, outputs, groups=outputs, same=True)
                between = self.convolution(between, channels, pointwise=True)
                self.add(lambda _, x, y: x + y, between, source, channels=channels)
            case "residual":
                rank = self.upto(1, 2)
                between = self.convolution(source, channels * rank, channels, same=True)
                between = self.convolution(between, channels, pointwise=True)
                both = self.add(lambda _, x, y: x + y, between, source, channels=channels)
                self.layer(nn.Identity(), both, channels)
            case "attention":
                few = nn.Sequential(
                    nn.AdaptiveAvgPool2d(1),
                    nn.Conv2d(channels, 4, 1),
                    nn.ReLU(),
                    nn.Conv2d(4, channels, 1),
                    nn.Sigmoid(),
                )
                self.layers.append(few)
                at = len(self.layers) - 1
                self.add(lambda net, x: x * net.layers[at](x), source, channels=channels)
            case "pool":
                kind = nn.MaxPool2d if self.upto(0, 1) else nn.AvgPool2d
                self.layer(kind(3, self.upto(1, 2), 1, ceil_mode=bool(self.upto(0, 1))), source, channels)
            case "norm":
                between = self.convolution(source, outputs) if self.upto(0, 1) else source
                norm = nn.BatchNorm2d(self.channels[between])
                nn.init.normal_(norm.running_mean, std=0.1)  # type: ignore[arg-type]
                nn.init.uniform_(norm.running_var, 0.5, 1.5)  # type: ignore[arg-type]
                nn.init.normal_(norm.bias, std=0.1)
                self.layer(norm, between, self.channels[between])
            case "grouped":
                groups = self.one(2, 4)
                between = self.convolution(source, groups * 6, pointwise=True)
                self.convolution(between, groups * self.upto(1, 9), groups)
            case "padded":
                around = [self.upto(0, 2) for _ in range(4)]
                self.convolution(self.add(lambda _, x: F.pad(x, around), source, channels=channels), outputs)
            case "strided":
                self.add(lambda _, x: x[:, :, ::2, ::2], source, channels=channels)
            case "other":  # has no kernel
                self.add(lambda _, x: x.softmax(1) + torch.roll(x, 1, 3), source, channels=channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        values = [x]
        for step, inputs in self.steps:
            values.append(step(self, *(values[i] for i in inputs)))
        read = {i for _, inputs in self.steps for i in inputs}
        return [value for i, value in enumerate(values) if i not in read]


class Classifier(nn.Module):
    """Classes that a linear layer makes of all outputs' means."""

    def __init__(self, body: Random, classes: int) -> None:
        super().__init__()
        read = {i for _, inputs in body.steps for i in inputs}
        channels = sum(count for i, count in enumerate(body.channels) if i not in read)
        self.body, self.head = body, nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        means = [value.mean((2, 3)) for value in self.body(x)]
        return self.head(means[0] if len(means) == 1 else torch.cat(means, 1))


def distances(some: Tensor | list[Tensor], others: Tensor | list[Tensor]) -> list[float]:
    """The largest differences, as shares of the largest values of the others, or of the size of what is summed."""
    pairs = list(zip(tree_leaves(some), tree_leaves(others), strict=True))
    assert all(x.shape == y.shape for x, y in pairs)
    return [float((x.float() - y).abs().max() / y.abs().max().clamp_min(0.3)) for x, y in pairs]


@settings(max_examples=75, deadline=None)
@given(st.data())
def test_random_networks(data: st.DataObject) -> None:
    body = Random(data.draw, data.draw(st.sampled_from([1, 3, 8, 20])))
    classes = data.draw(st.sampled_from([0, 1, 10]))
    model = (Classifier(body, classes) if classes else body).eval()
    images, *size = data.draw(st.integers(1, 4)), data.draw(st.integers(5, 20)), data.draw(st.integers(5, 20))
    batches = [torch.randn(n, body.channels[0], *size) for n in (images, data.draw(st.integers(1, 4)))]
    threads, dtype = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_SEPARABLE_ISA", data.draw(st.sampled_from(sorted(instruction_sets(dtype)))))
        if small := data.draw(st.sampled_from([0, 2**12, 2**15])):
            for name in CACHES:
                patch.setattr(name, lambda level: small)
            patch.setattr("torch_separable.runtime.planning.depth_first._NEAR", small)
        compiled = compile(model, batches[0], threads=threads, dtype=dtype)
        for x in batches:
            compiled(torch.full_like(x, math.inf))  # whatever that leaves in memory, the next call must not read
            got = compiled(x.contiguous(memory_format=torch.channels_last))
            with torch.no_grad():
                expected = model(x)
                with torch.autocast("cpu", torch.bfloat16):
                    half = distances(model(x), expected)
            # Sums that nearly cancel lose digits of bfloat16: PyTorch's own say how many.
            allowed = [1e-4 if dtype is torch.float32 else 10 * max(0.01, digits) for digits in half]
            assert all(d <= most for d, most in zip(distances(got, expected), allowed, strict=True))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_nonfinite_values_propagate_as_in_pytorch(data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # PyTorch's GELU of infinity is NaN in vectors, and infinite outside of them.
        patch.setitem(globals(), "ACTIVATIONS", [act for act in ACTIVATIONS if act is not F.gelu])
        model = Random(data.draw, data.draw(st.sampled_from([1, 3, 8, 20]))).eval()
        x = torch.randn(data.draw(st.integers(1, 3)), model.channels[0], 9, 14)
        patch.setenv("TORCH_SEPARABLE_ISA", data.draw(st.sampled_from(sorted(instruction_sets()))))
        if data.draw(st.booleans()):
            for name in (*CACHES, "torch_separable.runtime.planning.depth_first._NEAR"):
                patch.setattr(name, 2**12 if name.endswith("_NEAR") else lambda level: 2**12)
        compiled = compile(model, x, threads=data.draw(st.integers(1, 3)))
        x.flatten()[data.draw(st.integers(0, x.numel() - 1))] = data.draw(
            st.sampled_from([math.inf, -math.inf, math.nan])
        )
        with torch.no_grad():
            expected = tree_leaves(model(x))
        for got, wanted in zip(tree_leaves(compiled(x)), expected, strict=True):
            assert torch.equal(got.isnan(), wanted.isnan())
            assert torch.equal(got[wanted.isinf()], wanted[wanted.isinf()])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_networks_converted_at_full_rank(data: st.DataObject) -> None:
    body = Random(data.draw, data.draw(st.sampled_from([1, 3, 8])))
    model, images = Classifier(body, 10).eval(), torch.randn(8, body.channels[0], 12, 11)
    if not find_convertible(model).convertible:
        return
    statistics = ts.calibrate(model, images)
    order = data.draw(st.sampled_from(["depthwise_first", "pointwise_first"]))
    converted = ts.apply(model, ts.plan(model, statistics, rank=25, order=order), statistics)
    with torch.no_grad():
        expected = model(images)
        assert max(distances(converted(images), expected)) <= 1e-4
    threads = data.draw(st.integers(1, 3))
    assert max(distances(compile(converted, images, threads=threads)(images), expected)) <= 1e-4
