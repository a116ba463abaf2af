"""Fuse nodes of a program; each pass is a function from program to program.

Batch norms are folded into weights, activations and residual sums into their producers, and depthwise into pointwise
convolutions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace

from torch_separable.runtime.graph.ir import (
    Activate,
    Add,
    Binary,
    Concat,
    Convolution,
    Copy,
    Depthwise,
    DepthwiseConv,
    Mean,
    Node,
    Normalize,
    Pool,
    Program,
    QuantizedConcat,
    Resample,
    Scale,
    TorchCall,
    inputs_of,
    with_inputs,
)

# Nodes whose kernels apply an activation to what they store.
_ACTIVATED = (Convolution, Pool, Mean, Add, Scale, Binary, Resample, Normalize)

# (program, first, second) -> one node equivalent to both, or None if the pattern does not apply.
Pattern = Callable[[Program, Node, Node], Node | None]


def fuse(program: Program) -> Program:
    """Apply all passes."""
    program = merge_pairs(program, _merge_norm)
    program = merge_pairs(program, _merge_copies)
    program = _without_copies(program)
    program = merge_pairs(program, _merge_activation)
    program = _with_residuals(program)
    program = merge_pairs(program, _merge_activation)
    return merge_pairs(program, _merge_separable)


def merge_pairs(program: Program, pattern: Pattern) -> Program:
    """Apply a pattern to each node and the only reader of its output."""
    readers = _readers(program)
    nodes: list[Node] = []
    made: dict[str, int] = {}  # value -> index of its producer in `nodes`
    for node in program.nodes:
        source = None if isinstance(node, TorchCall | Concat | QuantizedConcat) else node.input
        first = nodes[made[source]] if source in made else None
        single = source is not None and readers[source] == 1
        fused = pattern(program, first, node) if first is not None and single else None
        if fused is None:
            made[node.output] = len(nodes)
            nodes.append(node)
        else:
            # The fused node takes the later position, because it may read values that are computed in between.
            place = made.pop(source)  # type: ignore[arg-type]
            del nodes[place]
            made = {name: at - (at > place) for name, at in made.items()}
            made[node.output] = len(nodes)
            nodes.append(fused)
    return replace(program, nodes=tuple(nodes))


def _readers(program: Program) -> Counter[str]:
    return Counter([*(name for node in program.nodes for name in inputs_of(node)), *program.outputs])


def _merge_norm(program: Program, first: Node, second: Node) -> Node | None:
    """Fold an affine function of each channel (a batch norm) into the weights before it."""
    if not isinstance(second, DepthwiseConv) or not second.depthwise.window.is_pointwise or second.residual is not None:
        return None
    if second.depthwise.weight.shape[:2] != (1, 1) or second.summed:
        return None
    scale, shift = second.depthwise.weight[0, 0].double(), second.depthwise.bias[0].double()
    if isinstance(first, Convolution) and first.activation.is_identity and first.residual is None:
        weight = first.weight.double() * scale[:, None, None, None]
        bias = first.bias.double() * scale + shift
        return replace(first, output=second.output, weight=weight.float(), bias=bias.float())
    if isinstance(first, DepthwiseConv) and first.activation.is_identity and first.residual is None:
        d = first.depthwise
        factor, offset = (scale[None], shift[None]) if first.summed else (scale, shift)
        rows = d.bias.shape[0]
        factor, offset = factor.reshape(rows, -1), offset.reshape(rows, -1)
        weight = d.weight.double() * (factor if first.summed else factor[:, None])
        folded = Depthwise(weight.float(), (d.bias.double() * factor + offset).float(), d.window)
        return replace(first, output=second.output, depthwise=folded)
    return None


def _merge_activation(program: Program, first: Node, second: Node) -> Node | None:
    if not isinstance(second, Activate):
        return None
    if isinstance(first, DepthwiseConv) and first.activation.is_identity:
        activated = replace(first.depthwise, activation=second.activation)
        return replace(first, output=second.output, depthwise=activated)
    if isinstance(first, Resample) and not first.blends:
        return None
    if isinstance(first, _ACTIVATED) and first.activation.is_identity:
        return replace(first, output=second.output, activation=second.activation)
    return None


def _merge_copies(program: Program, first: Node, second: Node) -> Node | None:
    if not (isinstance(first, Copy) and isinstance(second, Copy)):
        return None
    stride = (first.stride[0] * second.stride[0], first.stride[1] * second.stride[1])
    return replace(second, input=first.input, stride=stride, before=first.before + second.before)


def _without_copies(program: Program) -> Program:
    """Remove copies between equal shapes; their readers read the original."""
    names: dict[str, str] = {}
    nodes: list[Node] = []
    for node in program.nodes:
        same = isinstance(node, Copy) and program.shapes[node.input] == program.shapes[node.output]
        if isinstance(node, Copy) and same and node.output not in program.outputs:
            names[node.output] = names.get(node.input, node.input)
        elif isinstance(node, TorchCall):
            nodes.append(node)
        else:
            nodes.append(with_inputs(node, names))
    # A fallback expects the copy's own shape (a vector or an image), so copies that fallbacks read are kept.
    wanted = {name for node in nodes if isinstance(node, TorchCall) for name in inputs_of(node)} & names.keys()
    copies: dict[str, list[Node]] = defaultdict(list)
    for name in sorted(wanted):
        copies[names[name]].append(Copy(name, names[name], name))
    result = copies[program.input]
    for node in nodes:
        result += [node, *copies[node.output]]
    return replace(program, nodes=tuple(result))


def _with_residuals(program: Program) -> Program:
    """Fuse a sum into a convolution whose output has no other reader."""
    readers = _readers(program)
    nodes: list[Node] = []
    for node in program.nodes:
        if not isinstance(node, Add):
            nodes.append(node)
            continue
        # The convolution moves to the sum's position, where the other operand exists; of two, the later one moves.
        fused: Node | None = None
        for at in reversed(range(len(nodes))):
            fused = _plus(nodes[at], node, readers)
            if fused is not None:
                del nodes[at]
                break
        nodes.append(fused or node)
    return replace(program, nodes=tuple(nodes))


def _plus(first: Node, node: Add, readers: Counter[str]) -> Node | None:
    """Fuse a convolution with the sum that is its only reader."""
    if not isinstance(first, Convolution | DepthwiseConv) or first.output not in (node.input, node.residual):
        return None
    if readers[first.output] > 1 or first.residual is not None or not first.activation.is_identity:
        return None
    other = node.residual if first.output == node.input else node.input
    if isinstance(first, Convolution):
        return replace(first, output=node.output, residual=other, activation=node.activation)
    activated = replace(first.depthwise, activation=node.activation)
    return replace(first, output=node.output, residual=other, depthwise=activated)


def _merge_separable(program: Program, first: Node, second: Node) -> Node | None:
    """Fuse a depthwise convolution with the pointwise convolution that reads it."""
    if not (isinstance(first, DepthwiseConv) and isinstance(second, Convolution)):
        return None
    if first.summed or first.residual is not None or second.depthwise is not None or not second.window.is_pointwise:
        return None
    if second.groups > 1:
        return None
    if second.weight.shape[1] != first.depthwise.weight.shape[0] * first.depthwise.weight.shape[2]:
        return None
    return replace(second, input=first.input, depthwise=first.depthwise)
