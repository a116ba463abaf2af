"""Quantization of a trained network in one call, and its report."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from torch_separable._console.notebook import table
from torch_separable._console.progress import progress_bar
from torch_separable._network.checks import as_network, require_float32
from torch_separable._network.outputs import predictions
from torch_separable._network.weights import check_weights
from torch_separable.conversion import Conversion
from torch_separable.conversion.calibration.images import Images, hold_out, split_batches
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.exporting.capture import capture, prepared_for_logits
from torch_separable.quantization.equalize import equalize
from torch_separable.quantization.module import QuantizedNetwork, insert_operators
from torch_separable.quantization.roles import Role, assign_roles, layer_name, role_of
from torch_separable.quantization.sensitivity import (
    Sensitivity,
    choose_float_layers,
    measure_sensitivities,
    relative_change,
)
from torch_separable.quantization.stream import quantize_stream


@dataclass(frozen=True)
class LayerReport:
    """One quantized layer.

    Attributes:
        name: of the module.
        error: mean squared error of its outputs that rounding its weights makes, relative to the outputs' own.
        sensitivity: mean squared change of the network's outputs with this layer alone in int8, relative to their
            variance; ``None`` where it was not measured.
    """

    name: str
    error: float
    sensitivity: float | None = None


@dataclass(frozen=True)
class QuantizationReport:
    """How a quantized network compares with the float one on images that nothing was fitted to.

    Attributes:
        layers: the quantized layers in the order of execution.
        kept: layers that stay in float32, and why.
        values: number of activations that are uint8.
        equalized: number of activations whose channels were equalized.
        output_error: mean squared change of the outputs, relative to their variance.
        agreement: share of the held-out images with the same predicted class.
        held_out_images: number of images that both were measured on.
        bytes: of all weights: before and after.
        sensitive: layers that stay in float32 by ``float_macs``, with what int8 and float32 would cost.
    """

    layers: tuple[LayerReport, ...]
    kept: dict[str, str]
    values: int
    equalized: int
    output_error: float
    agreement: float
    held_out_images: int
    bytes: tuple[int, int]
    sensitive: dict[str, Sensitivity] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(f"{name:12}{text}" for name, text in self._rows())

    def _repr_html_(self) -> str:
        return table((), self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        before, after = self.bytes
        return [
            ("layers", f"{len(self.layers)} in int8, {len(self.kept)} in float32"),
            *(("float32", f"{name}: {self.kept[name]}") for name in self.sensitive),
            ("weights", f"{before:,} -> {after:,} bytes ({before / after:.2f}x fewer)"),
            ("outputs", f"changed by {100 * self.output_error:.3g} % of their variance"),
            ("predictions", f"the same for {100 * self.agreement:.1f} % of {self.held_out_images} held-out images"),
        ]


@dataclass(frozen=True)
class Quantized:
    """A quantized network, and the report on how well it agrees with the float one."""

    model: QuantizedNetwork
    report: QuantizationReport

    def __str__(self) -> str:
        return str(self.report)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def quantize(
    model: nn.Module | Conversion,
    images: Images,
    *,
    exclude: Sequence[str] = (),
    float_macs: float = 0.0,
    progress: bool = False,
) -> Quantized:
    """Quantize a trained network to int8 weights and uint8 activations, without training.

    Batch norms are folded. Ranges of activations are chosen by least squared error, channels around depthwise layers
    are equalized, and weights are rounded so that the layer's outputs change least (GPTQ), each layer on the inputs
    that it has in the quantized network. ``model`` is not changed.

    Args:
        model: the trained network, dense or converted, or the result of `convert`.
        images: 128 to 1,024 unlabelled images, prepared as in training: a tensor (N, C, H, W) or batches of them. A
            quarter is held out for the report.
        exclude: layers to leave in float32: their names, or names of modules that contain them.
        float_macs: share of the other layers' multiply-accumulates that may stay in float32, at least 0 and below 1.
            Every layer's effect on the network's outputs is measured, and the layers are chosen so that the sum of the
            effects is least (an exact knapsack). 0 quantizes all of them.
        progress: whether to show a progress bar on a terminal.

    Returns:
        An object with ``.model``, whose calls compute what int8 kernels compute, bit for bit, and ``.report``.

    Raises:
        SeparableError: the network cannot be captured or has no layer to quantize, there are fewer than 8 images or
            they are all equal, or the images, the weights or (naming the layer) an activation contain NaN or infinity.
        SeparableValueError: ``exclude`` matches no layer, ``float_macs`` is out of range, the images are not tensors
            (N, C, H, W).

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 10), nn.Flatten())
        >>> quantized = quantize(net, torch.randn(32, 3, 12, 12))
        >>> [layer.name for layer in quantized.report.layers]
        ['0', '2']
        >>> quantized.model(torch.randn(2, 3, 12, 12)).shape
        torch.Size([2, 4])
    """
    if isinstance(float_macs, bool) or not isinstance(float_macs, int | float) or not 0 <= float_macs < 1:
        raise SeparableValueError(f"float_macs={float_macs!r}: must be a number of at least 0 and below 1")
    network = as_network(model.model if isinstance(model, Conversion) else model)
    require_float32(network, "model", "quantize")
    split = hold_out(_image_batches(images))
    batches, held_out = ([batch for batch in part if isinstance(batch, Tensor)] for part in split)
    if not held_out:
        raise SeparableValueError("images: at least 4 are needed, of which one is held out for the report")
    check_weights(network)
    shape = tuple(batches[0].shape[1:])
    graph = captured(network, shape)
    roles = assign_roles(graph.graph, _excluded(graph.graph, exclude))
    if not roles.layers:
        raise SeparableError(f"{type(network).__name__} has no convolution or linear layer to quantize")
    before = sum(tensor.nbytes for tensor in graph.state_dict().values())
    exact = _outputs(graph, held_out)
    equalized = equalize(graph, roles, batches)
    measured: dict[str, Sensitivity] = {}
    sensitive: tuple[str, ...] = ()
    excluded = {layer_name(node): "excluded" for node in roles.excluded}
    if float_macs:
        with progress_bar("measuring layers", len(roles.layers), shown=progress) as advance:
            measured = measure_sensitivities(graph, roles, batches, held_out, advance)
        sensitive = choose_float_layers(measured, float_macs)
        roles = assign_roles(graph.graph, {*excluded, *sensitive})
    with progress_bar("quantizing", len(roles.layers), shown=progress) as advance:
        found = quantize_stream(graph, roles, batches, advance)
    insert_operators(graph, found.values, found.layers)
    quantized = QuantizedNetwork(graph, shape)
    change, agreement = _compare(exact, _outputs(quantized, held_out))
    report = QuantizationReport(
        layers=tuple(
            LayerReport(layer_name(node), layer.error, _change_of(measured, node))
            for node, layer in found.layers.items()
        ),
        kept={**excluded, **{name: _reason(measured, name) for name in sensitive}},
        values=len(found.values),
        equalized=equalized,
        output_error=change,
        agreement=agreement,
        held_out_images=sum(map(len, held_out)),
        bytes=(before, sum(tensor.nbytes for tensor in graph.state_dict().values())),
        sensitive={name: measured[name] for name in sensitive},
    )
    return Quantized(quantized, report)


def _change_of(measured: Mapping[str, Sensitivity], node: fx.Node) -> float | None:
    found = measured.get(layer_name(node))
    return None if found is None else found.change


def _reason(measured: Mapping[str, Sensitivity], name: str) -> str:
    share = measured[name].macs / sum(each.macs for each in measured.values())
    return (
        f"in int8 it would change the outputs by {100 * measured[name].change:.2g} % of their variance; "
        f"it has {100 * share:.2g} % of the MACs"
    )


def captured(network: nn.Module, shape: Sequence[int]) -> fx.GraphModule:
    """Capture a network for batches of any size, batch norms folded and without operators in place.

    Raises:
        SeparableError: ``torch.export`` cannot capture it.
    """
    exported = capture(prepared_for_logits(network, shape, None), shape, None)
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        mutable = (getattr(node.target, "_schema", None) for node in exported.graph.nodes)
        if any(schema is not None and schema.is_mutable for schema in mutable):
            exported = exported.run_decompositions({})
        graph = exported.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    return graph


def layer_names(network: nn.Module, shape: Sequence[int]) -> tuple[str, ...]:
    """Return the names of the layers that `quantize` can quantize, in order of execution.

    Example:
        >>> layer_names(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)), (3, 3, 3))
        ('0', '3')
    """
    graph = captured(network, shape).graph
    return tuple(dict.fromkeys(layer_name(node) for node in graph.nodes if role_of(node) is Role.LAYER))


def _image_batches(images: Images) -> list[Tensor]:
    batches: list[Tensor] = []
    for batch in split_batches(images):
        if not isinstance(batch, Tensor) or batch.dim() != 4:
            raise SeparableValueError("images must be tensors (N, C, H, W): quantize takes networks of one input")
        if batches and batch.shape[1:] != batches[0].shape[1:]:
            raise SeparableValueError(
                f"images of shape {tuple(batch.shape[1:])} and {tuple(batches[0].shape[1:])}: give images of one shape"
            )
        batches.append(batch.detach().cpu().float())
    return batches


def _excluded(graph: fx.Graph, exclude: Sequence[str]) -> set[str]:
    """Names of the layers that ``exclude`` means."""
    names = [layer_name(node) for node in graph.nodes if role_of(node) is Role.LAYER]
    found: set[str] = set()
    for pattern in [exclude] if isinstance(exclude, str) else exclude:
        matching = {name for name in names if name == pattern or name.startswith(f"{pattern}.")}
        if not matching:
            raise SeparableValueError(f"exclude names {pattern!r}, which is no layer. Layers: {', '.join(names[:8])}")
        found |= matching
    return found


def _outputs(network: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    """Every tensor that a network returns, for all batches, (N, ...) each."""
    with torch.no_grad():
        returned = [tree_leaves(network(batch)) for batch in batches]
    return [torch.cat(parts) for parts in zip(*returned, strict=True)]


def _compare(exact: Sequence[Tensor], rounded: Sequence[Tensor]) -> tuple[float, float]:
    """The mean squared change of all outputs relative to their variance, and the agreement of the first one."""
    before, after = (torch.cat([tensor.flatten(1) for tensor in outputs], 1) for outputs in (exact, rounded))
    change = relative_change([(before, after)])
    if not math.isfinite(change):
        raise SeparableError("the network's outputs are NaN or infinite on the held-out images")
    return change, float((predictions(rounded[0]) == predictions(exact[0])).float().mean())
