"""How much the network's outputs change when one layer alone, dense or factorised, computes in int8 or bfloat16.

The change is that between two networks: one whose layer has this form in float32, and one whose layer has it rounded.
It is measured on images that nothing was fitted to, with everything else in float32. Errors of different layers, and
of factorisation and rounding within a layer, are independent, so they are added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from torch_separable.conversion.planning.options import Choice
from torch_separable.conversion.solvers.factorize import Order
from torch_separable.mixed_precision.layers import PlannedLayer, input_of
from torch_separable.quantization.module import insert_operators
from torch_separable.quantization.quantization import captured
from torch_separable.quantization.roles import Roles, assign_roles
from torch_separable.quantization.sensitivity import Form, Replay, int8_form, probe
from torch_separable.quantization.stream import quantize_stream

_PROBED_RANK = 2  # of each order: what rounding adds hardly depends on the rank


@dataclass(frozen=True)
class RoundingNoise:
    """Mean squared changes of the outputs by rounding one layer, relative to their variance.

    Attributes:
        int8: by the order of the factors; ``None`` is the dense layer.
        bf16: of the dense layer.
    """

    int8: dict[Order | None, float]
    bf16: float


def measure_noise(
    graph: fx.GraphModule,
    roles: Roles,
    layers: Sequence[PlannedLayer],
    batches: Sequence[Tensor],
    held_out: Sequence[Tensor],
    advance: Callable[[str], None],
) -> dict[str, RoundingNoise]:
    """Measure the noise of each layer, by its name.

    Args:
        graph: captured network without quantize operators.
        roles: of its operators.
        layers: from `planned_layers`.
        batches: images (N, C, H, W) that ranges and weights are fitted to.
        held_out: images that changes are measured on.
        advance: called after each layer with its name.
    """
    with torch.no_grad():
        fitting = [Replay(graph, batch) for batch in probe(batches)]
        exact = {node: [run.values[node] for run in fitting] for node in graph.graph.nodes if node.op != "output"}
        runs = [Replay(graph, batch) for batch in probe(held_out)]
        reference = torch.cat([run.outputs() for run in runs])
        found = {}
        for layer in layers:
            nodes = [node for node in layer.nodes if node in roles.layers]
            inputs = {node: exact[input_of(node)] for node in nodes}
            int8: dict[Order | None, float] = {}
            rounded = {node: int8_form(node, exact, input_of(node)) for node in nodes}
            int8[None] = _noise(runs, reference, {}, rounded)
            for order in dict.fromkeys(order for order, _ in layer.choices):
                rank = min(_PROBED_RANK, max(rank for o, rank in layer.choices if o == order))
                module = layer.form((order, rank))
                factorised = {node: _quantized(module, inputs[node]) for node in nodes}
                int8[order] = _noise(runs, reference, dict.fromkeys(nodes, module), factorised)
            bf16 = _noise(runs, reference, {}, dict.fromkeys(nodes, _bfloat16(layer.module)))
            found[layer.name] = RoundingNoise(int8, bf16)
            advance(layer.name)
    return found


def noise_of(noise: RoundingNoise, choice: Choice | None, precision: str) -> float:
    """Look up what a form of a layer loses by a precision.

    Example:
        >>> noise = RoundingNoise({None: 0.1, "depthwise_first": 0.2}, 0.01)
        >>> noise_of(noise, None, "int8"), noise_of(noise, ("depthwise_first", 3), "int8"), noise_of(noise, None, "f32")
        (0.1, 0.2, 0.0)
    """
    if precision == "int8":
        return noise.int8[None if choice is None else choice[0]]
    return noise.bf16 if precision == "bf16" else 0.0


def _noise(
    runs: Sequence[Replay], reference: Tensor, plain: dict[fx.Node, Form], rounded: dict[fx.Node, Form]
) -> float:
    before = torch.cat([run.outputs(plain) for run in runs]) if plain else reference
    after = torch.cat([run.outputs(rounded) for run in runs])
    spread = reference.var(0, unbiased=False) if len(reference) > 1 else reference.square()
    return float((after - before).square().mean() / spread.mean().clamp_min(1e-30))


def _quantized(module: nn.Module, inputs: Sequence[Tensor]) -> Form:
    """Quantize a layer for its inputs as `quantize` would; return its simulation in float32."""
    graph = captured(module, inputs[0].shape[1:])
    found = quantize_stream(graph, assign_roles(graph.graph), inputs, lambda _: None)
    insert_operators(graph, found.values, found.layers)
    return graph


def _bfloat16(module: nn.Module) -> Form:
    """The layer on bfloat16 values; as in the kernels, sums are float32."""
    rounded = type(module).__new__(type(module))
    rounded.__dict__.update({**module.__dict__, "_parameters": dict(module._parameters)})
    weight = module.weight
    assert isinstance(weight, Tensor)
    rounded.weight = nn.Parameter(weight.bfloat16().float(), requires_grad=False)
    return lambda x: rounded(x.bfloat16().float()).bfloat16().float()
