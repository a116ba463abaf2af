"""timm's and torchvision's names, on twins of their networks written here in plain layers.

Neither package is needed (or imported): what makes a checkpoint theirs is the names and shapes of its tensors, which
the twins have, and what makes the weights right is that the twin, which runs its own layers, gives the same outputs.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_separable as ts
from torch_separable.importing import LAYOUTS, import_weights
from torch_separable.models import EfficientNetLite, mobilenet_v1, mobilenet_v2

# timm's definitions in its words: kind of block, repeats, kernel, stride, expansion, channels.
MOBILENET_V1 = "dsa_r1_k3_s1_c64 dsa_r2_k3_s2_c128 dsa_r2_k3_s2_c256 dsa_r6_k3_s2_c512 dsa_r2_k3_s2_c1024"
MOBILENET_V2 = (
    "ds_r1_k3_s1_c16 ir_r2_k3_s2_e6_c24 ir_r3_k3_s2_e6_c32 ir_r4_k3_s2_e6_c64 ir_r3_k3_s1_e6_c96 ir_r3_k3_s2_e6_c160 "
    "ir_r1_k3_s1_e6_c320"
)
EFFICIENTNET_LITE = (
    "ds_r1_k3_s1_e1_c16 ir_r2_k3_s2_e6_c24 ir_r2_k5_s2_e6_c40 ir_r3_k3_s2_e6_c80 ir_r3_k5_s1_e6_c112 "
    "ir_r4_k5_s2_e6_c192 ir_r1_k3_s1_e6_c320"
)


def conv(c: int, m: int, k: int, s: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c, m, k, s, k // 2, groups=groups, bias=False)


class TimmBlock(nn.Module):
    def __init__(self, kind: str, c: int, m: int, k: int, s: int, e: int) -> None:
        super().__init__()
        self.kind, self.adds = kind, kind == "ir" and c == m and s == 1
        if kind == "ir":
            self.conv_pw, self.bn1 = conv(c, c * e, 1), nn.BatchNorm2d(c * e)
            self.conv_dw, self.bn2 = conv(c * e, c * e, k, s, c * e), nn.BatchNorm2d(c * e)
            self.conv_pwl, self.bn3 = conv(c * e, m, 1), nn.BatchNorm2d(m)
        else:
            self.conv_dw, self.bn1 = conv(c, c, k, s, c), nn.BatchNorm2d(c)
            self.conv_pw, self.bn2 = conv(c, m, 1), nn.BatchNorm2d(m)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "ir":
            y = F.relu6(self.bn1(self.conv_pw(x)))
            y = self.bn3(self.conv_pwl(F.relu6(self.bn2(self.conv_dw(y)))))
            return x + y if self.adds else y
        y = self.bn2(self.conv_pw(F.relu6(self.bn1(self.conv_dw(x)))))
        return F.relu6(y) if self.kind == "dsa" else y


class Timm(nn.Module):
    """conv_stem, bn1, blocks.STAGE.PLACE, conv_head and bn2 where there is a head, classifier."""

    def __init__(self, definition: str, head: int, classes: int) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = conv(3, 32, 3, 2), nn.BatchNorm2d(32)
        c, stages = 32, []
        for text in definition.split():
            kind, *parts = text.split("_")
            given = {part[0]: int(part[1:]) for part in parts}
            blocks = []
            for i in range(given["r"]):
                blocks.append(
                    TimmBlock(kind, c, given["c"], given["k"], given["s"] if i == 0 else 1, given.get("e", 1))
                )
                c = given["c"]
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head, self.bn2 = (conv(c, head, 1), nn.BatchNorm2d(head)) if head else (nn.Identity(), nn.Identity())
        self.classifier = nn.Linear(head or c, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu6(self.bn1(self.conv_stem(x))))
        if isinstance(self.conv_head, nn.Conv2d):
            x = F.relu6(self.bn2(self.conv_head(x)))
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


def conv_bn_relu6(c: int, m: int, k: int, s: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(conv(c, m, k, s, groups), nn.BatchNorm2d(m), nn.ReLU6())


class TorchvisionBlock(nn.Module):
    def __init__(self, c: int, m: int, s: int, t: int) -> None:
        super().__init__()
        self.adds = c == m and s == 1
        expansion = [conv_bn_relu6(c, c * t, 1)] if t != 1 else []
        self.conv = nn.Sequential(
            *expansion, conv_bn_relu6(c * t, c * t, 3, s, c * t), conv(c * t, m, 1), nn.BatchNorm2d(m)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.adds else y


def torchvision_mobilenet_v2(classes: int) -> nn.Module:
    features: list[nn.Module] = [conv_bn_relu6(3, 32, 3, 2)]
    c = 32
    for t, m, n, s in ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2)):
        for i in range(n):
            features.append(TorchvisionBlock(c, m, s if i == 0 else 1, t))
            c = m
    features += [TorchvisionBlock(c, 320, 1, 6), conv_bn_relu6(320, 1280, 1)]
    classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(OrderedDict({"features": nn.Sequential(*features), "pool": pool, "classifier": classifier}))


# Some names of the packages' own checkpoints: mobilenetv1_100.ra4_e3600_r224_in1k, mobilenetv2_100.ra_in1k,
# mobilenet_v2-b0353104.pth.
NETWORKS: dict[str, Any] = {
    "timm mobilenetv1": (
        lambda: Timm(MOBILENET_V1, 0, 5),
        lambda: mobilenet_v1(num_classes=5, activation="relu6"),
        ("conv_stem.weight", "blocks.3.5.conv_pw.weight", "blocks.4.1.bn2.running_var", "classifier.bias"),
    ),
    "timm mobilenetv2": (
        lambda: Timm(MOBILENET_V2, 1280, 5),
        lambda: mobilenet_v2(num_classes=5),
        ("blocks.0.0.bn2.weight", "blocks.6.0.conv_pwl.weight", "conv_head.weight", "bn2.running_mean"),
    ),
    "timm efficientnet_lite": (
        lambda: Timm(EFFICIENTNET_LITE, 1280, 5),
        lambda: EfficientNetLite(num_classes=5, padding="symmetric", batch_norm_eps=1e-5),
        ("blocks.2.0.conv_dw.weight", "blocks.5.3.bn3.bias"),
    ),
    "torchvision mobilenet_v2": (
        lambda: torchvision_mobilenet_v2(5),
        lambda: mobilenet_v2(num_classes=5),
        ("features.0.0.weight", "features.1.conv.1.weight", "features.17.conv.3.running_var", "features.18.1.bias"),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_equal(name: str, trained: Any) -> None:
    make_twin, make, known = NETWORKS[name]
    twin, network = trained(make_twin()), make().eval()
    state = twin.state_dict()
    assert set(known) < set(state)
    report = import_weights(network, state)
    assert report.complete
    assert report.layout == name
    images = torch.randn(2, 3, 65, 64)
    with torch.no_grad():
        expected = twin(images)
        torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.01


@pytest.mark.parametrize("name", LAYOUTS)
def test_names_are_another_set_of_the_same_size(name: str) -> None:
    layout = LAYOUTS[name]
    arguments: dict[Any, Any] = {"ImageNetResNet": ((1, 2, 1, 1), True)}
    with torch.device("meta"):
        network = layout.network(*arguments.get(layout.network.__name__, ()))
    names = layout.names(network)
    with_weights = {key.rpartition(".")[0] for key in network.state_dict()}
    assert set(names) == with_weights  # every module with parameters has a name there,
    assert len(set(names.values())) == len(names)  # and no two the same one


@pytest.mark.parametrize("name", NETWORKS)
def test_own_names_are_recognized(name: str) -> None:
    network = NETWORKS[name][1]()
    state = {key: tensor + 1 for key, tensor in network.state_dict().items()}
    report = import_weights(network, state)
    assert (report.layout, report.complete) == ("own", True)
    assert torch.equal(network.stem[0].weight, state["stem.0.weight"])
    parallel = {f"module.{key}": tensor for key, tensor in state.items()}
    assert import_weights(network, parallel).complete


@pytest.mark.parametrize(
    ("network", "state", "message"),
    [
        (nn.Linear(2, 2), {"elsewhere.weight": torch.zeros(2, 2)}, "(Linear)"),
        (nn.Linear(2, 2), {"weight": torch.full((2, 2), torch.nan)}, "holds NaN or infinite weights"),
        (nn.Linear(2, 2), {}, "source holds no weights"),
        (nn.Linear(2, 2), [torch.zeros(2)], "source is a list"),
    ],
)
def test_unloadable_sources_are_refused(network: nn.Module, state: Any, message: str) -> None:
    with pytest.raises(ts.SeparableError) as caught:
        import_weights(network, state, strict=False)
    assert message in str(caught.value)
