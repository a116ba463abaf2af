"""Operators around convolutions: views, concatenations, resampling, norms and broadcasts, each against PyTorch."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_separable.runtime import compile
from torch_separable.runtime.graph.lower import lower
from torch_separable.runtime.graph.reference import run_program


class Made(nn.Module):
    """A network of named layers and a function of them."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def conv(inputs: int, outputs: int, size: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, **options)


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def split_and_joined(self: Any, x: Tensor) -> Tensor:
    first, second = x.split([5, 11], 1)
    return torch.cat([second, self.a(first), first], 1)


def standardized(self: Any, x: Tensor) -> Tensor:
    weight = self.a.weight
    return F.conv2d(x, (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True))


def dense_block(self: Any, x: Tensor) -> Tensor:
    one = self.a(x)
    two = self.b(torch.cat([x, one], 1))
    return self.c(torch.cat([x, one, two], 1))


def convnext_block(self: Any, x: Tensor) -> Tensor:
    y = self.norm(self.a(x).permute(0, 2, 3, 1))
    return x + (self.scale * self.second(F.gelu(self.first(y)))).permute(0, 3, 1, 2)


def tokens(self: Any, x: Tensor) -> Tensor:
    return self.linear(self.norm(self.a(x).flatten(2).transpose(1, 2))).mean(1)


def vit_block(self: Any, x: Tensor) -> Tensor:
    """A class token, position embedding, and an encoder block of two heads, as timm writes it."""
    x = self.a(x).flatten(2).transpose(1, 2)
    x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
    n, length, c = x.shape
    q, k, v = self.qkv(self.norm(x)).reshape(n, length, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
    x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, c))
    x = x + self.second(F.gelu(self.first(self.norm(x))))
    return self.head(x[:, 0])


def levit_block(self: Any, x: Tensor) -> Tensor:
    """Attention with a bias of positions, whose keys are narrower than its values, with a batch norm of tokens."""
    x = self.a(x).flatten(2).transpose(1, 2)
    n, length, _ = x.shape
    y = self.qkv(x)
    y = self.norm(y.flatten(0, 1)).reshape_as(y)
    q, k, v = y.view(n, length, 2, -1).split([4, 4, 9], dim=3)
    q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1), v.permute(0, 2, 1, 3)
    weights = (q @ k * 4**-0.5 + self.bias).softmax(dim=-1)
    return x + self.out(F.hardswish((weights @ v).transpose(1, 2).reshape(n, length, 18)))


def single_head(self: Any, x: Tensor) -> Tensor:
    """Attention of one head by ``bmm``, over the pixels of an image."""
    n, c, h, w = x.shape
    q, k, v = (layer(x).flatten(2) for layer in (self.a, self.b, self.c))
    weights = torch.bmm(q.transpose(1, 2), k).softmax(-1)
    return x + torch.bmm(v, weights.transpose(1, 2)).view(n, c, h, w)


def masked(self: Any, x: Tensor) -> Tensor:
    """Causal attention, and attention by a mask of booleans."""
    x = self.a(x).flatten(2).transpose(1, 2)
    heads = x.unflatten(2, (3, 7)).transpose(1, 2)
    causal = F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    return causal + F.scaled_dot_product_attention(heads, heads, heads, self.mask, scale=0.3)


