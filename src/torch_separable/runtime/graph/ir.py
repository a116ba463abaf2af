"""Intermediate representation between a captured graph and the kernels: a `Program` of typed nodes on named values.

A value is an activation (N, C, H, W); a vector (N, C) is an image of one pixel. Nodes hold their weights, with batch
norms folded: nodes.py defines those of float32 values, quantized_nodes.py those of uint8 values, and both are imported
from here. An operator without a node is a fallback to PyTorch: `TorchCall`.

Values are float32, except those in `Program.quantized`: these are uint8 and mean ``(stored - zero_point) · scale``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from torch_separable.runtime.graph.nodes import (
    IDENTITY,
    RELU,
    Activate,
    Activation,
    ActivationKind,
    Add,
    Binary,
    BinaryOperator,
    Concat,
    Convolution,
    Copy,
    Depthwise,
    DepthwiseConv,
    MatrixProduct,
    Mean,
    Normalize,
    Pair,
    Pool,
    Rearrange,
    Rename,
    Resample,
    Scale,
    Shape,
    Slice,
    Softmax,
    Taps,
    Window,
)
from torch_separable.runtime.graph.quantized_nodes import (
    Dequantize,
    LookUp,
    Quantization,
    Quantize,
    QuantizedAdd,
    QuantizedConcat,
    QuantizedConvolution,
    QuantizedScale,
)

__all__ = [
    "IDENTITY",
    "RELU",
    "Activate",
    "Activation",
    "ActivationKind",
    "Add",
    "Binary",
    "BinaryOperator",
    "Concat",
    "Convolution",
    "Copy",
    "Depthwise",
    "DepthwiseConv",
    "Dequantize",
    "LookUp",
    "MatrixProduct",
    "Mean",
    "Native",
    "Node",
    "Normalize",
    "Pair",
    "Pool",
    "Program",
    "Quantization",
    "Quantize",
    "Quantized",
    "QuantizedAdd",
    "QuantizedConcat",
    "QuantizedConvolution",
    "QuantizedScale",
    "Rearrange",
    "Reference",
    "Rename",
    "Resample",
    "Scale",
    "Shape",
    "Slice",
    "Softmax",
    "Taps",
    "TorchCall",
    "Window",
    "inputs_of",
    "with_inputs",
]


@dataclass(frozen=True)
class TorchCall:
    """A fallback: an operator that PyTorch runs.

    Attributes:
        function: the operator.
        args: its arguments, with a `Reference` for each value.
        kwargs: its keyword arguments, likewise.
        reason: why no kernel runs it.
        layout: how PyTorch sees its result, one of ``arrangement.LAYOUTS``, if kernels can read it.
    """

    name: str
    output: str
    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    reason: str
    layout: str = ""


@dataclass(frozen=True)
class Reference:
    """A value among the arguments of a `TorchCall`, or among the outputs.

    Attributes:
        layout: how PyTorch sees it, one of ``arrangement.LAYOUTS``; empty if the value has only one.
    """

    value: str
    layout: str = ""


Native = (
    Convolution | DepthwiseConv | Pool | Mean | Add | Scale | Activate | Copy
    | Binary | Resample | Rearrange | Rename | Concat | Slice | Normalize | Softmax | MatrixProduct
)  # fmt: skip
# Pool, Mean and Copy work on uint8 values too. Maximum pooling and Copy keep scale and zero point, and zero channels
# hold the zero point. Averages are float32(Σ (x - zx)) · float32(sx / (sy · count)), then clamped to
# Quantization.bounds(activation) of the output, rounded half to even and moved by its zero point.
Quantized = QuantizedConvolution | Quantize | Dequantize | QuantizedAdd | QuantizedScale | LookUp | QuantizedConcat
Node = Native | Quantized | TorchCall


@dataclass(frozen=True)
class Program:
    """A network for inputs of one shape.

    Attributes:
        input: name of the input.
        nodes: in the order of execution.
        shapes: shape (N, C, H, W) of every value that kernels read or write.
        blocks: number of blocks of the values whose channels are stored in several blocks; each block begins at a
            multiple of the vector width.
        vectors: values with shape (N, C) in the network.
        outputs: names of the returned values.
        output_layouts: how the network sees each of them, one of ``arrangement.LAYOUTS``; empty if there is only one.
        structure: pytree specification of the network's output.
        layers: name of the module that each node comes from, by node name.
        quantized: scale and zero point of the values that are uint8; all others are float32.
        weight_scales: float64 (M,) scales of the weights that were dequantized from int8, by node name, in PyTorch's
            order of channels.
        unquantized: reason why a node runs in float32 although an input was dequantized, by node name.
    """

    input: str
    nodes: tuple[Node, ...]
    shapes: Mapping[str, Shape]
    blocks: Mapping[str, int]
    vectors: frozenset[str]
    outputs: tuple[str, ...]
    structure: Any
    layers: Mapping[str, str] = field(default_factory=dict)
    quantized: Mapping[str, Quantization] = field(default_factory=dict)
    weight_scales: Mapping[str, Tensor] = field(default_factory=dict)
    unquantized: Mapping[str, str] = field(default_factory=dict)
    output_layouts: tuple[str, ...] = ()


def inputs_of(node: Node) -> tuple[str, ...]:
    """Return the names of the values that a node reads."""
    if isinstance(node, TorchCall):
        from torch.utils._pytree import tree_leaves

        leaves = tree_leaves((node.args, dict(node.kwargs)), is_leaf=lambda leaf: isinstance(leaf, Reference))
        return tuple(leaf.value for leaf in leaves if isinstance(leaf, Reference))
    if isinstance(node, Concat | QuantizedConcat):
        return node.inputs
    others = (getattr(node, "residual", None), getattr(node, "second", None))
    return (node.input, *(other for other in others if other is not None))


def with_inputs(node: Native | Quantized, names: Mapping[str, str]) -> Native | Quantized:
    """Let a node read other values, by their old names."""
    if isinstance(node, Concat | QuantizedConcat):
        return replace(node, inputs=tuple(names.get(name, name) for name in node.inputs))
    renamed: dict[str, Any] = {
        field: names[value]
        for field in ("input", "residual", "second")
        if (value := getattr(node, field, None)) is not None and value in names
    }
    return replace(node, **renamed)
