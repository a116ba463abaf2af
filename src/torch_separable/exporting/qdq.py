"""QDQ ONNX: what makes the quantize and dequantize operators of a file the ones that other runtimes fuse.

PyTorch's exporter writes ``QuantizeLinear`` and ``DequantizeLinear`` around float operators. Runtimes fuse them into
integer kernels if a bias is dequantized from int32, too, with the scale of the sums: input scale times weight scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from torch_separable._system.extras import optional

_WITH_BIAS = ("Conv", "Gemm")
_LARGEST = 2**31 - 1
_TOLERANCE = 1e-6  # relative; the bias is a float32 value


def is_quantized(graph: fx.Graph) -> bool:
    """Whether a captured graph has quantize and dequantize operators."""
    return any(str(node.target).startswith("quantized_decomposed.") for node in graph.nodes)


def with_integer_biases(model: Any) -> Any:
    """Store biases as int32 where they are multiples of the sums' step, and give each weight a zero point of its own.

    Args:
        model: an ``onnx.ModelProto``; it is changed.

    Returns:
        The model. A bias that is no multiple, as in networks that others quantized, stays float32.
    """
    onnx = optional("onnx", "export")
    graph = model.graph
    constants = {each.name: each for each in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}

    def dequantized(name: str) -> Any:
        node = makers.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def value(name: str) -> Any:
        return onnx.numpy_helper.to_array(constants[name])

    def store(array: Any, name: str) -> str:
        graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    nodes: list[Any] = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants and len(node.input) > 2:
            # ONNX Runtime rewrites zero points of weights for its exact kernels (session.x64quantprecision), and fails
            # to load a file in which two weights share one.
            node.input[2] = store(value(node.input[2]), f"{node.output[0]}_zero_point")
        if node.op_type in _WITH_BIAS and len(node.input) > 2 and node.input[2] in constants:
            x, weight = dequantized(node.input[0]), dequantized(node.input[1])
            known = x is not None and weight is not None and {x.input[1], weight.input[1]} <= constants.keys()
            steps = _steps(value(x.input[1]), value(weight.input[1]), value(node.input[2])) if known else None
            if steps is not None:
                multiples, scales = steps
                name = f"{node.output[0]}_bias"
                parts = [
                    store(multiples.astype(np.int32), f"{name}_int32"),
                    store(scales.astype(np.float32), f"{name}_scale"),
                    store(np.zeros(len(multiples), np.int32), f"{name}_zero_point"),
                ]
                nodes.append(onnx.helper.make_node("DequantizeLinear", parts, [name], name=f"node_{name}", axis=0))
                node.input[2] = name
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in graph.node for name in node.input}
    kept = [each for each in graph.initializer if each.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return model


def _steps(input_scale: Any, weight_scales: Any, bias: Any) -> tuple[Any, Any] | None:
    """The bias as multiples of the sums' steps, and the steps; ``None`` where it is no multiple."""
    scales = np.broadcast_to(input_scale.astype(np.float64) * weight_scales.astype(np.float64), bias.shape)
    multiples = np.round(bias / scales)
    close = np.abs(multiples * scales - bias) <= _TOLERANCE * np.abs(bias)
    if input_scale.size != 1 or not close.all() or np.abs(multiples).max(initial=0) > _LARGEST:
        return None
    return multiples, scales
