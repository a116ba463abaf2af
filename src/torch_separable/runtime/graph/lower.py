"""From a network to a `Program`: ``torch.export`` gives the operators, this file reads them into typed nodes."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from threading import RLock
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from torch_separable.errors import SeparableError
from torch_separable.runtime.graph import lower_elementwise, lower_norms, lower_resample, lower_views
from torch_separable.runtime.graph.arrangement import LAYOUTS, Arrangement, stored_shape
from torch_separable.runtime.graph.ir import (
    RELU,
    Activate,
    Activation,
    ActivationKind,
    Convolution,
    Copy,
    Depthwise,
    DepthwiseConv,
    Mean,
    Node,
    Pair,
    Pool,
    Program,
    Rearrange,
    Reference,
    Rename,
    Shape,
    TorchCall,
    Window,
    inputs_of,
)
from torch_separable.runtime.graph.lower_common import Unsupported, arguments, pair
from torch_separable.runtime.graph.quantize_operators import (
    fold_constants,
    is_channelwise,
    scales_of_weights,
    with_quantized_values,
)

aten = torch.ops.aten

_CAPTURING = RLock()  # torch.export keeps its state in global variables


def lower(model: nn.Module, example: Tensor, quantized: bool = False) -> Program:
    """Trace ``model`` on ``example`` (N, C, H, W) in evaluation mode and read it as a `Program`.

    Args:
        model: the network.
        example: an input.
        quantized: read quantize and dequantize operators as nodes; otherwise PyTorch runs them.

    Raises:
        SeparableError: ``torch.export`` cannot trace it; the message holds its reason.
    """
    try:
        with _CAPTURING, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.export about itself
            exported = torch.export.export(model, (example,), strict=False)
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SeparableError(
            f"{type(model).__name__} cannot be captured by torch.export: {first}. "
            "torch_separable.runtime.compile_submodules compiles the parts that can be captured"
        ) from error
    plain: frozenset[str] = frozenset()
    while True:
        program = Lowering(exported, plain).program()
        if quantized:
            program = with_quantized_values(program)
        calls = [node for node in program.nodes if isinstance(node, TorchCall)]
        # PyTorch knows of no blocks: where it runs a part of a separable layer after all, that one does without.
        seen = {name for call in calls for name in (call.output, *inputs_of(call))} & program.blocks.keys()
        if not seen:
            return program
        plain |= seen


class Lowering:
    """One reading of a graph; the values in ``plain`` are not laid out in blocks."""

    def __init__(self, exported: torch.export.ExportedProgram, plain: frozenset[str]) -> None:
        self.exported = exported
        self.graph = exported.graph
        signature = exported.graph_signature
        constants: dict[str, Any] = {}
        for names, store in (
            (signature.inputs_to_parameters, exported.state_dict),
            (signature.inputs_to_buffers, {**exported.state_dict, **exported.constants}),
            (signature.inputs_to_lifted_tensor_constants, exported.constants),
        ):
            for node, target in names.items():
                constants[node] = store[target]
        constants |= fold_constants(self.graph, constants)
        self.constants = constants
        self.inputs = list(signature.user_inputs)
        self.outputs = list(signature.user_outputs)
        self.blocks = _blocks(self.graph, constants, plain)
        self.nodes: list[Node] = []
        self.shapes: dict[str, Shape] = {}
        self.vectors: set[str] = set()
        # Images with zeros around them, which only convolutions read: the image's name, the zeros above and to the
        # left, and the call that makes them where another reader turns up.
        self.padded: dict[str, tuple[str, Pair, TorchCall]] = {}
        # In-place operators rebind the name of what they change.
        self.names: dict[str, str] = {}
        # How the network sees a value, where that is not (N, C, H, W) or (N, C): see arrangement.py.
        self.layouts: dict[str, str] = {}
        self.views: dict[str, Arrangement] = {}  # what only renames or reorders a stored value
        self.pieces: dict[str, list[tuple[fx.Node, int, int]]] = {}  # of a split tensor: source, dimension, start
        self.materialized: dict[tuple[str, str], str] = {}
        self.roots = _roots(self.graph)
        self.handed_on = _handed_on(self.exported.graph_module, self.roots)

    def program(self) -> Program:
        """Read the whole graph."""
        if len(self.inputs) != 1:
            raise SeparableError(
                f"the network takes {len(self.inputs)} tensors, and compile needs one: use "
                "torch_separable.runtime.compile_submodules"
            )
        for node in self.graph.nodes:
            if node.op == "placeholder":
                if node.name not in self.constants:
                    self.see(node.name, node.meta["val"])
            elif node.op == "get_attr":  # the graph that a higher-order operator, as an autocast block, calls
                called = getattr(self.exported.graph_module, node.target)
                if _changes_what_it_gets(called):
                    raise SeparableError(
                        "the network changes a tensor in place within a block (as of torch.autocast) that it was made "
                        "outside of, which cannot be compiled. Leave inplace=True, or the underscore, out"
                    )
                self.constants[node.name] = called
            elif node.op == "call_function" and node.name not in self.constants and not self.fold_constant(node):
                self.lower_node(node)
        by_name = {node.name: node for node in self.graph.nodes}
        returned = [self.reference(by_name[name]) if name in by_name else Reference(name) for name in self.outputs]
        outputs = tuple(reference.value for reference in returned)
        computed = {self.inputs[0], *(node.output for node in self.nodes)}
        if not computed.issuperset(outputs):
            raise SeparableError("the network returns something that it has not computed, as a weight or a number")
        return Program(
            input=self.inputs[0],
            nodes=tuple(self.nodes),
            shapes=self.shapes,
            blocks={name: count for name, count in self.blocks.items() if name in self.shapes},
            vectors=frozenset(self.vectors),
            outputs=outputs,
            output_layouts=tuple(reference.layout for reference in returned),
            structure=self.exported.call_spec.out_spec,
            layers={node.name: _layer(node) for node in self.graph.nodes if node.op == "call_function"},
            weight_scales=scales_of_weights(self.graph, self.constants),
        )

    def lower_node(self, node: fx.Node) -> None:
        """Read one operator: by its handler, or as a call of PyTorch where that raises `Unsupported`."""
        handler = HANDLERS.get(node.target)
        try:
            if handler is None:
                raise Unsupported("no kernel for this operator")
            if node.target not in SHAPE_THEMSELVES:
                self.see(node.name, node.meta["val"])
            handler(self, node)
        except Unsupported as reason:
            self.forget(node.name)
            for source in node.all_input_nodes:
                if (padded := self.padded.pop(source.name, None)) is not None:
                    self.nodes.append(padded[2])
            call = self.torch_call(node, str(reason))
            with suppress(Unsupported):  # its result stays PyTorch's alone where kernels could not read it
                self.see(node.name, node.meta["val"])
            self.nodes.append(replace(call, layout=self.layouts.get(node.name, "")))
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            self.rebind(node, node.target)

    def rebind(self, node: fx.Node, target: torch._ops.OpOverload) -> None:
        """Let an in-place operator's result be read for what it changes, where nothing else reads that memory later."""
        changed = node.args[0] if node.args else None
        in_place = target.overloadpacket.__name__.endswith("_") and "out" not in node.kwargs
        if not in_place or not isinstance(changed, fx.Node) or self.roots[changed].name in self.constants:
            raise SeparableError(f"the network writes into a tensor by {node.target}, which cannot be compiled")
        if self.roots[changed] in self.handed_on:
            raise SeparableError(
                f"the network changes {changed.name} in place by {node.target}, which a block (as of torch.autocast) "
                "has taken and returned: that cannot be compiled. Leave inplace=True, or the underscore, out"
            )
        current = self.names.get(changed.name, changed.name)
        nodes = list(self.graph.nodes)
        before, after = nodes[: nodes.index(node)], nodes[nodes.index(node) + 1 :]
        for other in before:
            shares = self.roots[other] is self.roots[changed] and self.names.get(other.name, other.name) != current
            if shares and not _are_pieces(other, changed) and not other.users.keys().isdisjoint(after):
                raise SeparableError(
                    f"the network changes {changed.name} in place by {node.target}, and then reads {other.name}, "
                    "which shares its memory: that cannot be compiled. Leave inplace=True, or the underscore, out"
                )
        for key, value in [*self.names.items(), (changed.name, changed.name)]:
            if value == current:
                self.names[key] = node.name
        self.names[changed.name] = node.name

    def see(self, name: str, value: Any) -> None:
        """Record the shape of a value that kernels may read; others are PyTorch's alone."""
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            raise Unsupported(f"the result is of {getattr(value, 'dtype', type(value).__name__)}, not float32")
        layout = {4: "NCHW", 3: "NLC", 2: "NC"}.get(value.dim())
        if layout is None:
            raise Unsupported(f"the result has {value.dim()} dimensions")
        sizes = [int(size) for size in value.shape]
        batch, pixels, channels = LAYOUTS[layout]
        rows = sizes[pixels[0]] if len(pixels) == 2 else 1
        columns = sizes[pixels[-1]] if pixels else 1
        self.record(name, (sizes[batch or 0], sizes[channels], rows, columns), layout)

    def record(self, name: str, shape: Sequence[int], layout: str) -> None:
        """Record a value's stored shape (N, C, H, W), and how the network sees it."""
        n, c, h, w = (int(size) for size in shape)
        self.shapes[name] = (n, c, h, w)
        self.layouts[name] = layout
        if layout == "NC":
            self.vectors.add(name)

    def forget(self, name: str) -> None:
        """Forget what a handler recorded before it gave up."""
        self.shapes.pop(name, None)
        self.vectors.discard(name)
        self.layouts.pop(name, None)

    def add_view(self, node: fx.Node, seen: Arrangement) -> None:
        """Let a node stand for stored elements in another order or shape; nothing is moved yet."""
        self.forget(node.name)
        self.views[node.name] = seen

    def arrangement(self, node: Any) -> Arrangement:
        """How the elements of a node's tensor lie in a stored value."""
        if not isinstance(node, fx.Node):
            raise Unsupported("an operand is a number")
        name = self.names.get(node.name, node.name)
        if name in self.views:
            return self.views[name]
        if name not in self.shapes:
            raise Unsupported("an operand is a constant, or not an activation of float32")
        if self.blocks.get(name, 1) > 1:
            raise Unsupported("a view of channels within a separable layer")
        return Arrangement.stored(name, self.shapes[name], self.layouts[name])

    def operand(self, node: Any) -> tuple[str, str]:
        """Name and layout of the value that holds a node's tensor, in the layout that costs least."""
        if not isinstance(node, fx.Node):
            raise Unsupported("an operand is a number")
        name = self.names.get(node.name, node.name)
        if name in self.shapes:
            return name, self.layouts[name]
        seen = self.arrangement(node)
        layouts = seen.layouts()
        if not layouts:
            raise Unsupported(f"a view of {len(seen.logical)} dimensions")
        return self.materialize(seen, layouts[0], node.name), layouts[0]

    def in_layout(self, node: Any, layout: str) -> str:
        """Name of a value that holds a node's tensor in a given layout."""
        name, own = self.operand(node)
        if own == layout:
            return name
        seen = self.arrangement(node)
        if layout not in seen.layouts():
            raise Unsupported("operands of different numbers of dimensions")
        return self.materialize(seen, layout, node.name)

    def materialize(self, seen: Arrangement, layout: str, name: str) -> str:
        """Name of a value that holds an arrangement in a layout: the stored one, renamed, or a copy."""
        shape = stored_shape(seen.sizes, seen.target(layout))
        renamed = seen.is_renamed(layout)
        if renamed and shape == self.shapes[seen.source] and (layout == "NC") == (seen.source in self.vectors):
            return seen.source
        known = self.materialized.get((name, layout))
        if known is not None:
            return known
        value = f"{name}.{layout}"
        self.record(value, shape, layout)
        if renamed and shape == self.shapes[seen.source]:
            self.nodes.append(Copy(value, seen.source, value))  # dropped by fuse.py: PyTorch alone tells them apart
        elif renamed:
            self.nodes.append(Rename(value, seen.source, value))
        else:
            self.nodes.append(Rearrange(value, seen.source, value, seen.sizes, seen.storage, seen.target(layout)))
        self.materialized[name, layout] = value
        return value

    def as_one_row(self, name: str) -> str:
        """Name of a value whose pixels are one row, as those of tokens are counted."""
        n, c, h, w = self.shapes[name]
        if h == 1:
            return name
        value = f"{name}.row"
        if value not in self.shapes:
            self.record(value, (n, c, 1, h * w), self.layouts[name])
            self.nodes.append(Rename(value, name, value))
        return value

    def value(self, node: Any) -> str:
        """Name of a value that kernels can read as (N, C, H, W) or (N, C)."""
        name, layout = self.operand(node)
        if layout in ("NCHW", "NC"):
            return name
        if layout == "NHWC":
            return self.in_layout(node, "NCHW")
        raise Unsupported("the operand has three dimensions")

    def fold_constant(self, node: fx.Node) -> bool:
        """Compute an operator whose operands are all weights once and for all: standardized or merged weights."""
        inputs = node.all_input_nodes
        target = node.target
        if not inputs or not all(isinstance(self.constants.get(source.name), Tensor) for source in inputs):
            return False
        if not isinstance(target, torch._ops.OpOverload):
            return False
        # What was computed here may be changed in place; the network's own weights may not.
        if target._schema.is_mutable and any(self.roots[source].op == "placeholder" for source in inputs):
            return False
        if torch.Tag.nondeterministic_seeded in target.tags or not isinstance(node.meta.get("val"), Tensor):
            return False
        args = _mapped(node.args, lambda value: self.constants[value.name] if isinstance(value, fx.Node) else value)
        kwargs = _mapped(node.kwargs, lambda value: self.constants[value.name] if isinstance(value, fx.Node) else value)
        with torch.no_grad():
            self.constants[node.name] = target(*args, **kwargs)
        return True

    def reference(self, node: fx.Node) -> Reference:
        """Refer to a node's tensor as PyTorch is to see it, or as the network returns it."""
        name = self.names.get(node.name, node.name)
        if name in self.views:
            try:
                value, layout = self.operand(node)
            except Unsupported as reason:
                self.views.pop(name)  # PyTorch makes it after all
                self.nodes.append(self.torch_call(node, str(reason)))
                return Reference(name)
            return Reference(value, layout)
        return Reference(name, self.layouts.get(name, ""))

    def constant(self, node: Any) -> Tensor:
        """The weight that a node stands for."""
        if not isinstance(node, fx.Node) or node.name not in self.constants:
            raise Unsupported("its weights are computed")
        constant: Any = self.constants[node.name]
        if not isinstance(constant, Tensor):
            raise Unsupported("its weights are computed")
        if constant.dtype != torch.float32:
            raise Unsupported(f"its weights are of {constant.dtype}")
        return constant.detach()

    def torch_call(self, node: fx.Node, reason: str) -> TorchCall:
        """Hand an operator to PyTorch."""

        def argument(value: Any) -> Any:
            if not isinstance(value, fx.Node):
                return value
            constant = self.constants.get(value.name)
            return self.reference(value) if constant is None else constant

        args = tuple(_mapped(a, argument) for a in node.args)
        kwargs = {key: _mapped(value, argument) for key, value in node.kwargs.items()}
        function: Any = node.target
        return TorchCall(node.name, node.name, _COPYING.get(function, function), args, kwargs, reason)


