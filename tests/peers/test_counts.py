"""Parity with torchinfo, fvcore and PyTorch's own counter: equal, or different by exactly what the reasons come to.

Nothing is downloaded: the networks of ``transformers`` are built from configurations, with random weights. A reason is
a closed form of the shapes that the layers see, written as *the peer's count minus ours*.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import fvcore.nn
import pytest
import torch
import torch.nn.functional as F
import torchinfo
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from torch_separable.cost import analyze
from torch_separable.models import conv_mobilenet, mobilenet_v1, mobilenet_v2, resnet20

BATCH = 2
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Call:
    """One call of a module without children."""

    module: Any
    given: tuple[int, ...]
    returned: tuple[int, ...]

    @property
    def bias(self) -> int:
        return 0 if self.module.bias is None else int(self.module.bias.numel())

    @property
    def weights(self) -> int:
        return int(self.module.weight.numel())

    def pixels(self, shape: tuple[int, ...]) -> int:
        return BATCH * math.prod(shape[2:])


@dataclass(frozen=True)
class Seen:
    """The calls of a forward pass, and the products of two activations, which no module does."""

    calls: tuple[Call, ...]
    products: int

    def of(self, *kinds: type[nn.Module]) -> list[Call]:
        return [call for call in self.calls if isinstance(call.module, kinds)]


def layers_alone(seen: Seen) -> int:
    """What the layers with weights cost, ours."""
    total = sum(call.weights * call.pixels(call.returned) for call in seen.of(*CONVOLUTIONS))
    total += sum(call.weights * call.pixels(call.given) for call in seen.of(*TRANSPOSED))
    return total + sum(call.weights * math.prod(call.returned[:-1]) for call in seen.of(nn.Linear))


def biases(seen: Seen) -> int:
    """Torchinfo counts a bias as one more weight; an addition is no multiply-accumulate."""
    total = sum(call.bias * call.pixels(call.returned) for call in seen.of(*CONVOLUTIONS, *TRANSPOSED))
    return total + sum(call.bias * call.returned[0] for call in seen.of(nn.Linear))


def norm_parameters(seen: Seen) -> int:
    """Torchinfo counts the parameters of a norm, once for each entry of its output's first dimension."""
    norms = [call for call in seen.of(*BATCH_NORMS, nn.LayerNorm) if "Conv" not in type(call.module).__name__]
    return sum((call.weights + call.bias) * call.returned[0] for call in norms)


def norms_taken_for_convolutions(seen: Seen) -> int:
    """Torchinfo takes every class with "Conv" in its name for a convolution: so all of ConvNeXt's norms.

    It multiplies their parameters by all of the output's shape but the second entry, which is the channels' place in a
    convolution: in a norm of channels that come last it is a row of pixels instead.
    """
    norms = [c for c in seen.calls if "Conv" in type(c.module).__name__ and not isinstance(c.module, CONVOLUTIONS)]
    return sum((call.weights + call.bias) * call.pixels(call.returned) for call in norms)


def further_tokens(seen: Seen) -> int:
    """Torchinfo counts a linear layer once for each entry of the first dimension, as if the second held one token."""
    return -sum(call.weights * (math.prod(call.returned[:-1]) - call.returned[0]) for call in seen.of(nn.Linear))


def tables_taken_for_recurrent_weights(seen: Seen) -> int:
    """Torchinfo takes Swin's ``relative_position_bias_table`` for a recurrent bias, which acts at each step."""
    tables = [call for call in seen.calls if hasattr(call.module, "relative_position_bias_table")]
    return sum(call.module.relative_position_bias_table.numel() * math.prod(call.returned[:2]) for call in tables)


def products_outside_modules(seen: Seen) -> int:
    """Torchinfo sees modules: attention's two products, and functional convolutions, are none."""
    return -seen.products


def transposed_by_output(seen: Seen) -> int:
    """Torchinfo counts a transposed convolution by its output's pixels; its weights act once on each of the input's."""
    return sum(call.weights * (call.pixels(call.returned) - call.pixels(call.given)) for call in seen.of(*TRANSPOSED))


def batch_norms(seen: Seen) -> int:
    """Fvcore counts batch normalisation, two for each element; ours is of multiply-accumulates of weights alone."""
    return sum(2 * math.prod(call.given) for call in seen.of(*BATCH_NORMS))


def layer_norms(seen: Seen) -> int:
    """Fvcore counts layer normalisation, five for each element."""
    return sum(5 * math.prod(call.given) for call in seen.of(nn.LayerNorm))


def adaptive_pools(seen: Seen) -> int:
    """Fvcore counts one for each element that an adaptive average pools."""
    return sum(math.prod(call.given) for call in seen.of(nn.AdaptiveAvgPool2d))


