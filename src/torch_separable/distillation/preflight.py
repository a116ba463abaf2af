"""Checks of data and networks before training starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from torch_separable._network.checks import device_of, require_float32
from torch_separable._network.outputs import evaluating
from torch_separable.data.image_data import ImageData
from torch_separable.distillation.config import DistillConfig
from torch_separable.distillation.evaluation import logits_for, require_labels
from torch_separable.distillation.losses import watching
from torch_separable.errors import SeparableError, SeparableValueError


def check_data(data: ImageData, validation: ImageData | None, config: DistillConfig) -> None:
    """Raise if required labels are missing, or if training and validation images differ in shape."""
    if config.label_weight:
        require_labels(data, f"label_weight={config.label_weight:g}")
    if validation is None:
        return
    require_labels(validation, "validation")
    if validation.image_shape != data.image_shape:
        raise SeparableValueError(
            f"validation images have shape {validation.image_shape}, training images "
            f"{data.image_shape}: they must be equal"
        )


def layout_for(networks: Sequence[nn.Module], data: ImageData) -> torch.memory_format:
    """Return channels-last if every network supports it, otherwise the contiguous format.

    Dense and depthwise convolutions, forward and backward, are faster in channels-last on CPU and GPU. A network that
    flattens feature maps by ``view`` fails in it.
    """
    for network in networks:
        device = device_of(network)
        images = data.take(slice(0, 2))[0].to(device).contiguous(memory_format=torch.channels_last)
        with evaluating(network), torch.no_grad():
            try:
                network(images)
            except RuntimeError:  # `check_networks` reports errors that have another cause
                return torch.contiguous_format
    return torch.channels_last


def check_networks(
    student: nn.Module,
    teacher: nn.Module | None,
    data: ImageData,
    config: DistillConfig,
    features: tuple[str, ...],
    device: torch.device,
) -> None:
    """Run both networks in evaluation mode on two images and check their outputs and ``features``."""
    if teacher is None and config.needs_teacher:
        raise SeparableValueError(
            "teacher is None, but the loss uses it: give a teacher, or logits_weight=0, feature_weight=0 and "
            "label_weight=1 to train on labels only"
        )
    images = data.take(slice(0, 2))[0].to(device)
    shapes, outputs = [], {}
    for name, network in (("student", student), ("teacher", teacher)):
        if network is None:
            continue
        require_float32(network, name, "training")
        network.eval()
        with torch.no_grad(), watching(network, features) as outputs[name]:
            logits = logits_for(network, images, data, name)
        if not logits.isfinite().all():
            raise SeparableError(f"the {name} returns NaN or infinite logits on {data.name}: it cannot be trained")
        shapes.append(tuple(logits.shape))
    if shapes[0] != shapes[-1]:
        raise SeparableError(
            f"the student returns logits of shape {shapes[0]}, the teacher {shapes[-1]}: they must be equal"
        )
    if config.logits_weight and (len(shapes[0]) < 2 or shapes[0][1] == 1):
        raise SeparableValueError(
            f"the networks return one value per image or position, logits of shape {shapes[0]}: the softmax of one "
            "value is constant. Give logits_weight=0 and feature_weight=1"
        )
    for feature in features:
        _check_feature(feature, outputs)
    if config.label_weight and (len(shapes[0]) != 2 or shapes[0][1] < len(data.classes)):
        raise SeparableError(
            f"the network returns logits of shape {shapes[0]}; {data.name} has {len(data.classes)} classes: "
            "label_weight needs logits (N, classes)"
        )


def _check_feature(feature: str, outputs: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise unless a module ran in both networks and its outputs have equal shapes."""
    for name, seen in outputs.items():
        if feature not in seen:
            raise SeparableError(f"module {feature!r} is not called in the {name}: name others with features=(...)")
    ours, theirs = (tuple(seen[feature].shape) for seen in outputs.values())
    if ours != theirs:
        raise SeparableError(
            f"module {feature!r} returns shape {ours} in the student and {theirs} in the teacher: name other modules "
            "with features=(...)"
        )
