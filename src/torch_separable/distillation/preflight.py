"""What is tried before anything is trained, so that what does not fit is said at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from torch_separable._network.checks import require_float32
from torch_separable._network.outputs import evaluating
from torch_separable.data.image_data import ImageData
from torch_separable.distillation.config import DistillConfig
from torch_separable.distillation.evaluation import device_of, logits_for, require_images, require_labels
from torch_separable.distillation.losses import watching
from torch_separable.errors import SeparableError, SeparableValueError


def check_data(data: ImageData, validation: ImageData | None, config: DistillConfig) -> None:
    """Refuse images that lack labels where labels are needed, or that differ in shape from those to validate on."""
    for name, given in (("data", data), ("validation", validation)):
        if given is not None or name == "data":
            require_images(given, name)
    if config.label_weight:
        require_labels(data, f"label_weight={config.label_weight:g}")
    if validation is None:
        return
    require_labels(validation, "validation")
    if validation.image_shape != data.image_shape:
        raise SeparableValueError(
            f"validation images have shape {validation.image_shape}, those to train on "
            f"{data.image_shape}: they must agree"
        )


def layout_for(networks: Sequence[nn.Module], data: ImageData) -> torch.memory_format:
    """Channels-last, unless a network cannot take that, as where it flattens the maps of convolutions by ``view``.

    Convolutions of both kinds, forward and backward, are faster in this layout on CPU and GPU.
    """
    for network in networks:
        device = device_of(network)
        images = data.take(slice(0, 2))[0].to(device).contiguous(memory_format=torch.channels_last)
        with evaluating(network), torch.no_grad():
            try:
                network(images)
            except RuntimeError:  # what is wrong besides is told by `check_networks`
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
    """Try the networks, in evaluation mode, on two images; ``features`` are the modules that are compared."""
    if teacher is None and config.needs_teacher:
        raise SeparableValueError(
            "teacher is None: distillation needs one; for training on labels alone set logits_weight=0, label_weight=1"
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
            raise SeparableError(f"the {name} gives NaN or infinite logits on {data.name}: check its weights")
        shapes.append(tuple(logits.shape))
    if shapes[0] != shapes[-1]:
        raise SeparableError(
            f"the student gives logits of shape {shapes[0]}, the teacher {shapes[-1]}: they must agree; is this the "
            "network that the student was converted from?"
        )
    if config.logits_weight and (len(shapes[0]) < 2 or shapes[0][1] == 1):
        raise SeparableValueError(
            f"the networks give one number for each image or position, logits of shape {shapes[0]}: classes would be "
            "compared (softmax), and of one there is nothing to learn. Give logits_weight=0 and feature_weight=1"
        )
    for feature in features:
        _check_feature(feature, outputs)
    if config.label_weight and (len(shapes[0]) != 2 or shapes[0][1] < len(data.classes)):
        raise SeparableError(
            f"the network gives logits of shape {shapes[0]}; {data.name} has {len(data.classes)} classes: label_weight "
            "needs logits (n, classes)"
        )


def _check_feature(feature: str, outputs: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Require that a module has run in both networks, and given outputs that can be compared."""
    for name, seen in outputs.items():
        if feature not in seen:
            raise SeparableError(f"module {feature!r} is not called in the {name}: name others by features=(...)")
    ours, theirs = (tuple(seen[feature].shape) for seen in outputs.values())
    if ours != theirs:
        raise SeparableError(
            f"module {feature!r} gives a tensor of shape {ours} in the student and of {theirs} in the teacher: name "
            "others to compare by features=(...)"
        )
