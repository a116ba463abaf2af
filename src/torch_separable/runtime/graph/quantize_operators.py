"""Quantize and dequantize operators of a captured graph, as `lower` reads them.

``quantized_decomposed.quantize_per_tensor`` and its relatives are PyTorch's standard: torchao's PT2E flow and
`torch_separable.quantization` write them around float operators. Weights are dequantized, so that a convolution is read
as a float one, and their scales are kept; the operators on activations become `Quantize` and `Dequantize` nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from torch_separable.runtime.graph.ir import (
    Dequantize,
    Node,
    Program,
    Quantization,
    Quantize,
    Reference,
    TorchCall,
)

# Matched by name: the operators exist only where something has registered them.
_QUANTIZE = ("quantized_decomposed.quantize_per_tensor.default", "quantized_decomposed.quantize_per_tensor.tensor")
_DEQUANTIZE = tuple(name.replace("quantize_", "dequantize_", 1).replace("de_", "_") for name in _QUANTIZE)
_PER_CHANNEL = "quantized_decomposed.dequantize_per_channel.default"
# uint8 = int8 + 128, for scales and sums alike.
_SHIFTS = {torch.uint8: 0, torch.int8: 128}


def is_channelwise(target: Any) -> bool:
    """Whether an operator quantizes or dequantizes activations, each value by itself."""
    return str(target) in _QUANTIZE + _DEQUANTIZE


def fold_constants(graph: fx.Graph, constants: Mapping[str, Any]) -> dict[str, Any]:
    """Compute what quantize and dequantize operators make of constants, by the nodes' names."""
    found: dict[str, Any] = {}

    def value(node: fx.Node) -> Any:
        return found[node.name] if node.name in found else constants[node.name]

    for node in graph.nodes:
        inputs = {each.name for each in node.all_input_nodes}
        if (
            str(node.target).startswith("quantized_decomposed.")
            and inputs
            and inputs <= found.keys() | constants.keys()
        ):
            args, kwargs = fx.map_arg((node.args, node.kwargs), value)
            with torch.no_grad():
                found[node.name] = node.target(*args, **kwargs)
    return found


def scales_of_weights(graph: fx.Graph, constants: Mapping[str, Any]) -> dict[str, Tensor]:
    """Find operators whose weight (second argument) is symmetric int8 with scales per output channel, or only one.

    Returns:
        Scales (M,) by the operators' names.
    """
    found = {}
    for node in graph.nodes:
        weight = node.args[1] if node.op == "call_function" and len(node.args) > 1 else None
        if isinstance(weight, fx.Node) and (scales := _scales(weight, constants)) is not None:
            found[node.name] = scales
    return found


def _scales(weight: fx.Node, constants: Mapping[str, Any]) -> Tensor | None:
    def value(argument: Any) -> Any:
        return constants.get(argument.name) if isinstance(argument, fx.Node) else argument

    name = str(weight.target)
    if name not in (*_DEQUANTIZE, _PER_CHANNEL):
        return None
    stored, scales, zero_points = (value(argument) for argument in weight.args[:3])
    if not isinstance(stored, Tensor) or stored.dtype != torch.int8 or scales is None or zero_points is None:
        return None
    if name == _PER_CHANNEL and weight.args[3] != 0:
        return None
    if torch.as_tensor(zero_points).any():
        return None
    return torch.as_tensor(scales, dtype=torch.float64).expand(stored.shape[0])


def with_quantized_values(program: Program) -> Program:
    """Read calls of quantize and dequantize operators as nodes, int8 as uint8 + 128."""
    shapes, vectors, quantized = dict(program.shapes), set(program.vectors), dict(program.quantized)
    blocks = dict(program.blocks)
    nodes: list[Node] = []
    for node in program.nodes:
        read = _read(node) if isinstance(node, TorchCall) else None
        if read is None:
            nodes.append(node)
            continue
        source, stands_for, low, high = read
        if str(node.function) in _QUANTIZE and source in shapes:  # type: ignore[union-attr]
            shapes[node.output], quantized[node.output] = shapes[source], stands_for
            if source in vectors:
                vectors.add(node.output)
            if source in blocks:
                blocks[node.output] = blocks[source]
            nodes.append(Quantize(node.name, source, node.output, low, high))
        elif quantized.get(source) == stands_for:
            nodes.append(Dequantize(node.name, source, node.output))
        else:
            nodes.append(node)
    return replace(
        program, nodes=tuple(nodes), shapes=shapes, blocks=blocks, vectors=frozenset(vectors), quantized=quantized
    )


def _read(call: TorchCall) -> tuple[str, Quantization, int, int] | None:
    """The value that a quantize or dequantize operator reads, and its parameters as uint8."""
    if not is_channelwise(call.function) or len(call.args) < 6:
        return None
    source, scale, zero_point, low, high, dtype = call.args[:6]
    if not isinstance(source, Reference) or isinstance(scale, Reference) or dtype not in _SHIFTS:
        return None
    shift = _SHIFTS[dtype]
    return source.value, Quantization(float(scale), int(zero_point) + shift), int(low) + shift, int(high) + shift
