"""Float nodes between dequantize and quantize, replaced one by one by nodes that compute in integers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from torch_separable.runtime.graph.ir import (
    IDENTITY,
    Activate,
    Activation,
    ActivationKind,
    Add,
    Concat,
    Convolution,
    DepthwiseConv,
    Dequantize,
    LookUp,
    Mean,
    Node,
    Pool,
    Program,
    Quantization,
    Quantize,
    QuantizedAdd,
    QuantizedConcat,
    QuantizedConvolution,
    QuantizedScale,
    Reference,
    Scale,
    TorchCall,
    inputs_of,
)
from torch_separable.runtime.graph.lower_common import blocked
from torch_separable.runtime.graph.reference import activate, dequantize, quantize

EVERY_BYTE = torch.arange(256, dtype=torch.uint8)
_INT32_END = 2**31


def readers_of(program: Program) -> dict[str, list[Node | None]]:
    """Who reads each value; ``None`` is the caller of the network."""
    found: dict[str, list[Node | None]] = defaultdict(list)
    for node in program.nodes:
        for name in inputs_of(node):
            found[name].append(node)
    for name in program.outputs:
        found[name].append(None)
    return found


def table_of(
    source: Quantization, node: Quantize, own: Quantization, function: Callable[[Tensor], Tensor] = Tensor.clone
) -> Tensor:
    """What each stored value becomes: dequantized, through the function, quantized."""
    with torch.no_grad():
        return quantize(function(dequantize(EVERY_BYTE, source)), own, node.low, node.high)


def match_kernels(program: Program) -> Program:
    """Replace every node that has a quantized form; note in `Program.unquantized` why others have none."""
    matcher = _Matcher(program)
    for node in program.nodes:
        matcher.take(node)
    return replace(
        program,
        nodes=tuple(matcher.nodes),
        shapes=matcher.shapes,
        quantized=matcher.quantized,
        unquantized=matcher.reasons,
    )


class _Unmatched(Exception):  # noqa: N818 - it carries a reason to `_Matcher.take`
    """A node stays in float32; the message is the reason."""


class _Matcher:
    """One pass over a program, and what it has made so far."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.made = {node.output: node for node in program.nodes}
        self.readers = readers_of(program)
        self.nodes: list[Node] = []
        self.shapes, self.quantized = dict(program.shapes), dict(program.quantized)
        self.reasons = dict(program.unquantized)
        self.fused: set[str] = set()  # outputs of Quantize nodes that became a part of the node before

    def take(self, node: Node) -> None:
        """Append the quantized form of a node, or itself."""
        if node.output in self.fused:
            return
        try:
            match node:
                case Convolution() | DepthwiseConv():
                    self.convolution(node)
                case Add() | Scale():
                    self.binary(node)
                case Pool() | Mean():
                    self.average(node) if isinstance(node, Mean) or not node.maximum else self.maximum(node)
                case Activate():
                    self.look_up(node, node.input, lambda x: activate(x, node.activation))
                case Concat():
                    self.concatenate(node)
                case TorchCall():
                    self.call(node)
                case _:
                    self.nodes.append(node)
        except _Unmatched as reason:
            if any(isinstance(self.made.get(name), Dequantize) for name in inputs_of(node)):
                self.reasons[node.name] = str(reason)
            self.nodes.append(node)

    def source(self, name: str) -> str:
        """The uint8 value that a float value was dequantized from."""
        node = self.made.get(name)
        if not isinstance(node, Dequantize):
            raise _Unmatched("an input is not quantized")
        return node.input

    def target(self, name: str) -> Quantize:
        """The node that quantizes a float value, and alone reads it."""
        readers = self.readers[name]
        if len(readers) != 1 or not isinstance(readers[0], Quantize):
            raise _Unmatched("its result is not quantized")
        return readers[0]

    def fuse(self, *nodes: Node) -> None:
        """Append nodes, the last of which computes what a Quantize node did."""
        self.nodes += nodes
        self.fused.add(nodes[-1].output)

    def value(self, name: str, like: str, quantization: Quantization | None = None) -> str:
        """Note a new value of the shape of another."""
        self.shapes[name] = self.shapes[like]
        if quantization is not None:
            self.quantized[name] = quantization
        return name

    def bounds(self, activation: Activation, target: Quantize) -> tuple[float, float]:
        if activation.kind is not ActivationKind.CLAMP:
            raise _Unmatched(f"its result is not quantized before {activation}")
        return self.quantized[target.output].bounds(activation, target.low, target.high)

    def convolution(self, node: Convolution | DepthwiseConv) -> None:
        """Bring a convolution or linear layer to integers; what cannot be fused with it follows in float32."""
        plain = self.integer_weights(node)
        activation, residual = node.activation, node.residual
        clamps = activation.kind is ActivationKind.CLAMP
        added = self.made.get(residual) if residual is not None else None
        addend = added.input if isinstance(added, Dequantize) else None
        target: Quantize | None = None
        if clamps and (residual is None or addend is not None):
            readers = self.readers[node.output]
            target = readers[0] if len(readers) == 1 and isinstance(readers[0], Quantize) else None
        own = None if target is None else self.quantized[target.output]
        scale = 1.0 if own is None else own.scale
        plain = replace(plain, multiplier=_rounded(plain.multiplier / scale), offset=_rounded(plain.offset / scale))
        if addend is not None:
            plain = replace(plain, residual=addend, residual_multiplier=self.quantized[addend].scale / scale)
        if target is not None:
            low, high = self.bounds(activation, target)
            self.fuse(replace(plain, output=target.output, low=low, high=high))
            return
        fits = clamps and (residual is None or addend is not None)
        if fits:
            plain = replace(plain, low=activation.alpha, high=activation.beta)
            self.nodes.append(plain)
            return
        # In float32 after the sums: a residual that is not quantized, an activation that is no clamp.
        name = self.value(f"{node.output}.sums", node.output)
        self.nodes.append(replace(plain, output=name))
        if residual is not None and addend is None:
            self.nodes.append(Add(f"{node.name}.add", name, residual, node.output, activation))
        else:
            self.nodes.append(Activate(f"{node.name}.activation", name, node.output, activation))

    def integer_weights(self, node: Convolution | DepthwiseConv) -> QuantizedConvolution:
        """The node's sums, with multiplier and offset in float64, and still of a float32 result."""
        scales = self.program.weight_scales.get(node.name)
        if scales is None:
            raise _Unmatched("its weights are not quantized symmetrically, to int8, by output channel")
        source = self.source(node.input)
        if isinstance(node, DepthwiseConv):
            filters, bias, window = node.depthwise.weight, node.depthwise.bias, node.depthwise.window
            kernels = filters.unflatten(1, window.kernel)  # (multiplier, kernel height, kernel width, C)
            weight = kernels.permute(3, 0, 1, 2) if node.summed else kernels.permute(3, 0, 1, 2).flatten(0, 1)[:, None]
            bias, groups = bias.T.flatten(), filters.shape[2]
        else:
            if node.depthwise is not None:
                raise _Unmatched("the result of its depthwise convolution is not quantized")
            weight, bias, window, groups = node.weight, node.bias, node.window, node.groups
            if groups == 1:
                scales = blocked(scales, self.program.blocks.get(node.output, 1), 0)
        exact = weight.double() / scales.float().double().view(-1, 1, 1, 1)
        integers = exact.round()
        if (exact - integers).abs().max() > 1e-3 or integers.abs().max() > 128:
            raise _Unmatched("its weights were changed after they were dequantized")
        quantization = self.quantized[source]
        rows = integers.flatten(1)
        largest = 255 * rows.abs().sum(1).max() + quantization.zero_point * rows.sum(1).abs().max()
        if largest >= _INT32_END:
            raise _Unmatched(f"its sums may reach {int(largest)}, which int32 does not hold")
        multiplier = quantization.scale * scales
        return QuantizedConvolution(
            node.name, source, node.output, integers.to(torch.int8).contiguous(), multiplier, bias.double(), window,
            IDENTITY.alpha, IDENTITY.beta, groups=groups,
        )  # fmt: skip

    def binary(self, node: Add | Scale) -> None:
        one, other, target = self.source(node.input), self.source(node.residual), self.target(node.output)
        low, high = self.bounds(node.activation, target)
        a, b, own = (self.quantized[name] for name in (one, other, target.output))
        if isinstance(node, Add):
            factors = a.scale / own.scale, b.scale / own.scale
            self.fuse(QuantizedAdd(node.name, one, other, target.output, *factors, low, high))
        else:
            factor = a.scale * b.scale / own.scale
            self.fuse(QuantizedScale(node.name, one, other, target.output, factor, low, high))

    def average(self, node: Pool | Mean) -> None:
        source, target = self.source(node.input), self.target(node.output)
        self.bounds(node.activation, target)
        if (target.low, target.high) != (0, 255):
            raise _Unmatched(f"its result is quantized to {target.low} to {target.high}, not to 0 to 255")
        self.fuse(replace(node, input=source, output=target.output))

    def maximum(self, node: Pool) -> None:
        """The maximum on stored values; then what the activation and the scale of the result make of it."""
        source, target = self.source(node.input), self.target(node.output)
        quantization = self.quantized[source]
        between = self.value(f"{node.output}.stored", node.output, quantization)
        table = table_of(quantization, target, self.quantized[target.output], lambda x: activate(x, node.activation))
        self.nodes.append(replace(node, input=source, output=between, activation=IDENTITY))
        self.fuse(LookUp(f"{node.name}.table", between, target.output, table))

    def look_up(self, node: Node, name: str, function: Callable[[Tensor], Tensor]) -> None:
        source, target = self.source(name), self.target(node.output)
        table = table_of(self.quantized[source], target, self.quantized[target.output], function)
        self.fuse(LookUp(node.name, source, target.output, table))

    def call(self, node: TorchCall) -> None:
        """Look an elementwise function of one value up."""
        reason = _Unmatched("no integer kernel for this operator")
        reads = inputs_of(node)
        tags = getattr(node.function, "tags", ())
        constants = [*node.args[1:], *node.kwargs.values()]
        alone = len(reads) == 1 and isinstance(node.args[0], Reference) and reads[0] in self.shapes
        if torch.Tag.pointwise not in tags or not alone or any(isinstance(each, Tensor) for each in constants):
            raise reason
        self.look_up(node, reads[0], lambda x: node.function(x, *node.args[1:], **node.kwargs))

    def concatenate(self, node: Concat) -> None:
        """Concatenate channels of uint8 values, brought to the scale of the result."""
        if node.axis != 1:
            raise _Unmatched("a concatenation of something else than channels")
        sources, target = [self.source(name) for name in node.inputs], self.target(node.output)
        own = self.quantized[target.output]
        inputs = []
        for place, source in enumerate(sources):
            table = table_of(self.quantized[source], target, own)
            if self.quantized[source] == own and torch.equal(table, EVERY_BYTE):
                inputs.append(source)
                continue
            name = self.value(f"{node.output}.part{place}", source, own)
            self.nodes.append(LookUp(f"{node.name}.part{place}", source, name, table))
            inputs.append(name)
        self.fuse(QuantizedConcat(node.name, tuple(inputs), target.output))


def _rounded(values: Tensor) -> Tensor:
    """Rounded once, from float64 to float32."""
    return values.to(torch.float32).contiguous()
