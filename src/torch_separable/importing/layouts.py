"""The names that other packages give to the modules of the same networks, one table per package."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from torch_separable.models import EfficientNetLite, ImageNetResNet, MobileNetV1, MobileNetV2

Pairs = Iterator[tuple[str, str]]
_TENSORFLOW = {"padding": "same", "batch_norm_eps": 1e-3}
_TORCH = {"padding": "symmetric", "batch_norm_eps": 1e-5}
_RELU6 = {"activation": "relu6"}


@dataclass(frozen=True)
class Layout:
    """The module names of one package's version of a network.

    Attributes:
        name: the package and its name of the network.
        network: the class in ``torch_separable.models``.
        pairs: yields, for a network of that class, the name of each module with parameters here and there.
        conventions: padding, epsilon and activation of the package's networks, by this package's argument names;
            parameter names do not tell them. Empty if the package publishes several conventions under the same names.
    """

    name: str
    network: type[nn.Module]
    pairs: Callable[[Any], Pairs]
    conventions: Mapping[str, Any] = field(default_factory=dict)

    def names(self, network: nn.Module) -> dict[str, str]:
        """Return the package's name of each module, by this package's name.

        Example:
            >>> from torch_separable.models import mobilenet_v2
            >>> LAYOUTS["torchvision mobilenet_v2"].names(mobilenet_v2())["blocks.3.conv_pwl"]
            'features.4.conv.2'
        """
        return dict(self.pairs(network))


def _places(stages: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield the stage of each block, and its index within the stage."""
    return ((stage, i) for stage, count in enumerate(stages) for i in range(count))


def _timm_mobilenet_v1(network: MobileNetV1) -> Pairs:
    yield from (("stem.0", "conv_stem"), ("stem.1", "bn1"), ("classifier", "classifier"))
    for i, (stage, place) in enumerate(_places(network.stages)):
        for name in ("conv_dw", "bn1", "conv_pw", "bn2"):
            yield f"blocks.{i}.{name}", f"blocks.{stage}.{place}.{name}"


def _timm_inverted_residuals(network: MobileNetV2 | EfficientNetLite) -> Pairs:
    yield from (("stem.0", "conv_stem"), ("stem.1", "bn1"), ("head.0", "conv_head"), ("head.1", "bn2"))
    yield "classifier", "classifier"
    for i, (stage, place) in enumerate(_places(network.stages)):
        ours, theirs = f"blocks.{i}", f"blocks.{stage}.{place}"
        if hasattr(network.blocks[i], "conv_pw"):
            for name in ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"):
                yield f"{ours}.{name}", f"{theirs}.{name}"
        else:  # without expansion it is timm's DepthwiseSeparableConv, whose first norm is bn1
            for name, other in (("conv_dw", "conv_dw"), ("bn2", "bn1"), ("conv_pwl", "conv_pw"), ("bn3", "bn2")):
                yield f"{ours}.{name}", f"{theirs}.{other}"


def _torchvision_mobilenet_v2(network: MobileNetV2) -> Pairs:
    last = len(network.blocks) + 1
    for n in (0, 1):
        yield f"stem.{n}", f"features.0.{n}"
        yield f"head.{n}", f"features.{last}.{n}"
    yield "classifier", "classifier.1"
    for i, block in enumerate(network.blocks):
        expansion = [("conv_pw", "0.0"), ("bn1", "0.1")] if hasattr(block, "conv_pw") else []
        n = len(expansion) // 2
        rest = [("conv_dw", f"{n}.0"), ("bn2", f"{n}.1"), ("conv_pwl", f"{n + 1}"), ("bn3", f"{n + 2}")]
        for name, other in (*expansion, *rest):
            yield f"blocks.{i}.{name}", f"features.{i + 1}.conv.{other}"


def _transformers_mobilenet_v1(network: MobileNetV1) -> Pairs:
    base = "mobilenet_v1"
    yield from (("stem.0", f"{base}.conv_stem.convolution"), ("stem.1", f"{base}.conv_stem.normalization"))
    yield "classifier", "classifier"
    for i in range(len(network.blocks)):
        for stage, (conv, norm) in enumerate((("conv_dw", "bn1"), ("conv_pw", "bn2"))):
            yield f"blocks.{i}.{conv}", f"{base}.layer.{2 * i + stage}.convolution"
            yield f"blocks.{i}.{norm}", f"{base}.layer.{2 * i + stage}.normalization"


