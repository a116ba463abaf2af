"""Residual networks for CIFAR (He et al., "Deep Residual Learning", arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from torch_separable.models.registry import records_init_args, register
from torch_separable.nn._arguments import whole


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A: strided slice, zero-padded channels)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, M, H/stride, W/stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1 or self.new_channels:
            before = self.new_channels // 2
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(y + x)


@records_init_args
class CifarResNet(nn.Module):
    """A 3x3 stem, three stages of ``n`` blocks with 16, 32 and 64 channels, global average pooling and ``linear``.

    Args:
        blocks: ``n``, the number of blocks in each stage; the depth is ``6 n + 2``.
        num_classes: number of classes.
        in_channels: channels of the images.
    """

    def __init__(self, blocks: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        for name, value in (("blocks", blocks), ("num_classes", num_classes), ("in_channels", in_channels)):
            whole(name, value)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks, 16, 16, stride=1)
        self.layer2 = _stage(blocks, 16, 32, stride=2)
        self.layer3 = _stage(blocks, 32, 64, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


def _stage(blocks: int, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


@register
def resnet20(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """Build ResNet-20 for CIFAR: 0.27 M parameters, 40.6 M MACs at 32x32.

    Example:
        >>> sum(p.numel() for p in resnet20().parameters())
        269722
    """
    return CifarResNet(3, num_classes, in_channels)


@register
def resnet32(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """Build ResNet-32 for CIFAR: 0.46 M parameters, 69 M MACs at 32x32."""
    return CifarResNet(5, num_classes, in_channels)


@register
def resnet44(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """Build ResNet-44 for CIFAR: 0.66 M parameters, 97 M MACs at 32x32."""
    return CifarResNet(7, num_classes, in_channels)


@register
def resnet56(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """Build ResNet-56 for CIFAR: 0.85 M parameters, 125 M MACs at 32x32."""
    return CifarResNet(9, num_classes, in_channels)
