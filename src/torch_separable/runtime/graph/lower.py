"""From a network to a `Program`: ``torch.export`` gives the operators, this file reads them into typed nodes."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import RLock
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from torch_separable.errors import SeparableError
from torch_separable.runtime.graph.ir import (
    RELU,
    Activate,
    Activation,
    ActivationKind,
    Add,
    Convolution,
    Copy,
    Depthwise,
    DepthwiseConv,
    Mean,
    Node,
    Pair,
    Pool,
    Program,
    Reference,
    Scale,
    Shape,
    TorchCall,
    Window,
    inputs_of,
)
from torch_separable.runtime.graph.quantize_operators import (
    fold_constants,
    is_channelwise,
    scales_of_weights,
    with_quantized_values,
)

aten = torch.ops.aten

_CAPTURING = RLock()  # torch.export keeps its state in global variables


class Unsupported(Exception):  # noqa: N818 - it carries a reason to the caller, and never leaves this file
    """An operator, called as it is, is PyTorch's to run; the message is the reason."""


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
        program = _Lowering(exported, plain).program()
        if quantized:
            program = with_quantized_values(program)
        calls = [node for node in program.nodes if isinstance(node, TorchCall)]
        # PyTorch knows of no blocks: where it runs a part of a separable layer after all, that one does without.
        seen = {name for call in calls for name in (call.output, *inputs_of(call))} & program.blocks.keys()
        if not seen:
            return program
        plain |= seen


class _Lowering:
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
        self.roots = _roots(self.graph)
        self.handed_on = _handed_on(self.exported.graph_module, self.roots)

    def program(self) -> Program:
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
            elif node.op == "call_function" and node.name not in self.constants:
                self.lower_node(node)
        outputs = tuple(self.names.get(name, name) for name in self.outputs)
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
            structure=self.exported.call_spec.out_spec,
            layers={node.name: _layer(node) for node in self.graph.nodes if node.op == "call_function"},
            weight_scales=scales_of_weights(self.graph, self.constants),
        )

    def lower_node(self, node: fx.Node) -> None:
        handler = HANDLERS.get(node.target)
        try:
            if handler is None:
                raise Unsupported("no kernel for this operator")
            self.see(node.name, node.meta["val"])
            handler(self, node)
        except Unsupported as reason:
            for source in node.all_input_nodes:
                if (padded := self.padded.pop(source.name, None)) is not None:
                    self.nodes.append(padded[2])
            self.nodes.append(self.torch_call(node, str(reason)))
            with suppress(Unsupported):  # its result stays PyTorch's alone where kernels could not read it
                self.see(node.name, node.meta["val"])
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
        """Note the shape of a value that kernels may read; others are PyTorch's alone."""
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            raise Unsupported(f"the result is of {getattr(value, 'dtype', type(value).__name__)}, not float32")
        if value.dim() == 4:
            n, c, h, w = value.shape
        elif value.dim() == 2:
            (n, c), h, w = value.shape, 1, 1
            self.vectors.add(name)
        else:
            raise Unsupported(f"the result has {value.dim()} dimensions")
        self.shapes[name] = (int(n), int(c), int(h), int(w))

    def value(self, node: Any) -> str:
        """Name of a value that kernels can read."""
        if not isinstance(node, fx.Node):
            raise Unsupported("an operand is a number")
        name = self.names.get(node.name, node.name)
        if name not in self.shapes:
            raise Unsupported("an operand is a constant, or not an activation of float32")
        return name

    def constant(self, node: Any) -> Tensor:
        if not isinstance(node, fx.Node) or node.name not in self.constants:
            raise Unsupported("its weights are computed")
        constant: Any = self.constants[node.name]
        if not isinstance(constant, Tensor):
            raise Unsupported("its weights are computed")
        if constant.dtype != torch.float32:
            raise Unsupported(f"its weights are of {constant.dtype}")
        return constant.detach()

    def torch_call(self, node: fx.Node, reason: str) -> TorchCall:
        def argument(value: Any) -> Any:
            if not isinstance(value, fx.Node):
                return value
            constant = self.constants.get(value.name)
            return Reference(self.names.get(value.name, value.name)) if constant is None else constant

        args = tuple(_mapped(a, argument) for a in node.args)
        kwargs = {key: _mapped(value, argument) for key, value in node.kwargs.items()}
        return TorchCall(node.name, node.name, node.target, args, kwargs, reason)


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
    given = _arguments(conv, ("input", "weight", "bias", "stride", "padding", "dilation", "groups"), _CONVOLUTION)
    shape = constants[given["weight"].name].shape[2:]
    return tuple(shape) == (1, 1) and _pair(given["stride"]) == (1, 1) and _pair(given["padding"]) == (0, 0)


