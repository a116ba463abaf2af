"""Residual networks for ImageNet (He et al., "Deep Residual Learning", arXiv 1512.03385, table 1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from torch_separable.errors import SeparableValueError
from torch_separable.models.registry import records_init_args, register
from torch_separable.nn._arguments import flag, whole

_WIDTHS = (64, 128, 256, 512)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1 ("bottleneck"), and a shortcut, with torchvision's names.

    The first 3x3 convolution has the stride. If the shape changes, the shortcut is a 1x1 convolution.
    """

    def __init__(self, in_channels: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out_channels = 4 * width if bottleneck else width
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        strided = kernels.index(3)
        channels = in_channels
        for i, kernel in enumerate(kernels):
            outputs = out_channels if i == len(kernels) - 1 else width
            step = stride if i == strided else 1
            self.add_module(
                f"conv{i + 1}", nn.Conv2d(channels, outputs, kernel, stride=step, padding=kernel // 2, bias=False)
            )
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(outputs))
            channels = outputs
        self.depth = len(kernels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, M, H/stride, W/stride)."""
        y = x
        for i in range(1, self.depth + 1):
            y = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(y))
            if i < self.depth:
                y = F.relu(y)
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


@records_init_args
class ImageNetResNet(nn.Module):
    """A 7x7 stem, max pooling, four stages of residual blocks, global average pooling and ``fc``.

    The parameters have the names of torchvision and timm, so their weights load unchanged.

    Args:
        blocks: number of blocks in each of the four stages.
        bottleneck: whether a block is 1x1, 3x3, 1x1 instead of two 3x3 convolutions.
        num_classes: number of classes.
        in_channels: channels of the images.
    """

    downsample_in_bottleneck, activation = False, "relu"

    def __init__(
        self, blocks: tuple[int, int, int, int], bottleneck: bool, num_classes: int = 1000, in_channels: int = 3
    ) -> None:
        super().__init__()
        if not isinstance(blocks, tuple | list) or len(blocks) != 4:
            raise SeparableValueError(f"blocks={blocks!r}: must be four whole numbers, one for each stage")
        for name, value in (
            ("num_classes", num_classes),
            ("in_channels", in_channels),
            *(("blocks", n) for n in blocks),
        ):
            whole(name, value)
        flag("bottleneck", bottleneck)
        channels = _WIDTHS[0]
        self.conv1 = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        for stage, (width, count) in enumerate(zip(_WIDTHS, blocks, strict=True), start=1):
            layers = []
            for i in range(count):
                stride = 2 if i == 0 and stage > 1 else 1
                layers.append(ResidualBlock(channels, width, stride, bottleneck))
                channels = 4 * width if bottleneck else width
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


@register
def resnet18(num_classes: int = 1000, in_channels: int = 3) -> ImageNetResNet:
    """Build ResNet-18 for ImageNet: 11.7 M parameters, 1.8 G MACs at 224x224.

    Example:
        >>> sum(p.numel() for p in resnet18().parameters())
        11689512
    """
    return ImageNetResNet((2, 2, 2, 2), False, num_classes, in_channels)


@register
def resnet34(num_classes: int = 1000, in_channels: int = 3) -> ImageNetResNet:
    """Build ResNet-34 for ImageNet: 21.8 M parameters, 3.7 G MACs at 224x224."""
    return ImageNetResNet((3, 4, 6, 3), False, num_classes, in_channels)


@register
def resnet50(num_classes: int = 1000, in_channels: int = 3) -> ImageNetResNet:
    """Build ResNet-50 for ImageNet, with the stride in the 3x3 convolution: 25.6 M parameters, 4.1 G MACs."""
    return ImageNetResNet((3, 4, 6, 3), True, num_classes, in_channels)
