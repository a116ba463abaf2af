"""EfficientNet-Lite: EfficientNet (Tan and Le, arXiv 1905.11946) without squeeze-and-excitation and with ReLU6.

Google released the variants in 2020 (tensorflow/tpu, models/official/efficientnet/lite). The stem, the head, and the
depths of the first and last stage are not scaled.
"""

from __future__ import annotations

import math

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
from torch_separable.models.mobilenetv2 import round_channels
from torch_separable.models.registry import records_init_args, register
from torch_separable.nn._arguments import whole

# (expansion, kernel, output channels, repeats, stride): EfficientNet-B0, table 1 of the paper.
_STAGES = [
    (1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2), (6, 5, 112, 3, 1), (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
]  # fmt: skip


@records_init_args
class EfficientNetLite(nn.Module):
    """A 3x3 stem, seven stages of inverted residuals, a 1x1 head, global average pooling and a classifier.

    Padding and epsilon default to TensorFlow's, which the published weights need. Those weights expect RGB images in
    0..255, normalized as ``(x - 127) / 128``.

    Args:
        width_multiplier: factor of the stages' channels, rounded to multiples of 8; 1.0, 1.0, 1.1, 1.2, 1.4 for Lite0
            to Lite4.
        depth_multiplier: factor of the number of blocks in all stages but the first and last, rounded up; 1.0, 1.1,
            1.2, 1.4, 1.8 for Lite0 to Lite4.
        resolution: intended image size, stored as an attribute; 224, 240, 260, 280, 300 for Lite0 to Lite4.
        num_classes: number of classes.
        in_channels: channels of the images.
        dropout: dropout probability before the classifier; 0.2, 0.2, 0.3, 0.3, 0.3 for Lite0 to Lite4.
        padding: TensorFlow's ``"same"``, or ``"symmetric"``.
        batch_norm_eps: epsilon of the batch norms.
    """

    def __init__(
        self,
        width_multiplier: float = 1.0,
        depth_multiplier: float = 1.0,
        resolution: int = 224,
        num_classes: int = 1000,
        in_channels: int = 3,
        dropout: float = 0.2,
        *,
        padding: Padding = "same",
        batch_norm_eps: float = 1e-3,
    ) -> None:
        super().__init__()
        check_width(width_multiplier)
        check_width(depth_multiplier, "depth_multiplier")
        for name, value in (("resolution", resolution), ("num_classes", num_classes), ("in_channels", in_channels)):
            whole(name, value)
        check_probability("dropout", dropout)
        check_padding(padding)
        norm = batch_norm(batch_norm_eps)
        self.resolution = resolution
        self.activation, self.padding, self.batch_norm_eps = "relu6", padding, batch_norm_eps
        channels = 32
        self.stem = conv_norm_act(in_channels, channels, 3, 2, norm, nn.ReLU6, padding)
        stages = []
        for number, (expand_ratio, kernel_size, width, repeats, stride) in enumerate(_STAGES):
            scaled = 0 < number < len(_STAGES) - 1
            count = math.ceil(repeats * depth_multiplier) if scaled else repeats
            stages.append((expand_ratio, kernel_size, round_channels(width * width_multiplier), count, stride))
        self.blocks = inverted_residuals(channels, stages, norm, padding)
        self.stages = tuple(count for *_, count, _ in stages)
        self.head = conv_norm_act(stages[-1][2], 1280, 1, 1, norm, nn.ReLU6)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(self.dropout(x.mean((2, 3))))  # type: ignore[no-any-return]


@register
def efficientnet_lite0(
    resolution: int = 224,
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    padding: Padding = "same",
    batch_norm_eps: float = 1e-3,
) -> EfficientNetLite:
    """Build EfficientNet-Lite0: see `EfficientNetLite`.

    Example:
        >>> sum(p.numel() for p in efficientnet_lite0().parameters())
        4652008
    """
    return EfficientNetLite(
        1.0, 1.0, resolution, num_classes, in_channels, padding=padding, batch_norm_eps=batch_norm_eps
    )
