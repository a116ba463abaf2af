"""Time dense and factorised convolutions on this machine, with the engine that will run the network."""

from __future__ import annotations

import statistics as stdlib_statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from torch_separable._network.outputs import evaluating
from torch_separable._system.timing import quietest
from torch_separable.conversion.calibration.forward import run_batch
from torch_separable.conversion.calibration.images import first_images
from torch_separable.conversion.calibration.processes import sum_over_processes
from torch_separable.conversion.calibration.statistics import LayerStatistics, Statistics
from torch_separable.conversion.convolutions import grouped_weight
from torch_separable.conversion.layers import ConvertibleLayers
from torch_separable.conversion.planning.options import Choice
from torch_separable.conversion.planning.plan import Engine
from torch_separable.conversion.replacement import separable_layer
from torch_separable.conversion.solvers.factorize import decouple
from torch_separable.errors import SeparableError

# A shape's time is the least, over 4 rounds, of the median of 15 calls. The rounds interleave all shapes, so that a
# burst of other work spoils one round of many shapes instead of all rounds of one shape. With fewer calls the median
# would include calls that find the cache filled by the shape before.
_ROUNDS, _CALLS = 4, 15

# Other work disturbed the measurement if the layers alone take this many times as long as the whole network.
_DISTURBED = 1.3

_Timer = Callable[[], float]  # milliseconds


@dataclass(frozen=True)
class LayerTimes:
    """Measured time of one image in each layer, dense or factorised.

    Attributes:
        times: milliseconds of one call, by the layer's spec, its input's shape, and its choice of order and rank
            (``None``: dense).
        rest: milliseconds of the dense network outside its convertible layers.
    """

    times: Mapping[Any, float]
    rest: float

    def __call__(self, layer: LayerStatistics, choice: Choice | None) -> float:
        """Return the milliseconds of all calls of a layer, dense or with a choice of order and rank."""
        return sum(self.times[layer.spec, shape, choice] for shape in layer.inputs)


def time_layers(
    model: nn.Module,
    layers: ConvertibleLayers,
    statistics: Statistics,
    choices: Sequence[Sequence[Choice]],
    engine: Engine,
) -> LayerTimes:
    """Time the network, and each distinct shape of its layers, dense and with each of the layer's ``choices``.

    Raises:
        SeparableError: the engine cannot run the network.
    """
    time_network, time_layer = (_time_compiled, _time_compiled_inside) if engine == "compiled" else (_time_pytorch,) * 2
    with evaluating(model), torch.no_grad():
        timers: dict[Any, _Timer] = {None: time_network(model, first_images(statistics.batches[0], 1))}
        for layer, possible in zip(statistics.layers, choices, strict=True):
            conv = layers.convertible[layer.name]
            for shape, choice in product(dict.fromkeys(layer.inputs), (None, *possible)):
                if (layer.spec, shape, choice) not in timers:
                    images = torch.ones(shape[0], layer.spec.in_channels, *shape[1:]).to(conv.weight)
                    timers[layer.spec, shape, choice] = time_layer(_module(conv, choice), images)
        times = _mean_over_processes(quietest(timers, rounds=_ROUNDS))
    whole = times.pop(None)
    measured = LayerTimes(times, 0.0)
    sum_of_layers = sum(measured(layer, None) for layer in statistics.layers)
    if sum_of_layers > _DISTURBED * whole:
        warnings.warn(
            f"the layers take {sum_of_layers:.3g} ms one by one, but the whole network only {whole:.3g} ms: other work "
            "disturbed the measurement. Plan again on an idle machine, or with fewer threads",
            stacklevel=2,
        )
    return replace(measured, rest=max(whole - sum_of_layers, 0.0))


def _module(conv: Any, choice: Choice | None) -> nn.Module:
    if choice is None:
        return conv  # type: ignore[no-any-return]
    return separable_layer(conv, tuple(decouple(w, *choice) for w in grouped_weight(conv)), None)


def _mean_over_processes(milliseconds: dict[Any, float]) -> dict[Any, float]:
    """Average the times over all processes, so that all of them make the same plan."""
    total, count = sum_over_processes(torch.tensor(list(milliseconds.values()), dtype=torch.float64), torch.tensor(1.0))
    return dict(zip(milliseconds, (total / count).tolist(), strict=True))


def _time_pytorch(module: nn.Module, images: Any) -> _Timer:
    return _median_of_calls(lambda: run_batch(module, images))


def _time_compiled(module: nn.Module, images: Any) -> _Timer:
    compiled = _compiled(module, images)
    return _median_of_calls(lambda: compiled(images))


def _time_compiled_inside(module: nn.Module, images: Tensor) -> _Timer:
    """Time a layer without the import of its input: inside a network the activations are in the engine's layout."""
    compiled = _compiled(module, images)
    return lambda: sum(node.milliseconds for node in compiled.profile(images, _CALLS) if node.kind != "import")


def _compiled(module: nn.Module, images: Any) -> Any:
    from torch_separable.runtime import compile

    try:
        if isinstance(images, Mapping):
            raise SeparableError(f"its inputs are keyword arguments ({', '.join(map(str, images))}), not one tensor")
        return compile(module, images, compare=False)
    except SeparableError as error:
        raise SeparableError(
            f"torch_separable.compile, which measures latency_ms, cannot run {type(module).__name__}: {error}. "
            "engine='pytorch' measures it in PyTorch"
        ) from error


def _synchronize() -> None:
    if torch.accelerator.is_available():  # its calls return before they are done
        torch.accelerator.synchronize()


def _median_of_calls(call: Callable[[], object]) -> _Timer:
    """Return a function that times `_CALLS` calls after one warm-up call, and returns the median in milliseconds."""

    def timed() -> float:
        times = []
        for turn in range(_CALLS + 1):
            _synchronize()
            start = time.perf_counter()
            call()
            _synchronize()
            if turn:
                times.append(1e3 * (time.perf_counter() - start))
        return stdlib_statistics.median(times)

    return timed