def _layer(node: fx.Node) -> str:
    """Name of the innermost module that a node comes from."""
    stack = node.meta.get("nn_module_stack") or {}
    path: str = next(reversed(stack.values()), ("",))[0]
    return path.removeprefix("L['self'].")


def _roots(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Whose memory each value may share: that of what it is a view of, or was made of in place; else its own."""
    roots: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        returns = node.target._schema.returns if isinstance(node.target, torch._ops.OpOverload) else ()
        shares = any(each.alias_info for each in returns) or node.target in _GIVE_WHAT_THEY_GET
        source = node.args[0] if shares and node.args else None
        roots[node] = roots[source] if isinstance(source, fx.Node) else node
    return roots


def _changes_what_it_gets(called: Any) -> bool:
    """Whether a graph that a higher-order operator calls writes into its arguments."""
    if not isinstance(called, fx.GraphModule):
        return False
    roots = _roots(called.graph)
    for node in called.graph.nodes:
        if node.op == "get_attr" and _changes_what_it_gets(getattr(called, node.target)):
            return True
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            given = [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, fx.Node)]
            if any(roots[value].op == "placeholder" for value in given):
                return True
    return False


def _handed_on(module: fx.GraphModule, roots: Mapping[fx.Node, fx.Node]) -> set[fx.Node]:
    """Whose memory higher-order operators return that they were given, and these operators."""
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        modules = [arg for arg in node.args if isinstance(arg, fx.Node) and arg.op == "get_attr"]
        called = [getattr(module, str(arg.target)) for arg in modules]
        for graph in (each.graph for each in called if isinstance(each, fx.GraphModule)):
            within, given = _roots(graph), graph.find_nodes(op="placeholder")
            operands = dict(zip(reversed(given), reversed(tree_leaves(list(node.args))), strict=False))
            returned = {operands.get(within[value]) for value in graph.output_node().all_input_nodes}
            if again := {roots[value] for value in returned if isinstance(value, fx.Node)}:
                found |= {node, *again}
    return found


# Views that need memory in their order: as calls of PyTorch they take values of any strides.
_COPYING = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}

# In evaluation mode these return their very argument, of which their schemas say nothing.
_GIVE_WHAT_THEY_GET = (operator.getitem, aten.dropout.default, aten.feature_dropout.default)


def _are_pieces(one: fx.Node, other: fx.Node) -> bool:
    """Whether both are parts that one operator, as ``chunk``, has cut a tensor into."""
    return one.target is operator.getitem and other.target is operator.getitem and one.args[0] is other.args[0]


def _blocks(graph: fx.Graph, constants: Mapping[str, Any], plain: frozenset[str]) -> dict[str, int]:
    """Find values between the two halves of a separable convolution whose multiplier is above 1, and the multiplier.

    Their channels interleave, c·D + d; kernels want D blocks of c. As only the two halves, and a batch norm and an
    activation between them, see these channels, their weights can be put in the order of blocks, and nobody knows.
    With one channel on the other side (one group) the depthwise half is a dense convolution, and is run as that.
    """
    found: dict[str, int] = {}
    for node in graph.nodes:
        if node.target is not aten.conv2d.default:
            continue
        chain = [node]
        while len(chain[-1].users) == 1:
            follower = next(iter(chain[-1].users))
            passes = follower.target in _CHANNELWISE or is_channelwise(follower.target)
            if not passes or follower.args[0] is not chain[-1]:
                break
            chain.append(follower)
        second = next(iter(chain[-1].users)) if len(chain[-1].users) == 1 else None
        if second is None or second.target is not aten.conv2d.default or second.args[0] is not chain[-1]:
            continue
        (groups, inputs, outputs), (more, inside, last) = (_grouping(conv, constants) for conv in (node, second))
        if 1 < groups == inputs and outputs > inputs and more == 1 and _is_pointwise(second, constants):
            multiplier = outputs // inputs
        elif 1 < more == last and inside > last and groups == 1 and _is_pointwise(node, constants):
            multiplier = inside // last
        else:
            continue
        if plain.isdisjoint(link.name for link in chain):
            found.update({link.name: multiplier for link in chain})
    return found


def _grouping(conv: fx.Node, constants: Mapping[str, Any]) -> tuple[int, int, int]:
    """Groups, input and output channels."""
    weight = constants.get(getattr(conv.args[1], "name", ""))
    groups = conv.args[6] if len(conv.args) > 6 else conv.kwargs.get("groups", 1)
    if weight is None or not isinstance(groups, int):
        return 0, 0, 0
    return groups, weight.shape[1] * groups, weight.shape[0]


def _is_pointwise(conv: fx.Node, constants: Mapping[str, Any]) -> bool:
    given = arguments(conv, ("input", "weight", "bias", "stride", "padding", "dilation", "groups"), _CONVOLUTION)
    shape = constants[given["weight"].name].shape[2:]
    return tuple(shape) == (1, 1) and pair(given["stride"]) == (1, 1) and pair(given["padding"]) == (0, 0)


def blocked(tensor: Tensor, blocks: int, dimension: int) -> Tensor:
    """Reorder channels c·D + d to D blocks of c."""
    if blocks == 1:
        return tensor
    parts: Tensor = tensor.unflatten(dimension, (-1, blocks))
    return parts.transpose(dimension, dimension + 1).flatten(dimension, dimension + 1)


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    return tree_map(function, value)


_CONVOLUTION: dict[str, Any] = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def _convolution(lowering: Lowering, node: fx.Node) -> None:
    given = arguments(node, ("input", "weight", "bias", "stride", "padding", "dilation", "groups"), _CONVOLUTION)
    padded, before = lowering.padded.get(getattr(given["input"], "name", ""), (None, (0, 0), None))[:2]
    source, weight = padded or lowering.value(given["input"]), lowering.constant(given["weight"])
    bias = torch.zeros(weight.shape[0]) if given["bias"] is None else lowering.constant(given["bias"])
    kernel, dilation, padding = pair(weight.shape[2:]), pair(given["dilation"]), given["padding"]
    if isinstance(padding, str):
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)] if padding == "same" else [0, 0]
        padding = [n // 2 for n in total]  # an odd one's remainder is on the far side, where kernels need not be told
    top, left = pair(padding)
    window = Window(kernel, pair(given["stride"]), (top + before[0], left + before[1]), dilation)
    groups, outputs, inputs = given["groups"], weight.shape[0], weight.shape[1] * given["groups"]
    blocks_in, blocks_out = lowering.blocks.get(source, 1), lowering.blocks.get(node.name, 1)
    if groups == 1:
        weight = blocked(blocked(weight, blocks_out, 0), blocks_in, 1)
        bias = blocked(bias, blocks_out, 0)
        lowering.nodes.append(Convolution(node.name, source, node.name, weight, bias, window))
    elif groups == inputs and outputs // inputs == blocks_out:
        multiplier = blocks_out
        filters = weight.flatten(1).view(inputs, multiplier, -1).permute(1, 2, 0)
        depthwise = Depthwise(filters, bias.view(inputs, multiplier).T, window)
        lowering.nodes.append(DepthwiseConv(node.name, source, node.name, depthwise))
    elif groups == outputs and inputs // outputs == blocks_in:
        filters = weight.flatten(2).permute(1, 2, 0)
        depthwise = Depthwise(filters, bias[None], window)
        lowering.nodes.append(DepthwiseConv(node.name, source, node.name, depthwise, summed=True))
    elif blocks_in == blocks_out == 1:
        lowering.nodes.append(Convolution(node.name, source, node.name, weight, bias, window, groups=groups))
    else:
        raise Unsupported(f"a grouped convolution ({groups} groups) within a separable one")


def _batch_norm(lowering: Lowering, node: fx.Node) -> None:
    names = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn")
    given = arguments(node, names, {})
    if given["training"]:
        raise Unsupported("batch norm in training mode")
    source = lowering.value(given["input"])
    mean, variance = lowering.constant(given["running_mean"]), lowering.constant(given["running_var"])
    scale = (variance.double() + given["eps"]).rsqrt()
    if given["weight"] is not None:
        scale = scale * lowering.constant(given["weight"]).double()
    shift = -mean.double() * scale
    if given["bias"] is not None:
        shift = shift + lowering.constant(given["bias"]).double()
    # A convolution of one tap: folded into the convolution before it where there is one (fuse.py).
    blocks = lowering.blocks.get(node.name, 1)
    scale, shift = (blocked(values, blocks, 0).float() for values in (scale, shift))
    depthwise = Depthwise(scale.view(1, 1, -1), shift.view(1, -1), Window())
    lowering.nodes.append(DepthwiseConv(node.name, source, node.name, depthwise))


def _linear(lowering: Lowering, node: fx.Node) -> None:
    given = arguments(node, ("input", "weight", "bias"), {"bias": None})
    (source, layout), weight = lowering.operand(given["input"]), lowering.constant(given["weight"])
    if layout not in ("NC", "NLC", "NHWC"):
        layout = "NHWC" if layout == "NCHW" else "NLC"
        source = lowering.in_layout(given["input"], layout)
    n, _, h, w = lowering.shapes[source]
    lowering.record(node.name, (n, weight.shape[0], h, w), layout)
    bias = torch.zeros(weight.shape[0]) if given["bias"] is None else lowering.constant(given["bias"])
    lowering.nodes.append(Convolution(node.name, source, node.name, weight[:, :, None, None], bias, Window()))


def _activation(make: Callable[..., Activation]) -> Callable[[Lowering, fx.Node], None]:
    def activation_handler(lowering: Lowering, node: fx.Node) -> None:
        activation = make(*node.args[1:], **node.kwargs)
        source, layout = lowering.operand(node.args[0])
        lowering.record(node.name, lowering.shapes[source], layout)
        lowering.nodes.append(Activate(node.name, source, node.name, activation))

    return activation_handler


def _clamp(low: float | None = None, high: float | None = None, **named: float | None) -> Activation:
    low, high = named.get("min", named.get("min_val", low)), named.get("max", named.get("max_val", high))
    return Activation(alpha=-math.inf if low is None else float(low), beta=math.inf if high is None else float(high))


def _gelu(approximate: str = "none") -> Activation:
    return Activation(ActivationKind.GELU if approximate == "none" else ActivationKind.GELU_TANH)


def _elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Activation:
    if scale != 1 or input_scale != 1:
        raise Unsupported("an exponential linear unit with scales, as selu")
    return Activation(ActivationKind.ELU, float(alpha))


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Activation:
    if beta != 1 or threshold < 20:
        raise Unsupported("softplus with a beta or a threshold of its own")
    return Activation(ActivationKind.SOFTPLUS)


def _mean(lowering: Lowering, node: fx.Node) -> None:
    given = arguments(node, ("input", "dim", "keepdim"), {"keepdim": False})
    source, layout = lowering.operand(given["input"])
    if layout == "NLC" and [d % 3 for d in given["dim"] or ()] == [1]:
        n, c, _, _ = lowering.shapes[source]
        lowering.record(node.name, (n, c, 1, 1), "NLC" if given["keepdim"] else "NC")
        lowering.nodes.append(Mean(node.name, source, node.name))
        return
    source = lowering.value(given["input"])
    if source in lowering.vectors or sorted(d % 4 for d in given["dim"] or ()) != [2, 3]:
        raise Unsupported("a mean over other dimensions than height and width")
    lowering.nodes.append(Mean(node.name, source, node.name))


def _adaptive_average(lowering: Lowering, node: fx.Node) -> None:
    if (size := pair(node.args[1])) != (1, 1):
        source = lowering.value(node.args[0])
        _, _, h, w = lowering.shapes[source]
        if h % size[0] or w % size[1]:
            raise Unsupported("adaptive pooling by windows of several sizes")
        window = (h // size[0], w // size[1])
        lowering.nodes.append(Pool(node.name, source, node.name, Window(window, window), False))
        return
    lowering.nodes.append(Mean(node.name, lowering.value(node.args[0]), node.name))


def _pool(maximum: bool) -> Callable[[Lowering, fx.Node], None]:
    tail = ("dilation", "ceil_mode") if maximum else ("ceil_mode", "count_include_pad", "divisor_override")

    def handler(lowering: Lowering, node: fx.Node) -> None:
        defaults = {"stride": (), "padding": 0, "dilation": 1, "count_include_pad": True, "divisor_override": None}
        given = arguments(node, ("input", "kernel_size", "stride", "padding", *tail), defaults)
        if given["divisor_override"] is not None:
            raise Unsupported("average pooling with a divisor of its own")
        kernel = pair(given["kernel_size"])
        stride = pair(given["stride"]) if given["stride"] not in ((), [], None) else kernel
        window = Window(kernel, stride, pair(given["padding"]), pair(given["dilation"]))
        source = lowering.value(given["input"])
        lowering.nodes.append(Pool(node.name, source, node.name, window, maximum, bool(given["count_include_pad"])))

    return handler


def _pad(lowering: Lowering, node: fx.Node) -> None:
    given = arguments(node, ("input", "pad", "mode", "value"), {"mode": "constant", "value": 0})
    source, amounts = lowering.value(given["input"]), [*given["pad"], 0, 0, 0, 0, 0, 0][:6]
    of_images = source not in lowering.vectors and not any(given["pad"][6:])
    if not of_images or given["mode"] != "constant" or given["value"] or min(amounts) < 0:
        lower_resample.pad_handler(lowering, node)
        return
    left, _, top, _, before, _ = amounts
    if not any(amounts[:4]):
        lowering.nodes.append(Copy(node.name, source, node.name, before=before))
    elif not any(amounts[4:]) and all(_looks_around(user, node, lowering.constants) for user in node.users):
        # Kernels take what lies outside of an image as zeros, wherever their windows begin and end.
        call = lowering.torch_call(node, "its reader runs in PyTorch")
        lowering.padded[node.name] = source, (top, left), call
    else:
        lower_resample.pad_handler(lowering, node)


def _looks_around(user: fx.Node, node: fx.Node, constants: Mapping[str, Any]) -> bool:
    """Whether ``user`` is a convolution of ``node`` by a kernel of more than one pixel."""
    weight = constants.get(getattr(user.args[1], "name", "")) if user.target is aten.conv2d.default else None
    return weight is not None and user.args[0] is node and tuple(weight.shape[2:]) != (1, 1)


def _dropout(lowering: Lowering, node: fx.Node) -> None:
    if node.args[2]:
        raise Unsupported("dropout that drops in evaluation mode, too")
    _same(lowering, node)


def _same(lowering: Lowering, node: fx.Node) -> None:
    source, layout = lowering.operand(node.args[0])
    if lowering.blocks.get(source, 1) > 1:
        lowering.record(node.name, lowering.shapes[source], layout)
        lowering.nodes.append(Copy(node.name, source, node.name))
    else:
        lowering.add_view(node, lowering.arrangement(node.args[0]))


Handler = Callable[[Lowering, fx.Node], None]
_K = ActivationKind
HANDLERS: dict[Any, Handler] = {
    aten.conv2d.default: _convolution,
    aten.conv2d.padding: _convolution,
    aten.batch_norm.default: _batch_norm,
    aten.linear.default: _linear,
    aten.mean.dim: _mean,
    aten.adaptive_avg_pool2d.default: _adaptive_average,
    aten.max_pool2d.default: _pool(True),
    aten.avg_pool2d.default: _pool(False),
    aten.pad.default: _pad,
    **lower_views.HANDLERS,
    **lower_elementwise.HANDLERS,
    **lower_resample.HANDLERS,
    **lower_norms.HANDLERS,
    aten.dropout.default: _dropout,
    aten.dropout_.default: _dropout,
    aten.feature_dropout.default: _dropout,
    aten.feature_dropout_.default: _dropout,
}
for _packet, _make in {
    "relu": lambda: RELU,
    "relu6": lambda: Activation(alpha=0.0, beta=6.0),
    "hardtanh": lambda low=-1.0, high=1.0, **named: _clamp(low, high, **named),
    "clamp": _clamp,
    "leaky_relu": lambda slope=0.01, **named: Activation(_K.LEAKY_RELU, named.get("negative_slope", slope)),
    "silu": lambda: Activation(_K.SILU),
    "hardswish": lambda: Activation(_K.HARDSWISH),
    "hardsigmoid": lambda: Activation(_K.HARDSIGMOID),
    "sigmoid": lambda: Activation(_K.SIGMOID),
    "gelu": _gelu,
    "tanh": lambda: Activation(_K.TANH),
    "elu": _elu,
    "softplus": _softplus,
    "mish": lambda: Activation(_K.MISH),
    "exp": lambda: Activation(_K.EXP),
    "abs": lambda: Activation(_K.ABSOLUTE),
    "sqrt": lambda: Activation(_K.SQUARE_ROOT),
}.items():
    for _form in (_packet, f"{_packet}_"):
        if hasattr(aten, _form):
            HANDLERS[getattr(aten, _form).default] = _activation(_make)


# Handlers that record the shape of their result themselves, or make a view that has none.
SHAPE_THEMSELVES = {
    *lower_views.HANDLERS, *lower_elementwise.HANDLERS, *lower_resample.HANDLERS, *lower_norms.HANDLERS,
    *(target for target, handler in HANDLERS.items() if handler in (_linear, _dropout, _same)),
    *(target for target, handler in HANDLERS.items() if getattr(handler, "__name__", "") == "activation_handler"),
}  # fmt: skip

# What may stand between the halves of a separable convolution without mixing channels.
_CHANNELWISE = {target for target, handler in HANDLERS.items() if handler in (_batch_norm, _same, _dropout)} | {
    target for target, handler in HANDLERS.items() if getattr(handler, "__name__", "") == "activation_handler"
}
