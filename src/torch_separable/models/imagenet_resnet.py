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
        self.depth = 3 if bottleneck else 2
        self.conv3: nn.Module | None = None
        self.bn3: nn.Module | None = None
        if bottleneck:
            self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out_channels)
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, M, H/stride, W/stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.conv3 is not None and self.bn3 is not None:
            y = self.bn3(self.conv3(F.relu(y)))
        if self.downsample is not None:
            x = self.downsample(x)
        return F.relu(y + x)


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
        self.conv1 = nn.Conv2d(in_channels, _WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        expansion = 4 if bottleneck else 1
        inputs = (_WIDTHS[0], *(expansion * width for width in _WIDTHS))
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(channels, width, count, 1 if width == _WIDTHS[0] else 2, bottleneck)
            for channels, width, count in zip(inputs[:4], _WIDTHS, blocks, strict=True)
        )
        self.fc = nn.Linear(inputs[4], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def _stage(in_channels: int, width: int, count: int, stride: int, bottleneck: bool) -> nn.Sequential:
    out_channels = 4 * width if bottleneck else width
    first = ResidualBlock(in_channels, width, stride, bottleneck)
    return nn.Sequential(first, *(ResidualBlock(out_channels, width, 1, bottleneck) for _ in range(count - 1)))


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
