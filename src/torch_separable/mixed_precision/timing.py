"""Milliseconds of every form of a layer in every precision, and of the conversions between precisions.

Each layer runs alone in the compiled runtime, without the import of its input and the export of its output: inside a
network the activations are in the engine's layout. What the network does beside its layers (sums, pooling) is measured
as the difference between the whole network and its layers.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from torch_separable._console.progress import progress_bar
from torch_separable._system.timing import quietest
from torch_separable.conversion.planning.options import Choice
from torch_separable.conversion.planning.plan import Precision
from torch_separable.mixed_precision.layers import PlannedLayer
from torch_separable.quantization.module import QuantizedNetwork, insert_operators
from torch_separable.quantization.quantization import captured
from torch_separable.quantization.roles import assign_roles
from torch_separable.quantization.stream import QuantizedLayer, attribute
from torch_separable.runtime import compile
from torch_separable.runtime.graph.ir import Quantization

DTYPES: dict[Precision, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}
# As in planning/latency.py: the least over 4 rounds of the median of 15 calls.
_ROUNDS, _CALLS = 4, 15
# Ranks that are timed. Between them the time is interpolated: it grows by one pass over the activations a rank.
_TIMED_RANKS = (1, 2, 3, 5, 8)
_AROUND = ("import", "int8 import", "int8 quantize", "int8 dequantize")
_SHORTEST = 1e-6  # milliseconds
_BYTE = Quantization(1 / 32, 0)  # times do not depend on scales

Key = tuple[str, tuple[int, ...], Choice | None, Precision]


@dataclass(frozen=True)
class MeasuredTimes:
    """Times for one image.

    Attributes:
        layers: milliseconds by kind of layer, shape of its input, form and precision.
        borders: milliseconds of quantizing and of dequantizing a value, by its shape.
        whole: the dense network in each precision.
    """

    layers: dict[Key, float]
    borders: dict[tuple[int, ...], tuple[float, float]]
    whole: dict[Precision, float]

    def of(self, layer: PlannedLayer, choice: Choice | None, precision: Precision) -> float:
        """Milliseconds of all calls of a layer."""
        return sum(self._one(str(layer.module), shape, choice, precision) for shape in layer.shapes)

    def border(self, layer: PlannedLayer) -> tuple[float, float]:
        """Milliseconds of quantizing and of dequantizing the input of a layer's first call."""
        return self.borders[layer.shapes[0]]

    def _one(self, kind: str, shape: tuple[int, ...], choice: Choice | None, precision: Precision) -> float:
        found = self.layers.get((kind, shape, choice, precision))
        if found is not None:
            return found
        assert choice is not None
        known = {
            each[1]: milliseconds
            for (k, s, each, p), milliseconds in self.layers.items()
            if (k, s, p) == (kind, shape, precision) and each is not None and each[0] == choice[0]
        }
        ranks = sorted(known)
        return float(np.interp(choice[1], ranks, [known[rank] for rank in ranks]))


def timed_choices(choices: Sequence[Choice]) -> list[Choice]:
    """Return the choices that are timed: in each order some ranks, and the largest.

    Example:
        >>> timed_choices([("depthwise_first", rank) for rank in range(1, 8)])
        [('depthwise_first', 1), ('depthwise_first', 2), ('depthwise_first', 3), ('depthwise_first', 5), \
('depthwise_first', 7)]
    """
    most = {order: max(rank for o, rank in choices if o == order) for order, _ in choices}
    return [(order, rank) for order, rank in choices if rank in (*_TIMED_RANKS, most[order])]


def measure_times(
    network: nn.Module,
    image: Tensor,
    layers: Sequence[PlannedLayer],
    precisions: Sequence[Precision],
    *,
    progress: bool,
) -> MeasuredTimes:
    """Time the whole dense network, and each distinct form of its layers, in each precision.

    Args:
        network: the dense network.
        image: one image, (1, C, H, W).
        layers: from `planned_layers`.
        precisions: to time.
        progress: whether to show a progress bar on a terminal.

    Raises:
        SeparableError: the runtime cannot run the network.
    """
    names: list[Key] = list(
        dict.fromkeys(
            (str(layer.module), shape, choice, precision)
            for layer in layers
            for shape in layer.shapes
            for choice in (None, *timed_choices(layer.choices))
            for precision in precisions
        )
    )
    of_kind = {(str(layer.module), shape): layer for layer in layers for shape in layer.shapes}
    timers: dict[Any, Callable[[], float]] = {}
    borders: dict[tuple[int, ...], _Border] = {}
    with torch.no_grad():
        for precision in precisions:
            timers[precision] = _whole(network, image, precision)
        with progress_bar("timing layers", len(names), shown=progress) as advance:
            for key in names:
                kind, shape, choice, precision = key
                timers[key] = _alone(of_kind[kind, shape].form(choice), shape, precision)
                if precision == "int8" and shape not in borders:
                    timers[shape] = borders[shape] = _Border(shape)
                advance(kind)
        found = quietest(timers, rounds=_ROUNDS)
    whole = {precision: found.pop(precision) for precision in precisions}
    layer_times = {key: found[key] for key in names}
    return MeasuredTimes(layer_times, {shape: each.least for shape, each in borders.items()}, whole)