NETWORKS: dict[str, Made] = {
    "ViT block": Made(
        vit_block,
        a=conv(16, 24, 4, stride=4),
        token=nn.Parameter(torch.randn(1, 1, 24)),
        norm=nn.LayerNorm(24),
        position=nn.Parameter(torch.randn(1, 17, 24)),
        qkv=nn.Linear(24, 72),
        out=nn.Linear(24, 24),
        first=nn.Linear(24, 96),
        second=nn.Linear(96, 24),
        head=nn.Linear(24, 10),
    ),
    "LeViT block": Made(
        levit_block,
        a=conv(16, 16, 4, stride=4),
        qkv=nn.Linear(16, 34, bias=False),
        norm=nn.BatchNorm1d(34),
        bias=nn.Parameter(torch.randn(2, 16, 16)),
        out=nn.Linear(18, 16),
    ),
    "attention of one head": Made(single_head, a=conv(16, 8), b=conv(16, 8), c=conv(16, 16)),
    "attention with masks": Made(
        masked, a=conv(16, 21, 4, stride=4), mask=nn.Buffer(torch.rand(16, 16).fill_diagonal_(1) > 0.5)
    ),
    "means over channels": Made(
        lambda s, x: s.b(x.mean(1, keepdim=True).sigmoid() * s.a(x)) + s.a(x).mean(1)[:, None],
        a=conv(16, 24),
        b=conv(24, 3),
    ),
    "product with weights": Made(
        lambda s, x: s.a(x).flatten(2).transpose(1, 2) @ s.weight,
        a=conv(16, 24),
        weight=nn.Parameter(torch.randn(24, 9)),
    ),
    "concatenation with weights": Made(
        lambda s, x: torch.cat(
            [s.weight.expand(len(x), -1, -1, -1), s.a(x), s.a.weight.view(1, 5, 4, 4).tile(len(x), 1, 4, 4)], 1
        ),
        a=conv(16, 5),
        weight=nn.Parameter(torch.randn(1, 3, 16, 16)),
    ),
    "concatenation": Made(
        lambda s, x: s.c(torch.cat([s.a(x), s.b(x)], 1)), a=conv(16, 16, 3, padding=1), b=conv(16, 24), c=conv(40, 8, 3)
    ),
    "concatenation of odd channels": Made(
        lambda s, x: s.c(torch.cat([s.a(x), s.b(x), x], 1)), a=conv(16, 5), b=conv(16, 7), c=conv(28, 8)
    ),
    "concatenation of rows": Made(lambda s, x: torch.cat([s.a(x), x[:, :5]], 2), a=conv(16, 5)),
    "concatenation of images": Made(lambda s, x: torch.cat([s.a(x), x], 0), a=conv(16, 16)),
    "one part twice": Made(lambda s, x: torch.cat([s.a(x)] * 2, 1), a=conv(16, 16)),
    "chunks": Made(
        lambda s, x: torch.cat([s.a(x.chunk(2, 1)[0]), x.chunk(2, 1)[1]], 1), a=conv(8, 8, 3, padding=1, groups=8)
    ),
    "split of odd channels": Made(split_and_joined, a=conv(5, 5, 3, padding=1)),
    "dense block": Made(dense_block, a=conv(16, 8, 3, padding=1), b=conv(24, 8), c=conv(32, 8)),
    "channel shuffle": Made(
        lambda s, x: s.b(shuffled(s.a(x), 4)), a=conv(16, 16, groups=4), b=conv(16, 16, 3, groups=16)
    ),
    "pixel shuffle": Made(lambda s, x: F.pixel_shuffle(s.a(x), 2), a=conv(16, 12, 3)),
    "pixel unshuffle": Made(lambda s, x: s.a(F.pixel_unshuffle(x, 2)), a=conv(64, 12, 3)),
    "nearest": Made(lambda s, x: s.b(F.interpolate(s.a(x), scale_factor=2)), a=conv(16, 8), b=conv(8, 4, 3)),
    "nearest to a size": Made(lambda s, x: F.interpolate(s.a(x), size=(17, 23)), a=conv(16, 8)),
    "bilinear": Made(lambda s, x: F.interpolate(s.a(x), scale_factor=2, mode="bilinear"), a=conv(16, 8)),
    "bilinear, aligned corners": Made(
        lambda s, x: F.interpolate(s.a(x), size=(19, 5), mode="bilinear", align_corners=True), a=conv(16, 8)
    ),
    "numbers": Made(
        lambda s, x: 1 - (2 * s.a(x) / 3 - 1) + s.scale * s.b(x),
        a=conv(16, 8),
        b=conv(16, 8),
        scale=nn.Parameter(torch.randn(1, 8, 1, 1)),
    ),
    "product with one channel": Made(
        lambda s, x: s.a(x) * torch.sigmoid(s.b(x)) - s.a(x), a=conv(16, 8), b=conv(16, 1)
    ),
    "quotient of tensors": Made(lambda s, x: s.a(x) / (s.b(x).abs() + 1), a=conv(16, 11), b=conv(16, 11)),
    "negation and tanh": Made(lambda s, x: -(torch.tanh(s.a(x)) ** 2), a=conv(16, 8)),
    "activations": Made(lambda s, x: F.mish(s.a(x)) + F.softplus(s.b(x)) + F.elu(s.a(x)), a=conv(16, 8), b=conv(16, 8)),
    "prelu": Made(lambda s, x: s.slope(s.a(x)), a=conv(16, 8), slope=nn.PReLU(8)),
    "ConvNeXt block": Made(
        convnext_block,
        a=conv(16, 16, 7, padding=3, groups=16),
        norm=nn.LayerNorm(16),
        first=nn.Linear(16, 64),
        second=nn.Linear(64, 16),
        scale=nn.Parameter(torch.randn(16)),
    ),
    "group norm": Made(lambda s, x: s.norm(s.a(x)).relu(), a=conv(16, 24), norm=nn.GroupNorm(3, 24)),
    "instance norm": Made(lambda s, x: s.norm(s.a(x)).relu(), a=conv(16, 21), norm=nn.InstanceNorm2d(21, affine=True)),
    "transposed convolution, 2x2": Made(lambda s, x: s.a(x), a=nn.ConvTranspose2d(16, 8, 2, stride=2)),
    "transposed convolution, 4x4": Made(lambda s, x: s.a(x), a=nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1)),
    "transposed convolution, groups": Made(
        lambda s, x: s.a(x), a=nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1, groups=2)
    ),
    "reflection": Made(lambda s, x: s.a(F.pad(x, (1, 2, 3, 1), mode="reflect")), a=conv(16, 12, 3)),
    "replication": Made(lambda s, x: s.a(F.pad(x, (1, 2, 3, 1), mode="replicate")), a=conv(16, 12, 3)),
    "padding with a number": Made(
        lambda s, x: F.max_pool2d(F.pad(s.a(x), (0, 1, 0, 1), value=-3.0), 2), a=conv(16, 12)
    ),
    "softmax": Made(lambda s, x: s.a(x).softmax(1), a=conv(16, 11)),
    "tokens": Made(tokens, a=conv(16, 24, 4, stride=4), norm=nn.LayerNorm(24), linear=nn.Linear(24, 10)),
    "flattened image": Made(
        lambda s, x: s.linear(s.a(x).flatten(1)), a=conv(16, 3, 4, stride=4), linear=nn.Linear(48, 10)
    ),
    "standardized weights": Made(standardized, a=conv(16, 8, 3)),
    "crops": Made(lambda s, x: s.a(x)[:, :, 2:-1, 1:] + s.a(x)[:, :, :-3, :-1], a=conv(16, 8)),
    "flip": Made(lambda s, x: s.a(x.flip(3)), a=conv(16, 8, 3)),
    "adaptive pooling": Made(lambda s, x: F.adaptive_avg_pool2d(s.a(x), 4), a=conv(16, 8)),
    "an image and its channels last": Made(lambda s, x: (s.a(x), s.a(x).permute(0, 2, 3, 1)), a=conv(16, 8)),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_runs_in_kernels_alone_and_gives_what_pytorch_gives(name: str, threads: int) -> None:
    network, x = NETWORKS[name].eval(), torch.randn(2, 16, 16, 16)
    with torch.no_grad():
        expected = network(x)
    compiled = compile(network, x, threads=threads)
    assert compiled.fallbacks == ()
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=2e-5)


