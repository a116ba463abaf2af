"""Channels between the two convolutions of a separable layer, stored in blocks where its multiplier exceeds 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from torch_separable.runtime.graph.handlers import CHANNELWISE
from torch_separable.runtime.graph.lower_common import CONVOLUTION_ARGUMENTS, CONVOLUTION_DEFAULTS, arguments, pair
from torch_separable.runtime.graph.quantize_operators import is_channelwise

aten = torch.ops.aten


def find_channel_blocks(graph: fx.Graph, constants: Mapping[str, Any], plain: frozenset[str]) -> dict[str, int]:
    """Find the values between the two convolutions of a separable layer whose depth multiplier D is above 1.

    PyTorch interleaves their channels (c · D + d); the kernels store D blocks of C channels (d · C + c). Only the two
    convolutions, and a batch norm and activations between them, read these channels, so lowering reorders their weights
    and the results are the same. With one channel on the other side the depthwise convolution is a dense one.

    Args:
        graph: the captured graph.
        constants: weights by node name.
        plain: values that PyTorch reads, which must keep PyTorch's order.

    Returns:
        The multiplier D of each value that is stored in D blocks, by name.
    """
    found: dict[str, int] = {}
    for node in graph.nodes:
        if node.target is not aten.conv2d.default:
            continue
        chain = [node]
        while len(chain[-1].users) == 1:
            follower = next(iter(chain[-1].users))
            passes = follower.target in CHANNELWISE or is_channelwise(follower.target)
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
    given = arguments(conv, CONVOLUTION_ARGUMENTS, CONVOLUTION_DEFAULTS)
    shape = constants[given["weight"].name].shape[2:]
    return tuple(shape) == (1, 1) and pair(given["stride"]) == (1, 1) and pair(given["padding"]) == (0, 0)
