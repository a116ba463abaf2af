"""Which values of a captured graph may share memory, and which operators write into it."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


# In evaluation mode these return their argument itself, which their schemas do not state.
_RETURN_THEIR_ARGUMENT = (operator.getitem, aten.dropout.default, aten.feature_dropout.default)


def memory_roots(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Map each value to the value whose memory it may share: the base of a view or of an in-place result, or itself."""
    roots: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        returns = node.target._schema.returns if isinstance(node.target, torch._ops.OpOverload) else ()
        shares = any(each.alias_info for each in returns) or node.target in _RETURN_THEIR_ARGUMENT
        source = node.args[0] if shares and node.args else None
        roots[node] = roots[source] if isinstance(source, fx.Node) else node
    return roots


def writes_to_its_inputs(called: Any) -> bool:
    """Return whether the graph that a higher-order operator calls writes into its arguments."""
    if not isinstance(called, fx.GraphModule):
        return False
    roots = memory_roots(called.graph)
    for node in called.graph.nodes:
        if node.op == "get_attr" and writes_to_its_inputs(getattr(called, node.target)):
            return True
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            given = [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, fx.Node)]
            if any(roots[value].op == "placeholder" for value in given):
                return True
    return False


def returned_arguments(module: fx.GraphModule, roots: Mapping[fx.Node, fx.Node]) -> set[fx.Node]:
    """Find the memory roots of arguments that higher-order operators return, and those operators themselves."""
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        modules = [arg for arg in node.args if isinstance(arg, fx.Node) and arg.op == "get_attr"]
        called = [getattr(module, str(arg.target)) for arg in modules]
        for graph in (each.graph for each in called if isinstance(each, fx.GraphModule)):
            within, given = memory_roots(graph), graph.find_nodes(op="placeholder")
            operands = dict(zip(reversed(given), reversed(tree_leaves(list(node.args))), strict=False))
            returned = {operands.get(within[value]) for value in graph.output_node().all_input_nodes}
            if again := {roots[value] for value in returned if isinstance(value, fx.Node)}:
                found |= {node, *again}
    return found


# Views that need memory in their order: as calls of PyTorch they take values of any strides.


def are_pieces_of_one_split(one: fx.Node, other: fx.Node) -> bool:
    """Return whether both values are outputs of one split, such as ``chunk``."""
    return one.target is operator.getitem and other.target is operator.getitem and one.args[0] is other.args[0]
