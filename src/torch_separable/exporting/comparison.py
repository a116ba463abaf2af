"""Compare the outputs of an exported file with those of the network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_separable.errors import SeparableError
from torch_separable.exporting.capture import Ready


@dataclass(frozen=True)
class OutputDifference:
    """How far one output of a file is from the network's.

    Attributes:
        output: its name; empty if it is the only one.
        difference: largest absolute difference.
        largest: largest absolute value of the network's output.
    """

    output: str
    difference: float
    largest: float

    @property
    def relative(self) -> float:
        """The difference relative to the largest value if that is above 1."""
        return self.difference / max(1.0, self.largest)

    def exceeds(self, tolerance: float) -> bool:
        """Whether the relative difference exceeds ``tolerance``; NaN does."""
        return not self.relative <= tolerance

    def describe(self, runtime: str, tolerance: float) -> str:
        """Say what differs in a runtime, and what is allowed."""
        which = f"output {self.output} differs" if self.output else "its outputs differ"
        return (
            f"in {runtime} {which} from the network's by {self.difference:.1e}; at most "
            f"{tolerance * max(1.0, self.largest):.1e} is allowed for outputs up to {self.largest:.1f}"
        )


def runner(module: Callable[[Tensor], Tensor | tuple[Tensor, ...]]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Return a function that always returns a tuple, also where the module returns a single tensor."""

    def run(images: Tensor) -> tuple[Tensor, ...]:
        output = module(images)
        return (output,) if isinstance(output, Tensor) else tuple(output)

    return run


def compare_outputs(
    runtime: str, run: Callable[[Tensor], tuple[Tensor, ...]], network: Ready, batches: Sequence[Tensor]
) -> list[OutputDifference]:
    """Run a file and the network on batches of images; return the difference of each output.

    Args:
        runtime: name of what runs the file, for messages.
        run: runs the file.
        network: the network that was exported.
        batches: batches of images, (N, C, H, W).

    Raises:
        SeparableError: the file does not run, or returns other outputs than the network.
    """
    names = network.outputs if len(network.outputs) > 1 else ("",)
    differences, largest = [0.0] * len(names), [0.0] * len(names)
    for images in batches:
        expected = network(images)
        try:
            with torch.no_grad():
                outputs = run(images.clone())
        except Exception as error:
            raise SeparableError(f"{runtime} cannot run what was exported: {error}") from error
        if len(outputs) != len(expected):
            raise SeparableError(f"{runtime} returns {len(outputs)} outputs, the network {len(expected)}")
        for i, (ours, theirs) in enumerate(zip(expected, outputs, strict=True)):
            if theirs.shape != ours.shape:
                which = f"output {names[i]}" if names[i] else "the outputs"
                raise SeparableError(
                    f"{which} of {runtime} have shape {tuple(theirs.shape)}, the network's {tuple(ours.shape)}"
                )
            if ours.numel():
                change = float((theirs.double() - ours.double()).abs().max())
                differences[i] = change if math.isnan(change) else max(differences[i], change)
                largest[i] = max(largest[i], float(ours.double().abs().max()))
    return [OutputDifference(*each) for each in zip(names, differences, largest, strict=True)]
