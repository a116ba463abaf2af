"""One set of packed weights for all input shapes and thread counts that a network is compiled for.

Each of them is captured, folded and packed separately, which nearly always gives the same bytes again. Only the packed
weights are kept: plans describe their nodes' weights by shape and type.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from torch_separable.runtime.graph.ir import Node, Program, TorchCall
from torch_separable.runtime.planning.schedule import Schedule, readdress

_Part = TypeVar("_Part")


def without_weights(program: Program) -> Program:
    """Return a program whose nodes hold meta tensors instead of weights; calls of PyTorch keep theirs."""
    return replace(program, nodes=_without_weights(program.nodes))


def without_packed_sources(plan: Schedule) -> Schedule:
    """Return a plan that holds its packed weights only, and not those that they were packed from."""
    steps = tuple(replace(step, nodes=_without_weights(step.nodes)) for step in plan.steps)
    return replace(plan, program=without_weights(plan.program), steps=steps)


def _without_weights(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    return tuple(node if isinstance(node, TorchCall) else _described(node) for node in nodes)


def _described(part: _Part) -> _Part:
    changed: dict[str, Any] = {}
    for each in fields(part):  # type: ignore[arg-type]
        value = getattr(part, each.name)
        if isinstance(value, Tensor):
            changed[each.name] = torch.empty_like(value, device="meta")
        elif is_dataclass(value):
            changed[each.name] = _described(value)
    return replace(part, **changed) if changed else part  # type: ignore[type-var]


def with_shared_packed(plan: Schedule, others: Iterable[Schedule]) -> Schedule:
    """Let a new plan read the packed weights of another one, where they are the same to the byte."""
    own = plan.weights
    known = (other.weights for other in others if len(other.weights) == len(own))
    same = next((pieces for pieces in known if all(map(_same_bytes, pieces, own))), None)
    if same is None:
        return plan

    def moved(address: int) -> int:
        pieces = zip(own, same, strict=True)
        return next(
            there.data_ptr() + address - here.data_ptr()
            for here, there in pieces
            if 0 <= address - here.data_ptr() < here.nbytes
        )

    readdress(plan.steps, moved)
    return replace(plan, weights=same)


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    return one.nbytes == other.nbytes and torch.equal(
        one.flatten().view(torch.uint8), other.flatten().view(torch.uint8)
    )