def test_a_breakdown_names_every_operation() -> None:
    network = Made(
        lambda s, x: s.norm(F.interpolate(torch.cat([s.a(x), x[:, :5]], 1), scale_factor=2)).softmax(1) * s.b(x).mean(),
        a=conv(16, 5), b=conv(16, 1), norm=nn.GroupNorm(2, 10),
    ).eval()  # fmt: skip
    kinds = [node.kind.partition(":")[0] for node in compile(network, torch.randn(1, 16, 8, 8)).explain(rounds=1).nodes]
    assert {"pointwise", "strided_copy", "resample", "normalize", "softmax"} <= set(kinds)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_in_bfloat16_is_near(name: str) -> None:
    network, x = NETWORKS[name].eval(), torch.randn(1, 16, 16, 16)
    with torch.no_grad():
        expected = network(x)
    got = compile(network, x, threads=1, dtype=torch.bfloat16)(x)
    for ours, theirs in zip(_tensors(got), _tensors(expected), strict=True):
        assert float((ours - theirs).abs().max()) <= 0.05 * float(theirs.abs().max())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_reference_executor_gives_what_pytorch_gives(name: str) -> None:
    network, x = NETWORKS[name].eval(), torch.randn(2, 16, 16, 16)
    with torch.no_grad():
        program, expected = lower(network, x), network(x)
    torch.testing.assert_close(run_program(program, x), expected, rtol=1e-4, atol=2e-5)