def _alone(module: nn.Module, shape: tuple[int, ...], precision: Precision) -> Callable[[], float]:
    """Return a timer of a layer alone in the runtime."""
    ready, images = (module, torch.ones(1, *shape)) if len(shape) == 3 else _as_images(module, shape)
    if precision == "int8":
        ready = quantized_roughly(ready, images, outputs=True)
    compiled = compile(ready, images, dtype=DTYPES[precision])

    def timed() -> float:
        profile = compiled.profile(images, _CALLS)
        return max(sum(node.milliseconds for node in profile if node.kind not in _AROUND), _SHORTEST)

    return timed


class _Border:
    """A timer of quantizing and dequantizing a value that a float operator computed."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.least = (float("inf"), float("inf"))
        self.images = torch.ones(1, *shape) if len(shape) == 3 else torch.ones(1, shape[-1], math.prod(shape[:-1]), 1)
        graph = captured(nn.Sequential(nn.ReLU(), nn.ReLU()), self.images.shape[1:])
        first = next(node for node in graph.graph.nodes if node.op == "call_function")
        insert_operators(graph, {first: _BYTE}, {})
        self.compiled = compile(QuantizedNetwork(graph, self.images.shape[1:]), self.images)

    def __call__(self) -> float:
        spent = {"int8 quantize": 0.0, "int8 dequantize": 0.0}
        for node in self.compiled.profile(self.images, _CALLS):
            if node.kind in spent:
                spent[node.kind] += node.milliseconds
        there, back = spent.values()
        self.least = min(self.least[0], there), min(self.least[1], back)
        return there + back


def _as_images(module: nn.Module, shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """A layer on vectors, behind a view that costs nothing."""
    *positions, channels = shape
    if positions:  # tokens
        return module, torch.ones(1, 1, *positions, channels)
    return nn.Sequential(nn.Flatten(), module), torch.ones(1, channels, 1, 1)


def _whole(network: nn.Module, image: Tensor, precision: Precision) -> Callable[[], float]:
    ready = quantized_roughly(network, image) if precision == "int8" else network
    compiled = compile(ready, image, dtype=DTYPES[precision])

    def timed() -> float:
        times = []
        for turn in range(_CALLS + 1):
            start = time.perf_counter()
            compiled(image)
            if turn:
                times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)

    return timed


def quantized_roughly(network: nn.Module, image: Tensor, *, outputs: bool = False) -> QuantizedNetwork:
    """Quantize with arbitrary scales and weights to the nearest: for timing, in a fraction of `quantize`'s time.

    Args:
        network: float32.
        image: (1, C, H, W).
        outputs: whether what a layer returns to the caller is quantized too, as inside a network.
    """
    graph = captured(network, image.shape[1:])
    roles = assign_roles(graph.graph)
    returned = graph.graph.output_node().all_input_nodes if outputs else ()
    points = set(roles.points) | {node for node in returned if node in roles.layers}
    insert_operators(graph, dict.fromkeys(points, _BYTE), {node: _nearest(graph, node) for node in roles.layers})
    return QuantizedNetwork(graph, image.shape[1:])


def _nearest(graph: fx.GraphModule, node: fx.Node) -> QuantizedLayer:
    weight: Tensor = attribute(graph, str(node.args[1].target))  # type: ignore[union-attr]
    scales = (weight.flatten(1).abs().amax(1) / 127).clamp_min(1e-30)
    rounded = (weight / scales.view(-1, *[1] * (weight.dim() - 1))).round().to(torch.int8)
    return QuantizedLayer(rounded, scales, torch.zeros(len(weight)), 0.0)
