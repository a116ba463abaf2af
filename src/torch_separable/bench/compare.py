"""Costs and times of the dense and the separable network of a run, in total and layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torch_separable._network.outputs import evaluating
from torch_separable._system.timing import WARM_UP, LayerClock, interleaved, rounds_within
from torch_separable.cost import Summary, analyze
from torch_separable.errors import SeparableError

_SECONDS = 5.0


@dataclass(frozen=True)
class LayerComparison:
    """One leaf module of the dense network and the module that replaces it.

    Attributes:
        name: module name; empty for operations outside leaf modules.
        type: class name in the dense network.
        parameters: (dense, separable).
        macs: multiply-accumulates for one image (dense, separable).
        milliseconds: share of the network's time (dense, separable).
    """

    name: str
    type: str
    parameters: tuple[int, int]
    macs: tuple[int, int]
    milliseconds: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """Two networks compared in eager PyTorch and compiled by `torch_separable.compile`, in evaluation mode.

    Attributes:
        parameters: (dense, separable).
        macs: multiply-accumulates for one image (dense, separable).
        bytes: bytes of weights and buffers (dense, separable).
        milliseconds: median time of one call in eager PyTorch (dense, separable).
        compiled: median time of one call after `compile` (dense, separable); ``None`` if they cannot be compiled.
        problem: why they cannot be compiled; empty if they can.
        images: images in one call.
        rounds: number of timed calls of each network.
        threads: threads of PyTorch.
        layers: operations outside leaf modules, then the leaf modules in their order. The layers add up to the totals.
    """

    parameters: tuple[int, int]
    macs: tuple[int, int]
    bytes: tuple[int, int]
    milliseconds: tuple[float, float]
    compiled: tuple[float, float] | None
    problem: str
    images: int
    rounds: int
    threads: int
    layers: tuple[LayerComparison, ...]

    def step(self, name: str, which: Literal[0, 1], evaluation: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the dense (0) or the separable (1) network as a step of a run's results."""
        return step(name, self.macs[which], self.parameters[which], self.bytes[which], evaluation)

    def times(self) -> dict[str, Any]:
        """Return the times in the form of a run's results."""
        dense, separable = self.milliseconds
        return {
            "dense": dense,
            "separable": separable,
            "compiled": None if self.compiled is None else {"dense": self.compiled[0], "separable": self.compiled[1]},
            "problem": self.problem,
            "images": self.images,
            "rounds": self.rounds,
            "threads": self.threads,
        }

    def layer_rows(self) -> list[dict[str, Any]]:
        """Return the layers in the form of a run's results."""
        return [asdict(layer) for layer in self.layers]


def compare(dense: nn.Module, separable: nn.Module, images: Tensor) -> Comparison:
    """Count and time both networks on ``images`` (N, C, H, W), in about ten seconds; neither network is changed.

    Modules of the same name are compared: the separable network must be the dense one with some modules replaced, as
    returned by `apply`.

    Example:
        >>> import torch_separable as ts
        >>> dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> separable = nn.Sequential(ts.nn.DepthwiseSeparableConv2d(3, 8, 3), nn.ReLU())
        >>> compared = compare(dense, separable, torch.zeros(1, 3, 8, 8))
        >>> [(layer.name, layer.macs, layer.parameters) for layer in compared.layers]
        [('', (0, 0), (0, 0)), ('0', (7776, 1836), (224, 62)), ('1', (0, 0), (0, 0))]
    """
    networks = {"dense": dense, "separable": separable}
    counted = {name: analyze(network, images[:1]) for name, network in networks.items()}
    names = [name for name, module in dense.named_modules() if name and not list(module.children())]
    with evaluating(dense), evaluating(separable), torch.inference_mode():
        calls: dict[str, Callable[[], object]] = {name: _call(network, images) for name, network in networks.items()}
        clocks = {
            name: LayerClock(calls[name], {layer: network.get_submodule(layer) for layer in names})
            for name, network in networks.items()
        }
        rounds = rounds_within(_SECONDS, *calls.values(), *calls.values(), fewest=5, most=60)
        # Calls with layer timers cost a little more. They alternate with the plain calls, so that the load of the
        # machine affects both alike.
        whole = interleaved({**calls, **{f"layers of {name}": clock for name, clock in clocks.items()}}, rounds=rounds)
        within = {name: _scaled(clock.medians(WARM_UP), whole[name]) for name, clock in clocks.items()}
    parts = [_by_layer(summary, names) for summary in counted.values()]
    layers = []
    for name in ["", *names]:
        (parameters, macs), (their_parameters, their_macs) = (part.get(name, (0, 0)) for part in parts)
        layers.append(
            LayerComparison(
                name,
                type(dense.get_submodule(name)).__name__,
                (parameters, their_parameters),
                (macs, their_macs),
                (within["dense"].get(name, 0.0), within["separable"].get(name, 0.0)),
            )
        )
    first, second = counted.values()
    return Comparison(
        (first.parameters, second.parameters),
        (first.macs, second.macs),
        (first.weight_bytes, second.weight_bytes),
        (whole["dense"], whole["separable"]),
        *_compiled_times(dense, separable, images),
        len(images),
        rounds,
        torch.get_num_threads(),
        tuple(layers),
    )


def _compiled_times(dense: nn.Module, separable: nn.Module, images: Tensor) -> tuple[tuple[float, float] | None, str]:
    """Time both networks after `compile`; return the reason if one of them cannot be compiled."""
    from torch_separable.runtime import compile

    try:
        compiled = [compile(network, images, compare=False) for network in (dense, separable)]
        calls: list[Callable[[], object]] = [_call(network, images) for network in compiled]
        with torch.inference_mode():
            rounds = rounds_within(_SECONDS / 2, *calls, fewest=5, most=200)
            times = interleaved(dict(zip(("dense", "separable"), calls, strict=True)), rounds=rounds)
    except SeparableError as error:
        return None, str(error)
    return (times["dense"], times["separable"]), ""


def _scaled(parts: Mapping[str, float], whole: float) -> dict[str, float]:
    """Scale the layers' medians so that they add up to the network's time.

    On a busy machine their sum is smaller: few calls of a single layer are interrupted, but most of the network's.
    """
    factor = whole / sum(parts.values())
    return {name: factor * part for name, part in parts.items()}


def step(
    name: str, macs: int, parameters: int, size: int | None = None, evaluation: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return one step of a run's results: the cost of a network, and its accuracy if it was measured.

    Args:
        name: name of the step.
        macs: multiply-accumulates for one image.
        parameters: number of parameters.
        size: bytes of the weights.
        evaluation: ``Evaluation.to_dict()``.
    """
    measured = {key: (evaluation or {}).get(key) for key in ("accuracy", "correct", "count")}
    return {"name": name, **measured, "macs": macs, "parameters": parameters, "bytes": size}


def _call(network: Callable[[Tensor], object], images: Tensor) -> Callable[[], object]:
    return lambda: network(images)


def _by_layer(summary: Summary, names: list[str]) -> dict[str, tuple[int, int]]:
    """Sum parameters and MACs below each name; the empty name collects the rest."""
    known = set(names)
    sums: dict[str, tuple[int, int]] = {}
    for row in summary.layers:
        parts = row.name.split(".")
        home = next((head for i in range(len(parts), 0, -1) if (head := ".".join(parts[:i])) in known), "")
        parameters, macs = sums.get(home, (0, 0))
        sums[home] = (parameters + row.parameters, macs + row.macs)
    return sums