def blocked(tensor: Tensor, blocks: int, dimension: int) -> Tensor:
    """Reorder channels c·D + d to D blocks of c."""
    if blocks == 1:
        return tensor
    parts: Tensor = tensor.unflatten(dimension, (-1, blocks))
    return parts.transpose(dimension, dimension + 1).flatten(dimension, dimension + 1)


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    return tree_map(function, value)


def _pair(value: Any) -> Pair:
    values = [value] if isinstance(value, int) else list(value)
    return (int(values[0]), int(values[-1]))


def _arguments(node: fx.Node, names: tuple[str, ...], defaults: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(zip(names, node.args, strict=False))
    return {**defaults, **given, **node.kwargs}


_CONVOLUTION: dict[str, Any] = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def _convolution(lowering: _Lowering, node: fx.Node) -> None:
    given = _arguments(node, ("input", "weight", "bias", "stride", "padding", "dilation", "groups"), _CONVOLUTION)
    padded, before = lowering.padded.get(getattr(given["input"], "name", ""), (None, (0, 0), None))[:2]
    source, weight = padded or lowering.value(given["input"]), lowering.constant(given["weight"])
    bias = torch.zeros(weight.shape[0]) if given["bias"] is None else lowering.constant(given["bias"])
    kernel, dilation, padding = _pair(weight.shape[2:]), _pair(given["dilation"]), given["padding"]
    if isinstance(padding, str):
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)] if padding == "same" else [0, 0]
        padding = [n // 2 for n in total]  # an odd one's remainder is on the far side, where kernels need not be told
    top, left = _pair(padding)
    window = Window(kernel, _pair(given["stride"]), (top + before[0], left + before[1]), dilation)
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


def _batch_norm(lowering: _Lowering, node: fx.Node) -> None:
    names = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn")
    given = _arguments(node, names, {})
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


def _linear(lowering: _Lowering, node: fx.Node) -> None:
    given = _arguments(node, ("input", "weight", "bias"), {"bias": None})
    source, weight = lowering.value(given["input"]), lowering.constant(given["weight"])
    if source not in lowering.vectors:
        raise Unsupported("a linear layer over the last dimension of images")
    bias = torch.zeros(weight.shape[0]) if given["bias"] is None else lowering.constant(given["bias"])
    lowering.nodes.append(Convolution(node.name, source, node.name, weight[:, :, None, None], bias, Window()))


def _activation(make: Callable[..., Activation]) -> Callable[[_Lowering, fx.Node], None]:
    def activation_handler(lowering: _Lowering, node: fx.Node) -> None:
        activation = make(*node.args[1:], **node.kwargs)
        lowering.nodes.append(Activate(node.name, lowering.value(node.args[0]), node.name, activation))

    return activation_handler


def _clamp(low: float | None = None, high: float | None = None, **named: float | None) -> Activation:
    low, high = named.get("min", named.get("min_val", low)), named.get("max", named.get("max_val", high))
    return Activation(alpha=-math.inf if low is None else float(low), beta=math.inf if high is None else float(high))


def _gelu(approximate: str = "none") -> Activation:
    return Activation(ActivationKind.GELU if approximate == "none" else ActivationKind.GELU_TANH)


def _add(lowering: _Lowering, node: fx.Node) -> None:
    if node.kwargs.get("alpha", 1) != 1:
        raise Unsupported("a sum with a factor")
    one, other = lowering.value(node.args[0]), lowering.value(node.args[1])
    alike = (one in lowering.vectors) == (other in lowering.vectors)
    if lowering.shapes[one] != lowering.shapes[other] or not alike:
        raise Unsupported("a sum that broadcasts")
    lowering.nodes.append(Add(node.name, one, other, node.name))


def _multiply(lowering: _Lowering, node: fx.Node) -> None:
    one, other = lowering.value(node.args[0]), lowering.value(node.args[1])
    a, b = lowering.shapes[one], lowering.shapes[other]
    if a[2:] == (1, 1) and b[2:] != (1, 1):
        one, other, a, b = other, one, b, a
    alike = (one in lowering.vectors) == (other in lowering.vectors)
    if a[:2] != b[:2] or b[2:] != (1, 1) or not alike:
        raise Unsupported("a product that is no scaling of channels")
    lowering.nodes.append(Scale(node.name, one, other, node.name))


def _mean(lowering: _Lowering, node: fx.Node) -> None:
    given = _arguments(node, ("input", "dim", "keepdim"), {"keepdim": False})
    source = lowering.value(given["input"])
    if source in lowering.vectors or sorted(d % 4 for d in given["dim"] or ()) != [2, 3]:
        raise Unsupported("a mean over other dimensions than height and width")
    lowering.nodes.append(Mean(node.name, source, node.name))


def _adaptive_average(lowering: _Lowering, node: fx.Node) -> None:
    if _pair(node.args[1]) != (1, 1):
        raise Unsupported("adaptive pooling to more than one pixel")
    lowering.nodes.append(Mean(node.name, lowering.value(node.args[0]), node.name))


def _pool(maximum: bool) -> Callable[[_Lowering, fx.Node], None]:
    tail = ("dilation", "ceil_mode") if maximum else ("ceil_mode", "count_include_pad", "divisor_override")

    def handler(lowering: _Lowering, node: fx.Node) -> None:
        defaults = {"stride": (), "padding": 0, "dilation": 1, "count_include_pad": True, "divisor_override": None}
        given = _arguments(node, ("input", "kernel_size", "stride", "padding", *tail), defaults)
        if given["divisor_override"] is not None:
            raise Unsupported("average pooling with a divisor of its own")
        kernel = _pair(given["kernel_size"])
        stride = _pair(given["stride"]) if given["stride"] not in ((), [], None) else kernel
        window = Window(kernel, stride, _pair(given["padding"]), _pair(given["dilation"]))
        source = lowering.value(given["input"])
        lowering.nodes.append(Pool(node.name, source, node.name, window, maximum, bool(given["count_include_pad"])))

    return handler


def _slice(lowering: _Lowering, node: fx.Node) -> None:
    given = _arguments(node, ("input", "dim", "start", "end", "step"), {"dim": 0, "start": 0, "end": None, "step": 1})
    source = lowering.value(given["input"])
    if source in lowering.vectors:
        raise Unsupported("a part of a vector")
    dimension, size = given["dim"] % 4, lowering.shapes[source][given["dim"] % 4]
    whole = given["start"] in (0, None) and (given["end"] is None or given["end"] >= size)
    if dimension < 2 or not whole:
        raise Unsupported("a part of a tensor")
    stride = (given["step"], 1) if dimension == 2 else (1, given["step"])
    lowering.nodes.append(Copy(node.name, source, node.name, stride))


def _pad(lowering: _Lowering, node: fx.Node) -> None:
    given = _arguments(node, ("input", "pad", "mode", "value"), {"mode": "constant", "value": 0})
    source, amounts = lowering.value(given["input"]), [*given["pad"], 0, 0, 0, 0, 0, 0][:6]
    of_images = source not in lowering.vectors and not any(given["pad"][6:])
    if not of_images or given["mode"] != "constant" or given["value"] or min(amounts) < 0:
        raise Unsupported("padding with something else than zeros around images")
    left, _, top, _, before, _ = amounts
    if not any(amounts[:4]):
        lowering.nodes.append(Copy(node.name, source, node.name, before=before))
    elif not any(amounts[4:]) and all(_looks_around(user, node, lowering.constants) for user in node.users):
        # Kernels take what lies outside of an image as zeros, wherever their windows begin and end.
        call = lowering.torch_call(node, "its reader runs in PyTorch")
        lowering.padded[node.name] = source, (top, left), call
    else:
        raise Unsupported("padding of pixels that not only convolutions read")


def _looks_around(user: fx.Node, node: fx.Node, constants: Mapping[str, Any]) -> bool:
    """Whether ``user`` is a convolution of ``node`` by a kernel of more than one pixel."""
    weight = constants.get(getattr(user.args[1], "name", "")) if user.target is aten.conv2d.default else None
    return weight is not None and user.args[0] is node and tuple(weight.shape[2:]) != (1, 1)


def _reshaped(lowering: _Lowering, node: fx.Node) -> None:
    """Flattening images of one pixel, and the way back, change nothing in memory."""
    source = lowering.value(node.args[0])
    n, c, h, w = lowering.shapes[source]
    if (h, w) != (1, 1) or lowering.shapes[node.name] != (n, c, 1, 1):
        raise Unsupported("a change of shape")
    lowering.nodes.append(Copy(node.name, source, node.name))


def _dropout(lowering: _Lowering, node: fx.Node) -> None:
    if node.args[2]:
        raise Unsupported("dropout that drops in evaluation mode, too")
    _same(lowering, node)


def _same(lowering: _Lowering, node: fx.Node) -> None:
    lowering.nodes.append(Copy(node.name, lowering.value(node.args[0]), node.name))


Handler = Callable[[_Lowering, fx.Node], None]
_K = ActivationKind
HANDLERS: dict[Any, Handler] = {
    aten.conv2d.default: _convolution,
    aten.conv2d.padding: _convolution,
    aten.batch_norm.default: _batch_norm,
    aten.linear.default: _linear,
    aten.add.Tensor: _add,
    aten.add_.Tensor: _add,
    aten.mul.Tensor: _multiply,
    aten.mul_.Tensor: _multiply,
    aten.mean.dim: _mean,
    aten.adaptive_avg_pool2d.default: _adaptive_average,
    aten.max_pool2d.default: _pool(True),
    aten.avg_pool2d.default: _pool(False),
    aten.slice.Tensor: _slice,
    aten.pad.default: _pad,
    aten.flatten.using_ints: _reshaped,
    aten.view.default: _reshaped,
    aten.reshape.default: _reshaped,
    aten.squeeze.dims: _reshaped,
    aten.unsqueeze.default: _reshaped,
    aten.dropout.default: _dropout,
    aten.dropout_.default: _dropout,
    aten.feature_dropout.default: _dropout,
    aten.feature_dropout_.default: _dropout,
    aten.clone.default: _same,
    aten.contiguous.default: _same,
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
}.items():
    for _form in (_packet, f"{_packet}_"):
        if hasattr(aten, _form):
            HANDLERS[getattr(aten, _form).default] = _activation(_make)


# What may stand between the halves of a separable convolution without mixing channels.
_CHANNELWISE = {target for target, handler in HANDLERS.items() if handler in (_batch_norm, _same, _dropout)} | {
    target for target, handler in HANDLERS.items() if getattr(handler, "__name__", "") == "activation_handler"
}
