"""Time a compiled network against eager PyTorch, and name the operators that cost it most where it is slower."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torch_separable._network.ambient import default_settings
from torch_separable._network.copying import copied_on_write
from torch_separable._network.outputs import evaluating
from torch_separable._system.timing import quietest
from torch_separable.runtime.profiling.breakdown import NodeTime

# Minima of so few runs vary by a few per cent on an idle machine; a loss below this margin is not reported.
_MARGIN = 1.05
_ROUNDS = 5
_NAMED = 3  # operators that the message names
_PYTORCH = "PyTorch: "  # how `kind_of` begins the kind of a fallback


@dataclass(frozen=True)
class EagerComparison:
    """Times of one call, compiled and in eager PyTorch.

    Attributes:
        compiled: Milliseconds of the compiled network.
        eager: Milliseconds of eager PyTorch, with weights and input in channels-last memory format.
        fallbacks: Milliseconds of the operators that PyTorch runs in the compiled network, by operator and reason, the
            slowest first.
    """

    compiled: float
    eager: float
    fallbacks: dict[str, float]

    @property
    def is_slower(self) -> bool:
        """Whether the compiled network is slower than eager PyTorch, beyond the noise of the measurement."""
        return self.compiled > _MARGIN * self.eager

    def __str__(self) -> str:
        named = [f"{name}, {spent:.3g} ms" for name, spent in list(self.fallbacks.items())[:_NAMED]]
        without_kernel = f" Slowest operators without a kernel: {'; '.join(named)}." if named else ""
        return f"{self.compiled:.3g} ms compiled, {self.eager:.3g} ms in eager PyTorch.{without_kernel}"


@default_settings()
def compare_with_eager(
    model: nn.Module, run: Callable[[Tensor], object], profile: Callable[[], Iterable[NodeTime]], x: Tensor
) -> EagerComparison:
    """Time a compiled network and the network that it was compiled from: the minimum of a few interleaved calls.

    Args:
        model: The network.
        run: The compiled network.
        profile: Times the operations of the compiled network; called only if it is slower.
        x: Images (N, C, H, W).
    """
    eager = _channels_last(copied_on_write(model))
    # A clone, because a network may write to its input.
    image = x.clone(memory_format=torch.channels_last if x.dim() == 4 else torch.preserve_format)
    with evaluating(eager), torch.no_grad():

        def timed(call: Callable[[], object]) -> float:
            start = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - start)

        calls: dict[str, Callable[[], object]] = {"compiled": lambda: run(x), "eager": lambda: eager(image)}
        for call in calls.values():
            call()  # allocates memory and selects PyTorch's kernels
        times = quietest(
            {"compiled": lambda: timed(calls["compiled"]), "eager": lambda: timed(calls["eager"])}, rounds=_ROUNDS
        )
    found = EagerComparison(times["compiled"], times["eager"], {})
    return found if not found.is_slower else EagerComparison(found.compiled, found.eager, _by_operator(profile()))


def _channels_last(model: nn.Module) -> nn.Module:
    """Store kernels of two dimensions in channels-last order; ``Module.to`` would refuse a network with others."""
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def _by_operator(nodes: Iterable[NodeTime]) -> dict[str, float]:
    spent: dict[str, float] = defaultdict(float)
    for node in nodes:
        if node.kind.startswith(_PYTORCH):
            spent[node.kind.removeprefix(_PYTORCH)] += node.milliseconds
    return dict(sorted(spent.items(), key=lambda item: -item[1]))
