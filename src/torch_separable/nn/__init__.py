"""Layers: depthwise, pointwise and depthwise separable convolutions, inverted residuals and shuffle units."""

from torch_separable.nn.article import depthwise_separable_conv
from torch_separable.nn.conv import (
    DepthwiseConv1d,
    DepthwiseConv2d,
    DepthwiseConv3d,
    PointwiseConv1d,
    PointwiseConv2d,
    PointwiseConv3d,
)
from torch_separable.nn.inverted_residual import InvertedResidual
from torch_separable.nn.padding import SamePadding
from torch_separable.nn.separable import (
    DepthwiseSeparableConv1d,
    DepthwiseSeparableConv2d,
    DepthwiseSeparableConv3d,
)
from torch_separable.nn.shuffle import ChannelShuffle, ShuffleUnit

__all__ = [
    "ChannelShuffle",
    "DepthwiseConv1d",
    "DepthwiseConv2d",
    "DepthwiseConv3d",
    "DepthwiseSeparableConv1d",
    "DepthwiseSeparableConv2d",
    "DepthwiseSeparableConv3d",
    "InvertedResidual",
    "PointwiseConv1d",
    "PointwiseConv2d",
    "PointwiseConv3d",
    "SamePadding",
    "ShuffleUnit",
    "depthwise_separable_conv",
]
