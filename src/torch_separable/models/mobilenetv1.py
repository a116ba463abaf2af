"""MobileNet (Howard et al., arXiv 1704.04861), and the dense network of the same shape from the paper's table 4."""

from __future__ import annotations

from torch import Tensor, nn

from torch_separable.errors import SeparableValueError
from torch_separable.models._layers import (
    Activation,
    Padding,
    activation_of,
    batch_norm,
    check_padding,
    conv_norm_act,
)
from torch_separable.models.registry import records_init_args, register
from torch_separable.nn import DepthwiseSeparableConv2d
from torch_separable.nn._arguments import flag, whole

# (output channels, stride) of the blocks after the stem: table 1 of the paper.
_BLOCKS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
# The shallow network of table 5 omits the five blocks of 14x14x512.
_SHALLOW = [*_BLOCKS[:6], *_BLOCKS[11:]]


@records_init_args
class MobileNetV1(nn.Module):
    """A 3x3 stem, thirteen blocks, global average pooling and a classifier.

    Args:
        width_multiplier: ``α``, factor of each layer's channels.
        resolution: ``224·ρ``, the intended image size, stored as an attribute; the network accepts any size because it
            pools globally.
        num_classes: number of classes.
        in_channels: channels of the images.
        shallow: whether to omit the five blocks of 512 channels at 14x14.
        separable: whether blocks are depthwise separable instead of dense 3x3 convolutions ("Conv MobileNet").
        activation: ``"relu"`` as in the paper, or ``"relu6"`` as in all published weights.
        padding: ``"symmetric"``, or TensorFlow's ``"same"``, which weights trained there need.
        batch_norm_eps: epsilon of the batch norms; TensorFlow's weights need 1e-3.
    """

    def __init__(
        self,
        width_multiplier: float = 1.0,
        resolution: int = 224,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        shallow: bool = False,
        separable: bool = True,
        activation: Activation = "relu",
        padding: Padding = "symmetric",
        batch_norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_width(width_multiplier)
        for name, value in (("resolution", resolution), ("num_classes", num_classes), ("in_channels", in_channels)):
            whole(name, value)
        flag("shallow", shallow)
        flag("separable", separable)
        check_padding(padding)
        norm, act = batch_norm(batch_norm_eps), activation_of(activation)
        self.resolution = resolution
        self.activation, self.padding, self.batch_norm_eps = activation, padding, batch_norm_eps
        channels = max(8, int(32 * width_multiplier))
        self.stem = conv_norm_act(in_channels, channels, 3, 2, norm, act, padding)
        blocks: list[nn.Module] = []
        for full_width, stride in _SHALLOW if shallow else _BLOCKS:
            out_channels = max(8, int(full_width * width_multiplier))
            if separable:
                block: nn.Module = DepthwiseSeparableConv2d(
                    channels, out_channels, 3, stride=stride, padding="same" if padding == "same" else 1, bias=False,
                    norm_layer=norm, act_layer=act,
                )  # fmt: skip
            else:
                block = conv_norm_act(channels, out_channels, 3, stride, norm, act, padding)
            blocks.append(block)
            channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.stages = (1, 2, 2, 1, 2) if shallow else (1, 2, 2, 6, 2)  # number of blocks at each resolution
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


def check_width(width_multiplier: float, name: str = "width_multiplier") -> None:
    """Require a positive, finite multiplier."""
    number = isinstance(width_multiplier, int | float) and not isinstance(width_multiplier, bool)
    if not number or not 0 < width_multiplier < float("inf"):
        raise SeparableValueError(f"{name}={width_multiplier!r}: must be a number above 0")


@register
def mobilenet_v1(
    width_multiplier: float = 1.0,
    resolution: int = 224,
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    shallow: bool = False,
    activation: Activation = "relu",
    padding: Padding = "symmetric",
    batch_norm_eps: float = 1e-5,
) -> MobileNetV1:
    """Build MobileNet: see `MobileNetV1`.

    Example:
        >>> import torch
        >>> net = mobilenet_v1(0.25, resolution=128, num_classes=10).eval()
        >>> net(torch.zeros(1, 3, 128, 128)).shape
        torch.Size([1, 10])
    """
    return MobileNetV1(
        width_multiplier, resolution, num_classes, in_channels,
        shallow=shallow, activation=activation, padding=padding, batch_norm_eps=batch_norm_eps,
    )  # fmt: skip


@register
def conv_mobilenet(
    width_multiplier: float = 1.0, resolution: int = 224, num_classes: int = 1000, in_channels: int = 3
) -> MobileNetV1:
    """Build MobileNet with dense 3x3 convolutions in place of separable blocks ("Conv MobileNet", table 4)."""
    return MobileNetV1(width_multiplier, resolution, num_classes, in_channels, separable=False)
