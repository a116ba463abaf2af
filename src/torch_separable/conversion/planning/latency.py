"""Milliseconds of convolutions on this machine, dense and factorised, by the engine that is to run the network."""

from __future__ import annotations

import statistics as middle
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
from torch_separable.conversion.apply_plan import separable_of
from torch_separable.conversion.calibration.calibrate import LayerStatistics, Statistics, over_processes
from torch_separable.conversion.calibration.observer import run
from torch_separable.conversion.layers import find_convertible, grouped_weight
from torch_separable.conversion.planning.plan import Engine
from torch_separable.conversion.planning.sensitivity import Choice
from torch_separable.conversion.solvers.factorize import decouple
from torch_separable.errors import SeparableError

# Every shape is timed in so many rounds, all of them in turn: its time is the least of the rounds' medians of so many
# calls. Other work that passes spoils a round of many shapes, and not the only one of a single shape. With fewer calls
# the median would be of a cache that the other shapes have filled.
_ROUNDS, _CALLS = 4, 15

# Layers that take so many times as long as the network that they are part of were not measured undisturbed.
_DISTURBED = 1.3

_Timer = Callable[[], float]  # milliseconds


@dataclass(frozen=True)
class LayerTimes:
    """What one image takes in each layer, dense or factorised.

    Attributes:
        known: milliseconds of one call, by what a layer is, its input, and its choice of order and rank (None: dense).
        rest: milliseconds of the dense network that its convertible layers do not account for.
    """

    known: Mapping[Any, float]
    rest: float

    def __call__(self, layer: LayerStatistics, choice: Choice | None) -> float:
        """Milliseconds of all calls of a layer, dense or with a choice of order and rank."""
        return sum(self.known[layer.spec, shape, choice] for shape in layer.inputs)


def time_layers(
    model: nn.Module, statistics: Statistics, choices: Sequence[Sequence[Choice]], engine: Engine
) -> LayerTimes:
    """Measure the network and each shape of its layers, dense and with each of the layer's ``choices``.

    Raises:
        SeparableError: the engine cannot run the network.
    """
    timer, alone = (_compiled_whole, _compiled_alone) if engine == "compiled" else (_pytorch, _pytorch)
    convs = find_convertible(model).convertible
    first = statistics.batches[0]
    one: Any = first[:1] if isinstance(first, Tensor) else {k: v[:1] for k, v in first.items()}
    with evaluating(model), torch.no_grad():
        timers: dict[Any, _Timer] = {None: timer(model, one)}
        for layer, possible in zip(statistics.layers, choices, strict=True):
            conv = convs[layer.name]
            for shape, choice in product(dict.fromkeys(layer.inputs), (None, *possible)):
                if (layer.spec, shape, choice) not in timers:
                    images = torch.ones(shape[0], layer.spec.in_channels, *shape[1:]).to(conv.weight)
                    timers[layer.spec, shape, choice] = alone(_module(conv, choice), images)
        known = _agreed(quietest(timers, rounds=_ROUNDS))
    whole = known.pop(None)
    taken = LayerTimes(known, 0.0)
    layers = sum(taken(layer, None) for layer in statistics.layers)
    if layers > _DISTURBED * whole:
        warnings.warn(
            f"the network's layers take {layers:.3g} ms one by one, and the whole of it {whole:.3g} ms: other work "
            "disturbs what is measured. Plan again while the machine does nothing else, or with fewer threads",
            stacklevel=2,
        )
    return replace(taken, rest=max(whole - layers, 0.0))


def _module(conv: Any, choice: Choice | None) -> nn.Module:
    if choice is None:
        return conv  # type: ignore[no-any-return]
    return separable_of(conv, tuple(decouple(w, *choice) for w in grouped_weight(conv)), None)


def _agreed(milliseconds: dict[Any, float]) -> dict[Any, float]:
    """The means over all processes, which are to come to the same plan."""
    total, count = over_processes(torch.tensor(list(milliseconds.values()), dtype=torch.float64), torch.tensor(1.0))
    return dict(zip(milliseconds, (total / count).tolist(), strict=True))


def _pytorch(module: nn.Module, images: Any) -> _Timer:
    return _clock(lambda: run(module, images))


def _compiled_whole(module: nn.Module, images: Any) -> _Timer:
    compiled = _compiled(module, images)
    return _clock(lambda: compiled(images))


def _compiled_alone(module: nn.Module, images: Tensor) -> _Timer:
    """Without taking the images in, as other layers hand them over where they are."""
    compiled = _compiled(module, images)
    return lambda: sum(node.milliseconds for node in compiled.profile(images, _CALLS) if node.kind != "import")


def _compiled(module: nn.Module, images: Any) -> Any:
    from torch_separable.runtime import compile  # which uses this package

    try:
        if isinstance(images, Mapping):
            raise SeparableError(f"it takes {', '.join(map(str, images))} by name, not one tensor")
        return compile(module, images)
    except SeparableError as error:
        raise SeparableError(
            f"latency_ms is measured with torch_separable.compile, which cannot run {type(module).__name__}: {error}. "
            "With engine='pytorch' it is measured in PyTorch"
        ) from error


def _finish() -> None:
    if torch.accelerator.is_available():  # whose calls return before they are done
        torch.accelerator.synchronize()


def _clock(call: Callable[[], object]) -> _Timer:
    """Return the median of several calls, after one that warms up, each time it is called."""

    def timed() -> float:
        times = []
        for turn in range(_CALLS + 1):
            _finish()
            start = time.perf_counter()
            call()
            _finish()
            if turn:
                times.append(1e3 * (time.perf_counter() - start))
        return middle.median(times)

    return timed