def _transformers_mobilenet_v2(network: MobileNetV2) -> Pairs:
    base = "mobilenet_v2"
    yield "classifier", "classifier"
    stages = [("stem.0", "stem.1", "conv_stem.first_conv"), ("head.0", "head.1", "conv_1x1")]
    for i in range(len(network.blocks)):
        theirs = "conv_stem" if i == 0 else f"layer.{i - 1}"
        if i > 0:
            stages.append((f"blocks.{i}.conv_pw", f"blocks.{i}.bn1", f"{theirs}.expand_1x1"))
        stages.append((f"blocks.{i}.conv_dw", f"blocks.{i}.bn2", f"{theirs}.conv_3x3"))
        stages.append((f"blocks.{i}.conv_pwl", f"blocks.{i}.bn3", f"{theirs}.reduce_1x1"))
    for conv, norm, their in stages:
        yield conv, f"{base}.{their}.convolution"
        yield norm, f"{base}.{their}.normalization"


def _transformers_resnet(network: ImageNetResNet) -> Pairs:
    base = "resnet"
    yield from (
        ("conv1", f"{base}.embedder.embedder.convolution"),
        ("bn1", f"{base}.embedder.embedder.normalization"),
        ("fc", "classifier.1"),
    )
    for stage in range(4):
        for i, block in enumerate(network.get_submodule(f"layer{stage + 1}").children()):
            ours, theirs = f"layer{stage + 1}.{i}", f"{base}.encoder.stages.{stage}.layers.{i}"
            for k in range(block.depth):  # type: ignore[arg-type]
                yield f"{ours}.conv{k + 1}", f"{theirs}.layer.{k}.convolution"
                yield f"{ours}.bn{k + 1}", f"{theirs}.layer.{k}.normalization"
            if block.downsample is not None:
                yield f"{ours}.downsample.0", f"{theirs}.shortcut.convolution"
                yield f"{ours}.downsample.1", f"{theirs}.shortcut.normalization"


def _efficientnet_lite_pytorch(network: EfficientNetLite) -> Pairs:
    yield from (("stem.0", "_conv_stem"), ("stem.1", "_bn0"), ("head.0", "_conv_head"), ("head.1", "_bn1"))
    yield "classifier", "_fc"
    names = {
        "conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1",
        "conv_pwl": "_project_conv", "bn3": "_bn2",
    }  # fmt: skip
    for i, block in enumerate(network.blocks):
        for name, other in names.items():
            if hasattr(block, name):
                yield f"blocks.{i}.{name}", f"_blocks.{i}.{other}"


def _keras_mobilenet_v1(network: MobileNetV1) -> Pairs:
    yield from (("stem.0", "conv1"), ("stem.1", "conv1_bn"), ("classifier", "conv_preds"))
    for i in range(len(network.blocks)):
        for kind, norm in (("dw", "bn1"), ("pw", "bn2")):
            yield f"blocks.{i}.conv_{kind}", f"conv_{kind}_{i + 1}"
            yield f"blocks.{i}.{norm}", f"conv_{kind}_{i + 1}_bn"


def _keras_mobilenet_v2(network: MobileNetV2) -> Pairs:
    yield from (("stem.0", "Conv1"), ("stem.1", "bn_Conv1"), ("head.0", "Conv_1"), ("head.1", "Conv_1_bn"))
    yield "classifier", "predictions"
    for i in range(len(network.blocks)):
        theirs = "expanded_conv" if i == 0 else f"block_{i}"
        parts = [("conv_dw", "bn2", "depthwise"), ("conv_pwl", "bn3", "project")]
        for conv, norm, other in (*([("conv_pw", "bn1", "expand")] if i > 0 else []), *parts):
            yield f"blocks.{i}.{conv}", f"{theirs}_{other}"
            yield f"blocks.{i}.{norm}", f"{theirs}_{other}_BN"


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("timm mobilenetv1", MobileNetV1, _timm_mobilenet_v1, {**_RELU6, **_TORCH}),
        Layout("timm mobilenetv2", MobileNetV2, _timm_inverted_residuals, _TORCH),
        Layout("timm efficientnet_lite", EfficientNetLite, _timm_inverted_residuals),  # and its tf_efficientnet_lite
        Layout("torchvision mobilenet_v2", MobileNetV2, _torchvision_mobilenet_v2, _TORCH),
        Layout("transformers MobileNetV1", MobileNetV1, _transformers_mobilenet_v1, {**_RELU6, **_TENSORFLOW}),
        Layout(
            "transformers MobileNetV2",
            MobileNetV2,
            _transformers_mobilenet_v2,
            {"output_stride": 32, **_RELU6, **_TENSORFLOW},
        ),
        Layout(
            "transformers ResNet",
            ImageNetResNet,
            _transformers_resnet,
            {"downsample_in_bottleneck": False, "activation": "relu"},
        ),
        Layout("efficientnet-lite-pytorch", EfficientNetLite, _efficientnet_lite_pytorch, _TENSORFLOW),
        Layout("Keras MobileNet", MobileNetV1, _keras_mobilenet_v1, {**_RELU6, **_TENSORFLOW}),
        Layout("Keras MobileNetV2", MobileNetV2, _keras_mobilenet_v2, _TENSORFLOW),
    )
}
