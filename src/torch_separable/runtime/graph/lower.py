"""Lower a network to a `Program`: ``torch.export`` captures its operators, the handlers turn them into typed nodes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from threading import RLock
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from torch_separable.errors import SeparableError
from torch_separable.runtime.graph.arrangement import LAYOUTS, Arrangement, stored_shape
from torch_separable.runtime.graph.channel_blocks import find_channel_blocks
from torch_separable.runtime.graph.handlers import HANDLERS, RECORD_OWN_SHAPE
from torch_separable.runtime.graph.ir import (
    Copy,
    Node,
    Pair,
    Program,
    Rearrange,
    Reference,
    Rename,
    Shape,
    TorchCall,
    inputs_of,
)
from torch_separable.runtime.graph.lower_common import Unsupported
from torch_separable.runtime.graph.memory_sharing import (
    are_pieces_of_one_split,
    memory_roots,
    returned_arguments,
    writes_to_its_inputs,
)
from torch_separable.runtime.graph.quantize_operators import (
    fold_constants,
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
            warnings.simplefilter("ignore")  # torch.export's internal deprecation warnings
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
        # PyTorch cannot read channel blocks. Lower again without them where a fallback reads or writes such a value.
        seen = {name for call in calls for name in (call.output, *inputs_of(call))} & program.blocks.keys()
        if not seen:
            return program
        plain |= seen


class Lowering:
    """The state of one lowering of a graph; the values in ``plain`` are not stored in channel blocks."""

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
        self.blocks = find_channel_blocks(self.graph, constants, plain)
        self.nodes: list[Node] = []
        self.shapes: dict[str, Shape] = {}
        self.vectors: set[str] = set()
        # Zero-padded images that only convolutions read: the unpadded value, the padding (top, left), and the PyTorch
        # call that pads, for a reader that turns out to be a fallback.
        self.padded: dict[str, tuple[str, Pair, TorchCall]] = {}
        # The current name of each value that an in-place operator has changed.
        self.names: dict[str, str] = {}
        # Layout in which the network sees each value, one of `arrangement.LAYOUTS`.
        self.layouts: dict[str, str] = {}
        self.views: dict[str, Arrangement] = {}  # values that are views of a stored value
        self.pieces: dict[str, list[tuple[fx.Node, int, int]]] = {}  # by split: (source, dimension, start) of each part
        self.unbound: set[str] = set()  # of `pieces`, those whose parts lack the dimension
        self.materialized: dict[tuple[str, str], str] = {}
        self.roots = memory_roots(self.graph)
        self.returned_arguments = returned_arguments(self.exported.graph_module, self.roots)

    def program(self) -> Program:
        """Lower the whole graph."""
        if len(self.inputs) != 1:
            raise SeparableError(
                f"the network takes {len(self.inputs)} tensors, and compile needs one: use "
                "torch_separable.runtime.compile_submodules"
            )
        for node in self.graph.nodes:
            if node.op == "placeholder":
                if node.name not in self.constants:
                    self.see(node.name, node.meta["val"])
            elif node.op == "get_attr":  # the subgraph of a higher-order operator, such as an autocast block
                called = getattr(self.exported.graph_module, node.target)
                if writes_to_its_inputs(called):
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
        """Lower one operator by its handler, or to a `TorchCall` where that raises `Unsupported`."""
        handler = HANDLERS.get(node.target)
        try:
            if handler is None:
                raise Unsupported("no kernel for this operator")
            if node.target not in RECORD_OWN_SHAPE:
                self.see(node.name, node.meta["val"])
            handler(self, node)
        except Unsupported as reason:
            self.forget(node.name)
            for source in node.all_input_nodes:
                if (padded := self.padded.pop(source.name, None)) is not None:
                    self.nodes.append(padded[2])
            call = self.torch_call(node, str(reason))
            with suppress(Unsupported):  # kernels cannot read the result; only PyTorch will
                self.see(node.name, node.meta["val"])
            self.nodes.append(replace(call, layout=self.layouts.get(node.name, "")))
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            self.rebind(node, node.target)

    def rebind(self, node: fx.Node, target: torch._ops.OpOverload) -> None:
        """Let later reads of what an in-place operator changes refer to its result.

        Raises:
            SeparableError: another view of the same memory is read later.
        """
        changed = node.args[0] if node.args else None
        in_place = target.overloadpacket.__name__.endswith("_") and "out" not in node.kwargs
        if not in_place or not isinstance(changed, fx.Node) or self.roots[changed].name in self.constants:
            raise SeparableError(f"the network writes into a tensor by {node.target}, which cannot be compiled")
        if self.roots[changed] in self.returned_arguments:
            raise SeparableError(
                f"the network changes {changed.name} in place by {node.target}, which a block (as of torch.autocast) "
                "has taken and returned: that cannot be compiled. Leave inplace=True, or the underscore, out"
            )
        current = self.names.get(changed.name, changed.name)
        nodes = list(self.graph.nodes)
        before, after = nodes[: nodes.index(node)], nodes[nodes.index(node) + 1 :]
        for other in before:
            shares = self.roots[other] is self.roots[changed] and self.names.get(other.name, other.name) != current
            if shares and not are_pieces_of_one_split(other, changed) and not other.users.keys().isdisjoint(after):
                raise SeparableError(
                    f"the network changes {changed.name} in place by {node.target}, and then reads {other.name}, "
                    "which shares its memory: that cannot be compiled. Leave inplace=True, or the underscore, out"
                )
        for key, value in [*self.names.items(), (changed.name, changed.name)]:
            if value == current:
                self.names[key] = node.name
        self.names[changed.name] = node.name

    def see(self, name: str, value: Any) -> None:
        """Record shape and layout of a value that kernels can read; raise `Unsupported` for any other."""
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
        """Record a value's stored shape (N, C, H, W) and the layout in which the network sees it."""
        n, c, h, w = (int(size) for size in shape)
        self.shapes[name] = (n, c, h, w)
        self.layouts[name] = layout
        if layout == "NC":
            self.vectors.add(name)

    def forget(self, name: str) -> None:
        """Discard what a handler recorded before it raised `Unsupported`."""
        self.shapes.pop(name, None)
        self.vectors.discard(name)
        self.layouts.pop(name, None)

    def add_view(self, node: fx.Node, seen: Arrangement) -> None:
        """Record a node as a view of a stored value; no elements move yet."""
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
        seen = self.arrangement(node)
        if seen.source == self.names.get(node.name, node.name) and self.layouts[seen.source] == layout:
            return seen.source
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
            self.nodes.append(
                Copy(value, seen.source, value)
            )  # fuse.py drops it: (N, C) and (N, C, 1, 1) differ for PyTorch only
        elif renamed:
            self.nodes.append(Rename(value, seen.source, value))
        else:
            self.nodes.append(Rearrange(value, seen.source, value, seen.sizes, seen.storage, seen.target(layout)))
        self.materialized[name, layout] = value
        return value

    def as_one_row(self, name: str) -> str:
        """Name of a value (N, C, 1, H · W): its pixels as one row of tokens."""
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
        """Compute an operator of weights alone, as in weight standardization; return whether it is one."""
        inputs = node.all_input_nodes
        target = node.target
        if not inputs or not all(isinstance(self.constants.get(source.name), Tensor) for source in inputs):
            return False
        if not isinstance(target, torch._ops.OpOverload):
            return False
        # Computed constants may be changed in place; the network's own weights may not.
        if target._schema.is_mutable and any(self.roots[source].op == "placeholder" for source in inputs):
            return False
        if torch.Tag.nondeterministic_seeded in target.tags or not isinstance(node.meta.get("val"), Tensor):
            return False

        def argument(value: Any) -> Any:
            return self.constants[value.name] if isinstance(value, fx.Node) else value

        args, kwargs = tree_map(argument, node.args), tree_map(argument, node.kwargs)
        with torch.no_grad():
            self.constants[node.name] = target(*args, **kwargs)
        return True

    def reference(self, node: fx.Node) -> Reference:
        """Refer to a node's tensor in the layout in which PyTorch reads it or the network returns it."""
        name = self.names.get(node.name, node.name)
        if name in self.views:
            try:
                value, layout = self.operand(node)
            except Unsupported as reason:
                self.views.pop(name)  # no stored layout: PyTorch computes the view
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
        """Make a `TorchCall` of an operator."""

        def argument(value: Any) -> Any:
            if not isinstance(value, fx.Node):
                return value
            constant = self.constants.get(value.name)
            return self.reference(value) if constant is None else constant

        args = tuple(tree_map(argument, a) for a in node.args)
        kwargs = {key: tree_map(argument, value) for key, value in node.kwargs.items()}
        function: Any = node.target
        return TorchCall(node.name, node.name, _COPYING.get(function, function), args, kwargs, reason)


def _layer(node: fx.Node) -> str:
    """Name of the innermost module that a node comes from."""
    stack = node.meta.get("nn_module_stack") or {}
    path: str = next(reversed(stack.values()), ("",))[0]
    return path.removeprefix("L['self'].")


# ``view`` needs contiguous memory. As a fallback it may get a tensor of any strides, so it becomes ``reshape``.
_COPYING = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}
