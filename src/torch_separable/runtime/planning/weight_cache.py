"""Sharing of weights between the input shapes and thread counts that a network is compiled for.

Each of them is captured, folded and packed separately, which nearly always gives the same bytes again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from torch_separable.runtime.graph.ir import Convolution, Depthwise, DepthwiseConv, Node, Program
from torch_separable.runtime.planning.schedule import Schedule, readdress


def with_shared_weights(program: Program, others: Iterable[Program]) -> Program:
    """Let a new program hold the weights of other ones, where they are the same to the bit."""
    known: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for other in others:
        for part in (part for node in other.nodes for part in (node, getattr(node, "depthwise", None))):
            if isinstance(part, Convolution | Depthwise):
                known[part.weight.shape].append(part.weight)
                known[part.bias.shape].append(part.bias)

    def same(tensor: Tensor) -> Tensor:
        bits = tensor.view(torch.int32)  # of float32, as all are: 0 and -0 are two numbers here
        return next((other for other in known[tensor.shape] if torch.equal(other.view(torch.int32), bits)), tensor)

    def of_stage(stage: Depthwise) -> Depthwise:
        return replace(stage, weight=same(stage.weight), bias=same(stage.bias))

    def shared(node: Node) -> Node:
        match node:
            case Convolution():
                depthwise = None if node.depthwise is None else of_stage(node.depthwise)
                return replace(node, weight=same(node.weight), bias=same(node.bias), depthwise=depthwise)
            case DepthwiseConv():
                return replace(node, depthwise=of_stage(node.depthwise))
            case _:
                return node

    return replace(program, nodes=tuple(map(shared, program.nodes)))


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
