"""How much the network's output changes when one layer alone is converted.

The change is measured at the network's output on calibration images, for a few options of each layer. Between them it
follows the layer's own error closely as a power law, ``change ≈ α · error^β``. The error of every option is cheap to
compute; a forward pass is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torch_separable._network.all_outputs import floating_outputs
from torch_separable._network.outputs import evaluating
from torch_separable.conversion.calibration.forward import place_batch, run_placed
from torch_separable.conversion.calibration.images import Batch, first_images, images_in, tensors_of
from torch_separable.conversion.calibration.outputs import NetworkOutputs, join_outputs
from torch_separable.conversion.calibration.recorder import input_of
from torch_separable.conversion.calibration.replay_cache import ReplayCache
from torch_separable.conversion.calibration.statistics import Statistics
from torch_separable.conversion.convolutions import Conv, convolve
from torch_separable.conversion.planning.options import SMALLEST_ERROR, Option
from torch_separable.conversion.planning.plan import Method
from torch_separable.conversion.solvers.factorize import Moments
from torch_separable.conversion.solvers.layer_fit import biases

# The network's output is measured for the options whose errors are nearest to these.
_PROBED_ERRORS = (0.3, 0.03)
# Images that it is measured on: 128 of up to 80x80 pixels, and fewer larger ones (16 at least), which take longer.
_PROBE_IMAGES, _FEWEST_PROBE_IMAGES, _PROBE_PIXELS = 128, 16, 128 * 80 * 80


def measure_changes(
    model: nn.Module,
    statistics: Statistics,
    conv: Conv,
    moments: tuple[Moments, ...],
    options: Sequence[Option],
    method: Method,
    cache: ReplayCache,
) -> list[float]:
    """Return for each option how much the network's outputs change when this layer alone takes it.

    The change is the mean squared difference over the output's variance, see `NetworkOutputs.change`.

    Args:
        model: the dense network.
        statistics: its statistics.
        conv: the layer.
        moments: its moments, one entry for each group.
        options: from `fit_options`.
        method: how factors were found.
        cache: one cache for all layers, which are measured in execution order.
    """
    fitted = [option for option in options if option.factors is not None]
    batches = _probe_batches(statistics.batches)
    probed: dict[tuple[str, int], float] = {}
    for target in _PROBED_ERRORS:
        option = min(fitted, key=lambda o: abs(np.log(max(o.error, SMALLEST_ERROR) / target)))
        if option.choice not in probed:
            change = _output_change(model, batches, statistics.outputs, conv, option, moments, method, cache)
            probed[option.choice] = max(change, 0.0)
    points = sorted(
        (max(option.error, SMALLEST_ERROR), max(probed[option.choice], 1e-30))
        for option in fitted
        if option.choice in probed
    )
    return [_power_law(points, max(option.error, SMALLEST_ERROR)) for option in options]


def _power_law(points: Sequence[tuple[float, float]], error: float) -> float:
    """Return the change for an error, from the nearest measured point and the slope between the outermost points."""
    (low, low_change), (high, high_change) = points[0], points[-1]
    slope = 1.0
    if high > 1.5 * low:
        slope = float(np.clip(np.log(high_change / low_change) / np.log(high / low), 0.5, 2.0))
    nearest, change = min(points, key=lambda point: abs(np.log(point[0] / error)))
    return change * float((error / nearest) ** slope)


def _output_change(
    model: nn.Module,
    batches: Sequence[Batch],
    reference: NetworkOutputs,
    conv: Conv,
    option: Option,
    moments: tuple[Moments, ...],
    method: Method,
    cache: ReplayCache,
) -> float:
    """Run the network with one dense kernel replaced by the product of an option's factors."""
    assert option.factors is not None
    kernel = torch.cat([f.kernel() for f in option.factors]).reshape(conv.weight.shape)
    bias = None if method == "svd" else biases(option.factors, moments)
    if bias is not None and conv.bias is not None:
        bias = bias - conv.bias.detach().cpu().double()

    def replace_output(module: Conv, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
        result = convolve(module, input_of(args, kwargs), kernel.to(module.weight))
        if bias is None:
            return result
        return result + bias.to(result).view(-1, *[1] * len(module.kernel_size))

    handle = conv.register_forward_hook(replace_output, prepend=True, with_kwargs=True)
    try:
        with evaluating(model), torch.no_grad():
            returned = [
                cache.run(i, conv, partial(run_placed, model, place_batch(model, batch)))
                for i, batch in enumerate(batches)
            ]
            outputs = [floating_outputs(output) for output in returned]
    finally:
        handle.remove()
    changed = join_outputs(model, batches, outputs, reference.weights)
    return reference.change(changed, sum(map(images_in, batches)))


def _probe_batches(batches: Sequence[Batch]) -> list[Batch]:
    """Return the first images, in batches: enough to see a change of the network's outputs."""
    pixels = max((tensor[0, 0].numel() for tensor in tensors_of(batches[0]) if tensor.dim() > 2), default=1)
    wanted = max(_FEWEST_PROBE_IMAGES, min(_PROBE_IMAGES, _PROBE_PIXELS // pixels))
    chosen: list[Batch] = []
    for batch in batches:
        if wanted <= 0:
            break
        chosen.append(first_images(batch, wanted))
        wanted -= images_in(batch)
    return chosen
