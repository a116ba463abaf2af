"""MobileNetV2 (Sandler et al., arXiv 1801.04381)."""

from __future__ import annotations

from torch import Tensor, nn

from torch_separable.models._layers import (
    Padding,
    batch_norm,
    check_padding,
    check_probability,
    conv_norm_act,
    inverted_residuals,
)
from torch_separable.models.mobilenetv1 import check_width
from torch_separable.models.registry import records_init_args, register
from torch_separable.nn._arguments import whole

# (expansion, output channels, repeats, stride): table 2 of the paper.
_STAGES = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


@records_init_args
class MobileNetV2(nn.Module):
    """A 3x3 stem, seventeen inverted residuals, a 1x1 head, global average pooling and a classifier.

    Args:
        width_multiplier: factor of each layer's channels, rounded to multiples of 8; the head has at least 1280.
        resolution: intended image size, stored as an attribute.
        num_classes: number of classes.
        in_channels: channels of the images.
        dropout: dropout probability before the classifier.
        padding: ``"symmetric"``, or TensorFlow's ``"same"``, which weights trained there need.
        batch_norm_eps: epsilon of the batch norms; TensorFlow's weights need 1e-3.
    """

    output_stride = 32  # product of all strides; segmentation networks reduce it by dilation

    def __init__(
        self,
        width_multiplier: float = 1.0,
        resolution: int = 224,
        num_classes: int = 1000,
        in_channels: int = 3,
        dropout: float = 0.2,
        *,
        padding: Padding = "symmetric",
        batch_norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_width(width_multiplier)
        for name, value in (("resolution", resolution), ("num_classes", num_classes), ("in_channels", in_channels)):
            whole(name, value)
        check_probability("dropout", dropout)
        check_padding(padding)
        norm = batch_norm(batch_norm_eps)
        self.resolution = resolution
        self.activation, self.padding, self.batch_norm_eps = "relu6", padding, batch_norm_eps
        channels = round_channels(32 * width_multiplier)
        self.stem = conv_norm_act(in_channels, channels, 3, 2, norm, nn.ReLU6, padding)
        stages = [(e, 3, round_channels(width * width_multiplier), n, stride) for e, width, n, stride in _STAGES]
        self.blocks = inverted_residuals(channels, stages, norm, padding)
        self.stages = tuple(repeats for *_, repeats, _ in stages)
        head = round_channels(1280 * max(1.0, width_multiplier))
        self.head = conv_norm_act(stages[-1][2], head, 1, 1, norm, nn.ReLU6)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(head, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(self.dropout(x.mean((2, 3))))  # type: ignore[no-any-return]


def round_channels(channels: float, multiple: int = 8) -> int:
    """Round to a multiple of 8, at least 8, and never down by more than 10 %, as in the authors' networks."""
    rounded = max(multiple, int(channels + multiple / 2) // multiple * multiple)
    return rounded + multiple if rounded < 0.9 * channels else rounded


@register
def mobilenet_v2(
    width_multiplier: float = 1.0,
    resolution: int = 224,
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    padding: Padding = "symmetric",
    batch_norm_eps: float = 1e-5,
) -> MobileNetV2:
    """Build MobileNetV2: see `MobileNetV2`.

    Example:
        >>> sum(p.numel() for p in mobilenet_v2().parameters())
        3504872
    """
    return MobileNetV2(
        width_multiplier, resolution, num_classes, in_channels, padding=padding, batch_norm_eps=batch_norm_eps
    )