def padding_in_words(seen: Seen) -> int:
    """Fvcore has no handler for ``aten::_convolution_mode``, which is a convolution with padding "same" or "valid"."""
    called = [call for call in seen.of(*CONVOLUTIONS) if isinstance(call.module.padding, str)]
    return -sum(call.weights * call.pixels(call.returned) for call in called)


def fused_attention(seen: Seen) -> int:
    """Neither fvcore nor PyTorch's counter knows the CPU's kernel of ``scaled_dot_product_attention``."""
    return -seen.products


class Peculiar(nn.Module):
    """What the others lack: a transposed and a functional convolution, a layer used twice, 1d after 2d."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, groups=1, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4, bias=False)
        self.up = nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1, groups=2)
        self.line = nn.Conv1d(6, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.twice(self.twice(self.down(x))))
        x = F.conv2d(x, torch.ones(6, 1, 3, 3), groups=6)
        return self.line(x.mean(3))  # type: ignore[no-any-return]


Reason = Callable[[Seen], int]
Build = Callable[[], nn.Module]


def pretrained_kind(name: str, **config: Any) -> Build:
    """Build a network of transformers of its configuration."""

    def build() -> nn.Module:
        import transformers  # takes seconds, which only these networks should cost

        made = getattr(transformers, f"{name}Config")(num_labels=10, **config)
        network: nn.Module = getattr(transformers, f"{name}ForImageClassification")(made)
        return network

    return build


@dataclass(frozen=True)
class Network:
    build: Build
    size: tuple[int, int, int]
    torchinfo: tuple[Reason, ...]
    fvcore: tuple[Reason, ...] = ()
    flop_counter: tuple[Reason, ...] = ()
    products: int = 0  # of two activations, for one image


CNN = (biases, norm_parameters)
STAGES: dict[str, Any] = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 2, 1, 1]}
CONVNEXT: dict[str, Any] = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 2, 1, 1]}
VIT: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64,
}  # fmt: skip
# Layers · two products · tokens², a class token among them · width.
VIT_ATTENTION = 2 * 2 * (4 * 4 + 1) ** 2 * 32

NETWORKS: dict[str, Network] = {
    "mobilenet_v1": Network(lambda: mobilenet_v1(0.25, num_classes=10), (3, 64, 64), CNN, (batch_norms,)),
    "conv_mobilenet": Network(lambda: conv_mobilenet(0.25, num_classes=10), (3, 64, 64), CNN, (batch_norms,)),
    "mobilenet_v2": Network(lambda: mobilenet_v2(0.25, num_classes=10), (3, 64, 64), CNN, (batch_norms,)),
    "resnet20": Network(resnet20, (3, 32, 32), CNN, (batch_norms,)),
    "peculiar": Network(
        Peculiar,
        (3, 16, 16),
        torchinfo=(biases, transposed_by_output, products_outside_modules),
        products=14 * 14 * 6 * 9,  # the functional convolution: 16x16 without padding, depthwise
    ),
    "ResNet": Network(pretrained_kind("ResNet", **STAGES), (3, 64, 64), CNN, (batch_norms, adaptive_pools)),
    "RegNet-X": Network(
        pretrained_kind("RegNet", layer_type="x", groups_width=8, **STAGES),
        (3, 64, 64),
        CNN,
        (batch_norms, adaptive_pools),
    ),
    # With squeeze and excitation.
    "RegNet-Y": Network(
        pretrained_kind("RegNet", layer_type="y", groups_width=8, **STAGES),
        (3, 64, 64),
        CNN,
        (batch_norms, adaptive_pools),
    ),
    # Its pointwise convolutions are linear layers over pixels.
    "ConvNeXt": Network(
        pretrained_kind("ConvNext", **CONVNEXT),
        (3, 64, 64),
        torchinfo=(biases, norm_parameters, norms_taken_for_convolutions, further_tokens),
        fvcore=(layer_norms,),
    ),
    "ConvNeXt-V2": Network(
        pretrained_kind("ConvNextV2", **CONVNEXT),
        (3, 64, 64),
        torchinfo=(biases, norm_parameters, norms_taken_for_convolutions, further_tokens),
        fvcore=(layer_norms,),
    ),
    "EfficientNet": Network(
        pretrained_kind(
            "EfficientNet", image_size=64, width_coefficient=0.5, depth_coefficient=0.5, hidden_dim=640
        ),
        (3, 64, 64),
        CNN,
        fvcore=(batch_norms, adaptive_pools, padding_in_words),
    ),
    "MobileNetV1": Network(
        pretrained_kind("MobileNetV1", image_size=64, depth_multiplier=0.25),
        (3, 64, 64),
        CNN,
        (batch_norms, adaptive_pools),
    ),
    "MobileNetV2": Network(
        pretrained_kind("MobileNetV2", image_size=64, depth_multiplier=0.35),
        (3, 64, 64),
        CNN,
        (batch_norms, adaptive_pools),
    ),
    "ViT": Network(
        pretrained_kind("ViT", **VIT),
        (3, 32, 32),
        torchinfo=(biases, norm_parameters, further_tokens, products_outside_modules),
        fvcore=(layer_norms, fused_attention),
        flop_counter=(fused_attention,),
        products=VIT_ATTENTION,
    ),
    # The same written out as matrix products, which all but torchinfo count.
    "ViT, eager attention": Network(
        pretrained_kind("ViT", attn_implementation="eager", **VIT),
        (3, 32, 32),
        torchinfo=(biases, norm_parameters, further_tokens, products_outside_modules),
        fvcore=(layer_norms,),
        products=VIT_ATTENTION,
    ),
    "Swin": Network(
        pretrained_kind(
            "Swin", image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
        ),
        (3, 32, 32),
        torchinfo=(
            biases, norm_parameters, further_tokens, products_outside_modules, tables_taken_for_recurrent_weights,
        ),
        fvcore=(layer_norms, fused_attention),
        flop_counter=(fused_attention,),
        # Two layers with four windows of 4x4 tokens, then two with one of twice the width.
        products=2 * 2 * (4 * 16**2 * 16 + 16**2 * 32),
    ),
    "SegFormer": Network(
        pretrained_kind(
            "Segformer", hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 3, 4], depths=[1, 1, 1, 1]
        ),
        (3, 64, 64),
        torchinfo=(biases, norm_parameters, further_tokens, products_outside_modules),
        fvcore=(layer_norms, fused_attention),
        flop_counter=(fused_attention,),
        # Queries at 16x16, 8x8, 4x4 and 2x2; keys reduced to 2x2 by strides of 8, 4, 2 and 1.
        products=2 * 4 * (256 * 8 + 64 * 16 + 16 * 24 + 4 * 32),
    ),
    "MobileViT": Network(
        pretrained_kind(
            "MobileViT", image_size=64, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32],
            num_attention_heads=2,
        ),
        (3, 64, 64),
        torchinfo=(biases, norm_parameters, further_tokens, products_outside_modules),
        fvcore=(batch_norms, layer_norms),
        # 2, 4 and 3 layers; four patches, apart, of the pixels of 8x8, 4x4 and 2x2 each 2x2 apart.
        products=2 * 4 * (2 * 16**2 * 16 + 4 * 4**2 * 24 + 3 * 1**2 * 32),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Counts:
    parameters: dict[str, int]
    macs: dict[str, int]
    seen: Seen


@cache
def counts(name: str) -> Counts:
    torch.manual_seed(0)
    described = NETWORKS[name]
    network, images = described.build().eval(), torch.rand(BATCH, *described.size)
    calls: list[Call] = []

    def record(module: nn.Module, args: Any, out: Any) -> None:
        calls.append(Call(module, tuple(args[0].shape) if args else (), tuple(out.shape)))

    leaves = [module for module in network.modules() if not any(module.children())]
    handles = [module.register_forward_hook(record) for module in leaves]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()

    ours = analyze(network, images)
    assert ours.uncounted == {}
    theirs = torchinfo.summary(network, input_data=images, verbose=0)
    with torch.no_grad():
        flops = fvcore.nn.FlopCountAnalysis(network, images).unsupported_ops_warnings(False).tracer_warnings("none")
        traced = int(flops.uncalled_modules_warnings(False).total())
        with FlopCounterMode(display=False) as dispatched:
            network(images)
    return Counts(
        {
            "ours": ours.parameters,
            "torchinfo": theirs.total_params,
            "fvcore": int(fvcore.nn.parameter_count(network)[""]),
        },
        {
            "ours": ours.macs,
            "torchinfo": theirs.total_mult_adds,
            "fvcore": traced,
            "flop_counter": dispatched.get_total_flops() // 2,  # it counts two for each multiply-accumulate
        },
        Seen(tuple(calls), BATCH * described.products),
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_those_of_the_peers(name: str) -> None:
    parameters = counts(name).parameters
    assert set(parameters.values()) == {parameters["ours"]}


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_are_the_sum_over_the_layers(name: str) -> None:
    counted = counts(name)
    assert counted.macs["ours"] == layers_alone(counted.seen) + counted.seen.products


@pytest.mark.parametrize("peer", ["torchinfo", "fvcore", "flop_counter"])
@pytest.mark.parametrize("name", NETWORKS)
def test_macs_differ_from_the_peers_by_exactly_what_the_reasons_come_to(name: str, peer: str) -> None:
    counted = counts(name)
    reasons: tuple[Reason, ...] = getattr(NETWORKS[name], peer)
    amounts = {reason.__name__: reason(counted.seen) for reason in reasons}
    assert counted.macs[peer] - counted.macs["ours"] == sum(amounts.values()), amounts
    assert all(amounts.values()), "a reason that comes to nothing explains nothing"
