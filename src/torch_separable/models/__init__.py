"""Networks: MobileNets built from `torch_separable.nn`, and dense networks to convert.

Each network is a function that returns a module; `NETWORKS` lists those that the command line knows by name.
"""

from __future__ import annotations

from torch_separable.models.efficientnet_lite import EfficientNetLite, efficientnet_lite0
from torch_separable.models.imagenet_resnet import ImageNetResNet, resnet18, resnet34, resnet50
from torch_separable.models.mobilenetv1 import MobileNetV1, conv_mobilenet, mobilenet_v1
from torch_separable.models.mobilenetv2 import MobileNetV2, mobilenet_v2
from torch_separable.models.registry import NETWORKS
from torch_separable.models.resnet import CifarResNet, resnet20, resnet32, resnet44, resnet56

__all__ = [
    "NETWORKS",
    "CifarResNet",
    "EfficientNetLite",
    "ImageNetResNet",
    "MobileNetV1",
    "MobileNetV2",
    "conv_mobilenet",
    "efficientnet_lite0",
    "mobilenet_v1",
    "mobilenet_v2",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
]
