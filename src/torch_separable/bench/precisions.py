"""The time of a compiled network in float32 and in int8, side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torch_separable._system.timing import interleaved, rounds_within
from torch_separable.errors import SeparableError

_SECONDS = 2.5


@dataclass(frozen=True)
class Precisions:
    """A network compiled in float32 and its quantized form, timed in alternation.

    Attributes:
        float32: median milliseconds of one call; ``None`` if they cannot be compiled.
        int8: likewise, of the quantized network.
        problem: why they cannot be compiled; empty if they can.
        images: images in one call.
        rounds: number of timed calls of each.
        threads: threads of PyTorch.
    """

    float32: float | None
    int8: float | None
    problem: str
    images: int
    rounds: int
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        if self.float32 is None or self.int8 is None:
            return f"not measured: {self.problem}"
        speedup = self.float32 / self.int8
        faster = f"{speedup:.2f}x as fast" if speedup >= 1 else f"slower on this machine, {1 / speedup:.2f}x as long"
        return f"{self.float32:.3g} -> {self.int8:.3g} ms, compiled ({faster}, medians of {self.rounds} calls)"


def compare_precisions(network: nn.Module, quantized: nn.Module, images: Tensor) -> Precisions:
    """Time a network and its quantized form after `compile`, in some seconds; neither is changed.

    Args:
        network: in float32.
        quantized: made of it by `quantize`.
        images: of one call, (N, C, H, W).
    """
    from torch_separable.runtime import compile

    threads = torch.get_num_threads()
    try:
        calls = {
            name: compile(each, images, compare=False) for name, each in (("float32", network), ("int8", quantized))
        }
    except SeparableError as error:
        return Precisions(None, None, str(error), len(images), 0, threads)
    timed = {name: (lambda compiled=compiled: compiled(images)) for name, compiled in calls.items()}
    rounds = rounds_within(_SECONDS, *timed.values(), fewest=5, most=200)
    times = interleaved(timed, rounds=rounds)
    return Precisions(times["float32"], times["int8"], "", len(images), rounds, threads)
