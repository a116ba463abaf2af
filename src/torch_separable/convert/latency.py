"""Milliseconds of convolutions on this machine, dense and factorised, by the engine that is to run the network."""

from __future__ import annotations

import statistics as middle
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torch_separable.convert.apply import separable_of
from torch_separable.convert.calibrate import LayerStatistics, Statistics, over_processes
from torch_separable.convert.factorize import decouple
from torch_separable.convert.layers import grouped_weight, survey
from torch_separable.convert.plan import Engine
from torch_separable.convert.record import run
from torch_separable.convert.sensitivity import Choice
from torch_separable.errors import SeparableError
from torch_separable.outputs import evaluating

_REPEATS = 15  # of which a time is the median

# Layers that take so many times as long as the network that they are part of were not measured undisturbed.
_DISTURBED = 1.3


class LayerTimes:
    """What one image takes in each layer, dense or factorised; each shape is measured once.

    Attributes:
        rest: milliseconds of the dense network that its convertible layers do not account for.

    Raises:
        SeparableError: the engine cannot run the network.
    """

    def __init__(self, model: nn.Module, statistics: Statistics, engine: Engine) -> None:
        self.convs = survey(model).convertible
        self.alone = _compiled_alone if engine == "compiled" else _pytorch
        self.known: dict[Any, float] = {}
        first = statistics.batches[0]
        one: Any = first[:1] if isinstance(first, Tensor) else {k: v[:1] for k, v in first.items()}
        with evaluating(model), torch.inference_mode():
            whole = _agreed((_compiled_whole if engine == "compiled" else _pytorch)(model, one))
        layers = sum(self(layer, None) for layer in statistics.layers)
        if layers > _DISTURBED * whole:
            warnings.warn(
                f"the network's layers take {layers:.3g} ms one by one, and the whole of it {whole:.3g} ms: other work "
                "disturbs what is measured. Plan again while the machine does nothing else, or with fewer threads",
                stacklevel=2,
            )
        self.rest = max(whole - layers, 0.0)

    def __call__(self, layer: LayerStatistics, choice: Choice | None) -> float:
        """Milliseconds of all calls of a layer, dense or with a choice of order and rank."""
        key = (layer.spec, layer.input_size, choice)
        if key not in self.known:
            conv = self.convs[layer.name]
            module: Any = conv
            if choice is not None:
                module = separable_of(conv, tuple(decouple(w, *choice) for w in grouped_weight(conv)), None)
            image = torch.ones(1, layer.spec.in_channels, *layer.input_size).to(conv.weight)
            with torch.inference_mode():
                self.known[key] = _agreed(self.alone(module, image))
        return self.known[key] * layer.calls


def _agreed(milliseconds: float) -> float:
    """The mean over all processes, which are to come to the same plan."""
    total, count = over_processes(torch.tensor(milliseconds), torch.tensor(1.0))
    return float(total / count)


def _pytorch(module: nn.Module, images: Any) -> float:
    return _milliseconds(lambda: run(module, images))


def _compiled_whole(module: nn.Module, images: Any) -> float:
    compiled = _compiled(module, images)
    return _milliseconds(lambda: compiled(images))


def _compiled_alone(module: nn.Module, images: Tensor) -> float:
    """Without taking the images in, as other layers hand them over where they are."""
    nodes = _compiled(module, images).profile(images, _REPEATS)
    return float(sum(node.milliseconds for node in nodes if node.kind != "import"))


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


def _milliseconds(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(_REPEATS):
        _finish()
        start = time.perf_counter()
        call()
        _finish()
        times.append(1e3 * (time.perf_counter() - start))
    return middle.median(times)