def _tensors(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, tuple) else [value]


class Program(nn.Module):
    """A random chain of concatenations, parts, sums and convolutions over a few live values of one image size."""

    def __init__(self, seed: int, steps: int = 8) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.layers = nn.ModuleList()
        self.steps: list[tuple[Any, ...]] = []
        channels = [8]
        for _ in range(steps):
            kind = draw.choice(["conv", "depthwise", "cat", "part", "chunks", "relu", "add", "shuffle", "scale"])
            at = draw.randrange(len(channels))
            c = channels[at]
            if kind == "conv":
                channels.append(draw.choice([3, 8, 16, 24]))
                self.layers.append(conv(c, channels[-1], draw.choice([1, 3]), padding="same"))
                self.steps.append(("layer", at, len(self.layers) - 1))
            elif kind == "depthwise":
                channels.append(c)
                self.layers.append(conv(c, c, 3, padding=1, groups=c))
                self.steps.append(("layer", at, len(self.layers) - 1))
            elif kind == "cat":
                parts = [draw.randrange(len(channels)) for _ in range(draw.randint(2, 3))]
                channels.append(sum(channels[part] for part in parts))
                self.steps.append(("cat", parts))
            elif kind == "part" and c > 1:
                start = draw.choice([0, 8, draw.randrange(c)]) % c
                size = draw.randint(1, c - start)
                channels.append(size)
                self.steps.append(("part", at, start, size))
            elif kind == "chunks" and c % 2 == 0:
                channels.append(c)
                self.steps.append(("chunks", at))
            elif kind == "add":
                other = draw.choice([i for i, more in enumerate(channels) if more == c])
                channels.append(c)
                self.steps.append(("add", at, other))
            elif kind == "shuffle" and c % 2 == 0:
                channels.append(c)
                self.steps.append(("shuffle", at))
            elif kind in ("relu", "scale"):
                channels.append(c)
                self.steps.append((kind, at))
        self.last = len(channels) - 1

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for kind, at, *more in self.steps:
            match kind:
                case "layer":
                    values.append(self.layers[more[0]](values[at]))
                case "cat":
                    values.append(torch.cat([values[part] for part in at], 1))
                case "part":
                    values.append(values[at][:, more[0] : more[0] + more[1]])
                case "chunks":
                    first, second = values[at].chunk(2, 1)
                    values.append(torch.cat([second, first], 1))
                case "add":
                    values.append(values[at] + values[more[0]])
                case "shuffle":
                    values.append(shuffled(values[at], 2))
                case "relu":
                    values.append(values[at].relu())
                case "scale":
                    values.append(values[at] * 0.5 - 0.25)
        return values[-1], values[len(values) // 2]


@pytest.mark.parametrize("first", range(0, 120, 10))
def test_random_networks_of_shared_memory_give_what_pytorch_gives(first: int) -> None:
    for seed in range(first, first + 10):
        torch.manual_seed(seed)
        network = Program(seed).eval()
        x = torch.randn(1 + seed % 2, 8, 5, 6)
        with torch.no_grad():
            expected = network(x)
        compiled = compile(network, x, threads=1 + seed % 3)
        assert compiled.fallbacks == (), seed
        for ours, theirs in zip(compiled(x), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, msg=lambda text, at=seed: f"{at}: {text}")
