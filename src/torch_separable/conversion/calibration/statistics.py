"""The result of calibration: what planning and fitting know about a network and its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torch_separable.conversion.calibration.images import Batch
from torch_separable.conversion.calibration.outputs import NetworkOutputs
from torch_separable.conversion.calibration.recording import ConsumerPattern
from torch_separable.conversion.convolutions import Conv, spec_of
from torch_separable.conversion.solvers.factorize import Moments
from torch_separable.cost.formulas import ConvSpec
from torch_separable.errors import SeparableError


@dataclass(frozen=True)
class LayerStatistics:
    """One convertible convolution and its input over the calibration images.

    Attributes:
        name: module name.
        spec: shape of the convolution.
        inputs: for each call, how many inputs one image makes and their spatial size: (1, H, W), or (T, H, W) where the
            network folds T frames into the batch.
        input_pixels: pixels of its input for each image, summed over its calls.
        macs: multiply-accumulates for each image, summed over its calls.
        parameters: number of parameters, including those of a parametrisation.
        consumer: what the network does with its output.
        scale: factor that the following batch norm applies to each output channel (1 without one), (M,), float64.
        shift: summand that the following batch norm applies (0 without one), (M,), float64.
        pixels: output pixels that are sampled at each call.
        moments: second moments of the sampled patches with the dense output as target, one entry for each group.
            ``None`` where they exceed the memory given to `calibrate`; `layer_moments` then gathers them on demand.
    """

    name: str
    spec: ConvSpec
    inputs: tuple[tuple[int, ...], ...]
    input_pixels: int
    macs: int
    parameters: int
    consumer: ConsumerPattern
    scale: Tensor
    shift: Tensor
    pixels: int
    moments: tuple[Moments, ...] | None

    @property
    def calls(self) -> int:
        """How often one forward pass calls the layer."""
        return len(self.inputs)


@dataclass(frozen=True)
class Statistics:
    """Everything that `plan` and `apply` need to know about a network and its calibration images.

    Attributes:
        layers: the convertible convolutions that ran, in execution order.
        skipped: reason by module name for every other convolution.
        batches: the calibration images, channels-last where the network accepts that.
        outputs: the dense network's outputs for them.
        macs: multiply-accumulates of the whole dense network for one image.
        parameters: parameters of the whole dense network.
        memory: bytes that recorded samples may take.
    """

    layers: tuple[LayerStatistics, ...]
    skipped: Mapping[str, str]
    batches: tuple[Batch, ...]
    outputs: NetworkOutputs
    macs: int
    parameters: int
    memory: int

    def __getitem__(self, name: str) -> LayerStatistics:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)


def check_statistics(model: nn.Module, statistics: Statistics, convertible: Mapping[str, Conv]) -> None:
    """Require that the statistics are of this network.

    Args:
        model: the network.
        statistics: from `calibrate`.
        convertible: its convertible convolutions by name.

    Raises:
        SeparableError: a layer of the statistics is absent or has another shape; the message names the first.
    """
    for layer in statistics.layers:
        if layer.name not in convertible or spec_of(convertible[layer.name]) != layer.spec:
            raise SeparableError(
                f"the statistics are of another network: {type(model).__name__} has no convolution {layer.name} of "
                "that shape. Give what calibrate(...) returned for this network"
            )


def unreached_layer(name: str) -> SeparableError:
    """Return the error for a planned layer that no calibration image reaches."""
    return SeparableError(
        f"layer {name} of the plan never ran on the calibration images: exclude it, or add images that reach it"
    )


def norm_affine(model: nn.Module, name: str | None, channels: int) -> tuple[Tensor, Tensor]:
    """Return the scale and shift that batch norm ``name`` applies in evaluation mode, (M,) each; 1 and 0 without it."""
    scale, shift = torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    if name is None:
        return scale, shift
    norm = model.get_submodule(name)
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    if norm.running_mean is None or norm.running_var is None:
        return scale, shift
    scale = (norm.running_var.cpu().double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().cpu().double()
    if norm.bias is not None:
        shift = norm.bias.detach().cpu().double()
    return scale, shift - scale * norm.running_mean.cpu().double()
