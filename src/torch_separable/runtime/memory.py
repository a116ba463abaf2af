"""The memory that a compiled network holds between calls."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn

from torch_separable._console.notebook import table
from torch_separable.runtime.prepared import Prepared


@dataclass(frozen=True)
class MemoryUse:
    """Memory that a `CompiledModel` holds between calls, in bytes.

    Attributes:
        packed_weights: Weights in the order in which the kernels read them, one copy for all input shapes.
        workspaces: Activations: for each input shape, one workspace for each of the calls that ran at the same time.
        copied_weights: Weights as they were when the network was compiled, for later input shapes, that could not share
            memory with the network's own. Weights that do share it are not counted.
    """

    packed_weights: int
    workspaces: int
    copied_weights: int

    @property
    def total(self) -> int:
        """All of them, in bytes."""
        return self.packed_weights + self.workspaces + self.copied_weights

    def __str__(self) -> str:
        return (
            f"{_megabytes(self.total)}: packed weights {_megabytes(self.packed_weights)}, "
            f"workspaces {_megabytes(self.workspaces)}, copied weights {_megabytes(self.copied_weights)}"
        )

    def _repr_html_(self) -> str:
        return table(
            (),
            [
                ("packed weights", _megabytes(self.packed_weights)),
                ("workspaces", _megabytes(self.workspaces)),
                ("copied weights", _megabytes(self.copied_weights)),
                ("total", _megabytes(self.total)),
            ],
        )


def memory_of(model: nn.Module, prepared: Collection[Prepared]) -> MemoryUse:
    """Add up the memory of a network's copy and of its prepared input shapes.

    Args:
        model: The copy that was made when the network was compiled.
        prepared: Its plans.
    """
    packed = {piece.data_ptr(): piece.nbytes for each in prepared for piece in each.plan.weights}
    workspaces = sum(workspace.memory.nbytes for each in prepared for workspace in each.idle)
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for tensor in tensors.values()
        if not torch._C._is_cow_tensor(tensor)  # type: ignore[attr-defined]
    }
    return MemoryUse(sum(packed.values()), workspaces, sum(copied.values()))


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
