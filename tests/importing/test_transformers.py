"""Networks of transformers and ours with the same weights give the same outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import torch_separable as ts
from torch_separable.importing import import_weights
from torch_separable.models import ImageNetResNet, mobilenet_v1, mobilenet_v2, resnet18

TENSORFLOW: dict[str, Any] = {"padding": "same", "batch_norm_eps": 1e-3}


def theirs(kind: str, **options: Any) -> nn.Module:
    config = getattr(transformers, f"{kind}Config")(num_labels=7, **options)
    network: nn.Module = getattr(transformers, f"{kind}ForImageClassification")(config)
    return network


PAIRS: dict[str, Any] = {
    "MobileNetV1": (
        lambda: theirs("MobileNetV1", depth_multiplier=0.25),
        lambda: mobilenet_v1(0.25, num_classes=7, activation="relu6", **TENSORFLOW),
    ),
    "MobileNetV1, PyTorch's padding": (
        lambda: theirs("MobileNetV1", depth_multiplier=0.5, tf_padding=False, layer_norm_eps=1e-5, hidden_act="relu"),
        lambda: mobilenet_v1(0.5, num_classes=7),
    ),
    "MobileNetV2": (
        lambda: theirs("MobileNetV2", depth_multiplier=0.35),
        lambda: mobilenet_v2(0.35, num_classes=7, **TENSORFLOW),
    ),
    "MobileNetV2, wider": (
        lambda: theirs("MobileNetV2", depth_multiplier=1.4),
        lambda: mobilenet_v2(1.4, num_classes=7, **TENSORFLOW),
    ),
    "ResNet": (
        lambda: theirs("ResNet", layer_type="basic", depths=[2, 1, 2, 1], hidden_sizes=[64, 128, 256, 512]),
        lambda: ImageNetResNet((2, 1, 2, 1), False, num_classes=7),
    ),
    "ResNet, bottlenecks": (
        lambda: theirs("ResNet", depths=[1, 2, 1, 1]),
        lambda: ImageNetResNet((1, 2, 1, 1), True, num_classes=7),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_outputs_are_equal(name: str, trained: Any) -> None:
    source, network = (make() for make in PAIRS[name])
    trained(source)
    report = import_weights(network, source)
    assert report.complete
    assert report.layout == f"transformers {name.partition(',')[0]}"
    assert set(report.matched) == set(network.state_dict())
    network.eval()
    for size in ((64, 64), (45, 33)):  # odd sizes tell the two kinds of padding apart at every stride
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected = source(images).logits
            torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)
        assert expected.std() > 0.01  # and not all the same


def test_weights_in_a_file_are_recognised_too(tmp_path: Path, trained: Any) -> None:
    source = trained(theirs("MobileNetV2", depth_multiplier=0.35))
    source.save_pretrained(tmp_path)
    network = mobilenet_v2(0.35, num_classes=7, **TENSORFLOW).eval()
    assert import_weights(network, tmp_path / "model.safetensors").layout == "transformers MobileNetV2"
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(images), source(images).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "kind", "options", "message"),
    [
        (
            lambda: mobilenet_v1(0.25, num_classes=7),
            "MobileNetV1",
            {"depth_multiplier": 0.25},
            "--model-arg activation=relu6 --model-arg padding=same --model-arg batch_norm_eps=0.001",
        ),
        (
            lambda: mobilenet_v2(0.35, num_classes=7, padding="same"),
            "MobileNetV2",
            {"depth_multiplier": 0.35},
            "Build it with batch_norm_eps=0.001 (--model-arg batch_norm_eps=0.001)",
        ),
        (
            lambda: resnet18(num_classes=7),
            "ResNet",
            {
                "layer_type": "basic",
                "depths": [2, 2, 2, 2],
                "hidden_sizes": [64, 128, 256, 512],
                "downsample_in_bottleneck": True,
            },
            "No ImageNetResNet of this package has downsample_in_bottleneck=True: convert the network as it is",
        ),
        (
            lambda: resnet18(num_classes=7),
            "ResNet",
            {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "hidden_act": "gelu"},
            "No ImageNetResNet of this package has activation='gelu'",
        ),
        (
            lambda: mobilenet_v2(0.35, num_classes=7, **TENSORFLOW),
            "MobileNetV2",
            {"depth_multiplier": 0.35, "hidden_act": "silu"},
            "No MobileNetV2 of this package has activation='silu'",
        ),
        (
            lambda: mobilenet_v2(0.35, num_classes=7, **TENSORFLOW),
            "MobileNetV2",
            {"depth_multiplier": 0.35, "output_stride": 8},
            "No MobileNetV2 of this package has output_stride=8",
        ),
    ],
)
def test_network_with_other_conventions_is_refused_and_unchanged(
    make: Any, kind: str, options: dict[str, Any], message: str
) -> None:
    network = make()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ts.SeparableError) as caught:
        import_weights(network, theirs(kind, **options))
    assert message in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_mismatches_are_reported_by_key() -> None:
    source = theirs("MobileNetV1", depth_multiplier=0.25)
    state: dict[str, Any] = dict(source.state_dict())
    del state["mobilenet_v1.layer.3.normalization.bias"]
    state["mobilenet_v1.layer.26.convolution.weight"] = torch.zeros(3)
    network = mobilenet_v1(0.25, num_classes=9, activation="relu6", padding="same")
    report = import_weights(network, state, strict=False)
    assert report.missing == ("blocks.1.bn2.bias",)
    assert report.unexpected == ("mobilenet_v1.layer.26.convolution.weight",)
    assert report.reshaped == (("classifier.weight", (7, 256), (9, 256)), ("classifier.bias", (7,), (9,)))
    assert report.differing == (("batch_norm_eps", 1e-5, 1e-3),)
    assert not report.complete
    assert report.to_dict()["reshaped"][1] == ("classifier.bias", (7,), (9,))
    for line in (
        "transformers MobileNetV1: 161 tensors matched, 1 missing, 1 unexpected, 2 of another shape",
        "missing     blocks.1.bn2.bias",
        "shape       classifier.weight: (7, 256), the network has (9, 256)",
        "convention  batch_norm_eps: 0.001, the network has 1e-05",
    ):
        assert line in str(report)
    assert torch.equal(network.stem[1].weight, state["mobilenet_v1.conv_stem.convolution.weight"])
    with pytest.raises(ts.SeparableError, match=r"1 missing .*1 unknown .*2 of another shape"):
        import_weights(mobilenet_v1(0.25, num_classes=9, activation="relu6", **TENSORFLOW), state)


def test_own_network_with_other_conventions_is_refused() -> None:
    with pytest.raises(
        ts.SeparableError, match=r"Build it with padding='same', batch_norm_eps=0.001, activation='relu6'"
    ):
        import_weights(mobilenet_v1(0.25), mobilenet_v1(0.25, activation="relu6", **TENSORFLOW))
    assert import_weights(mobilenet_v1(0.25), mobilenet_v1(0.25)).complete
