"""Programs of quantized networks: float nodes between dequantize and quantize become nodes that compute in integers.

A node that matches no pattern runs in float32 on dequantized values, and `Program.unquantized` says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from torch_separable.runtime.graph.fuse import fuse, merge_pairs
from torch_separable.runtime.graph.ir import (
    Copy,
    Dequantize,
    LookUp,
    Node,
    Pool,
    Program,
    Quantize,
    QuantizedConvolution,
    Reference,
    Rename,
    Slice,
    TorchCall,
    inputs_of,
    with_inputs,
)
from torch_separable.runtime.graph.lower import lower
from torch_separable.runtime.graph.quantized_matching import EVERY_BYTE, match_kernels, readers_of, table_of

# What can choose and move values of uint8 as of float32.
Moving = Pool | Copy | Slice | Rename


def read_quantized(model: nn.Module, example: Tensor) -> Program:
    """Read a network with quantize and dequantize operators as a program of fused, quantized nodes.

    Raises:
        SeparableError: ``torch.export`` cannot trace it.
    """
    return with_quantized_kernels(fuse(lower(model, example, quantized=True)))


def with_quantized_kernels(program: Program) -> Program:
    """Replace float nodes between dequantize and quantize by nodes that compute in integers."""
    if not program.quantized:
        return program
    for step in (_share, _quantize_earlier, _dequantize_later, _requantize, match_kernels, _without_unread):
        program = step(program)
    return merge_pairs(program, _merge_depthwise)


def renamed(node: Node, names: Mapping[str, str]) -> Node:
    """The node reading other values."""
    if names.keys().isdisjoint(inputs_of(node)):
        return node
    if isinstance(node, TorchCall):

        def argument(value: Any) -> Any:
            return replace(value, value=names.get(value.value, value.value)) if isinstance(value, Reference) else value

        args, kwargs = tree_map(
            argument, (node.args, dict(node.kwargs)), is_leaf=lambda leaf: isinstance(leaf, Reference)
        )
        return replace(node, args=args, kwargs=kwargs)
    return with_inputs(node, names)


def _share(program: Program) -> Program:
    """Quantize and dequantize every value once."""
    names: dict[str, str] = {}
    known: dict[tuple[Any, ...], str] = {}
    nodes: list[Node] = []
    for node in (renamed(each, names) for each in program.nodes):
        if isinstance(node, Quantize | Dequantize):
            key = (type(node), node.input, program.quantized.get(node.output), getattr(node, "low", 0))
            if (first := known.setdefault(key, node.output)) != node.output:
                names[node.output] = first
                continue
        nodes.append(node)
    return replace(program, nodes=tuple(nodes), outputs=tuple(names.get(name, name) for name in program.outputs))


def _quantize_earlier(program: Program) -> Program:
    """Quantize before maximum pooling and copies rather than after: so does what computes their input."""
    nodes, shapes, quantized = list(program.nodes), dict(program.shapes), dict(program.quantized)
    for node in reversed(program.nodes):
        if not isinstance(node, Quantize):
            continue
        now = replace(program, nodes=tuple(nodes))
        readers, places = readers_of(now), {each.output: place for place, each in enumerate(nodes)}
        moved = nodes[places[node.input]] if node.input in places else None
        if not _keeps_values(moved) or readers[node.input] != [node]:
            continue
        assert isinstance(moved, Moving)
        if readers[moved.input] != [moved]:
            continue
        early = f"{moved.input}.{node.output}"
        shapes[early], quantized[early] = shapes[moved.input], quantized[node.output]
        place = places[moved.output]
        nodes[place : place + 1] = [
            replace(node, input=moved.input, output=early),
            replace(moved, input=early, output=node.output),
        ]
        nodes.remove(node)
    return replace(program, nodes=tuple(nodes), shapes=shapes, quantized=quantized)


def _keeps_values(node: Node | None) -> bool:
    """Whether every result is one of the inputs, or zero."""
    return isinstance(node, Copy | Slice | Rename) or (
        isinstance(node, Pool) and node.maximum and node.activation.is_identity
    )


def _dequantize_later(program: Program) -> Program:
    """Let maximum pooling and copies work on uint8, and dequantize after them."""
    made: dict[str, Node] = {}
    nodes: list[Node] = []
    shapes, vectors, quantized = dict(program.shapes), set(program.vectors), dict(program.quantized)
    for node in program.nodes:
        before = made.get(node.input) if isinstance(node, Moving) and _keeps_values(node) else None
        if isinstance(before, Dequantize):
            assert isinstance(node, Moving)
            stored = f"{node.output}.stored"
            shapes[stored], quantized[stored] = shapes[node.output], quantized[before.input]
            if node.output in vectors:
                vectors.add(stored)
            added: list[Node] = [
                replace(node, input=before.input, output=stored),
                Dequantize(node.name, stored, node.output),
            ]
        else:
            added = [node]
        nodes += added
        made.update({each.output: each for each in added})
    return replace(program, nodes=tuple(nodes), shapes=shapes, vectors=frozenset(vectors), quantized=quantized)


def _requantize(program: Program) -> Program:
    """What is dequantized and quantized again goes through a table, or stays as it is."""
    made: dict[str, Node] = {}
    names: dict[str, str] = {}
    nodes: list[Node] = []
    for original in program.nodes:
        node = renamed(original, names)
        before = made.get(node.input) if isinstance(node, Quantize) else None
        if isinstance(node, Quantize) and isinstance(before, Dequantize):
            table = table_of(program.quantized[before.input], node, program.quantized[node.output])
            if torch.equal(table, EVERY_BYTE) and program.quantized[before.input] == program.quantized[node.output]:
                names[node.output] = before.input
                continue
            node = LookUp(node.name, before.input, node.output, table)
        made[node.output] = node
        nodes.append(node)
    return replace(program, nodes=tuple(nodes), outputs=tuple(names.get(name, name) for name in program.outputs))


def _without_unread(program: Program) -> Program:
    """Drop dequantized values that nobody reads any more, and what is only read by those."""
    nodes: list[Node] = []
    read = set(program.outputs)
    for node in reversed(program.nodes):
        if node.output in read or not isinstance(node, Dequantize | Quantize):
            nodes.append(node)
            read.update(inputs_of(node))
    return replace(program, nodes=tuple(reversed(nodes)))


def _merge_depthwise(program: Program, first: Node, second: Node) -> Node | None:
    """One node for a depthwise convolution and the pointwise one that reads it."""
    if not (isinstance(first, QuantizedConvolution) and isinstance(second, QuantizedConvolution)):
        return None
    if first.residual is not None or first.depthwise is not None or first.output not in program.quantized:
        return None
    channels, made = program.shapes[first.input][1], first.weight.shape[0]
    if not 1 < first.groups == channels or program.blocks.get(first.output, 1) != made // channels:
        return None
    if second.groups > 1 or second.depthwise is not None or not second.window.is_pointwise:
        return None
    return replace(second, input=first.input, depthwise=first, between=program.quantized[first.output])
