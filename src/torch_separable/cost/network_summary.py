"""Count the cost of a network, layer by layer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from torch_separable.cost.formulas import ConvSpec
from torch_separable.cost.inputs import Inputs, make_inputs
from torch_separable.cost.render import Column, as_columns, render_csv, render_html, render_text
from torch_separable.cost.storage import packed_parameters, stored_bytes
from torch_separable.cost.trace import Trace, execute
from torch_separable.errors import SeparableError, SeparableValueError


@dataclass(frozen=True)
class LayerCost:
    """One row of a summary: a module and the operators that its own forward calls.

    At the depth limit, a row includes the module's descendants.

    Attributes:
        name: the module's name; empty for the network itself.
        type: its class.
        depth: number of modules that contain it.
        calls: number of times it ran.
        kernel: kernel size of its convolution, if it executes one.
        stride: the convolution's stride.
        groups: the convolution's groups.
        output_shape: shape of its first output, with the batch dimension.
        parameters: number of its own parameters; a shared parameter counts in the first module that has it.
        trainable: number of its own parameters with ``requires_grad``.
        macs: multiply-accumulates of its own operators, over all calls. A complex one counts as four real ones;
            a complex convolution counts the three real convolutions that PyTorch computes.
        bytes: operands and results of its own operators, each moved once.
        dense: formula of the dense convolution that it replaces; empty if there is none.
        dense_macs: that convolution's multiply-accumulates.
        saving: ``dense_macs`` divided by the MACs of the module and its descendants; ``None`` without ``dense``.
        formula: number of its weights as a formula.
    """

    name: str
    type: str
    depth: int
    calls: int = 0
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups: int = 0
    output_shape: tuple[int, ...] = ()
    parameters: int = 0
    trainable: int = 0
    macs: int = 0
    bytes: int = 0
    dense: str = ""
    dense_macs: int = 0
    saving: float | None = None
    formula: str = ""

    @property
    def flops(self) -> int:
        """Floating-point operations, two for each multiply-accumulate."""
        return 2 * self.macs

    @property
    def intensity(self) -> float:
        """Arithmetic intensity, in FLOPs per byte moved."""
        return self.flops / self.bytes if self.bytes else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        row = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {**row, "flops": self.flops, "intensity": self.intensity}


@dataclass(frozen=True)
class Summary:
    """The cost of a network: one row per module, and totals, which are the sums of the rows.

    ``str`` renders the table, a notebook shows it as HTML, and ``to_dict``, ``to_json`` and ``to_csv`` return the
    numbers.

    Attributes:
        network: the network's class.
        input_shapes: shapes of the input tensors, with the batch dimension.
        layers: rows in the order of ``model.named_modules()``.
        weight_bytes: bytes of parameters and buffers; a tensor subclass counts with the tensors that it stores.
        input_bytes: bytes of the input tensors.
        uncounted: operators without a counting rule, with the number of their calls; the totals do not include them.
        uncalled: modules with parameters that never ran, and whose parameters no operator read.
        columns: columns that ``str`` shows; ``None`` for as many as fit.
    """

    network: str
    input_shapes: tuple[tuple[int, ...], ...]
    layers: tuple[LayerCost, ...]
    weight_bytes: int
    input_bytes: int
    uncounted: Mapping[str, int]
    uncalled: tuple[str, ...]
    columns: tuple[Column, ...] | None = None

    @property
    def parameters(self) -> int:
        """All parameters, each counted once."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def trainable(self) -> int:
        """Parameters with ``requires_grad``."""
        return sum(layer.trainable for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for the given input."""
        return sum(layer.macs for layer in self.layers)

    @property
    def flops(self) -> int:
        """Floating-point operations, two for each multiply-accumulate."""
        return 2 * self.macs

    @property
    def bytes(self) -> int:
        """Operands and results of all operators, each moved once."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def intensity(self) -> float:
        """Arithmetic intensity of the network, in FLOPs per byte moved."""
        return self.flops / self.bytes if self.bytes else 0.0

    def __str__(self) -> str:
        return render_text(self)

    def _repr_html_(self) -> str:
        return render_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: totals and rows."""
        return {
            "network": self.network,
            "input_shapes": [list(shape) for shape in self.input_shapes],
            "parameters": self.parameters,
            "trainable": self.trainable,
            "macs": self.macs,
            "flops": self.flops,
            "bytes": self.bytes,
            "intensity": self.intensity,
            "weight_bytes": self.weight_bytes,
            "input_bytes": self.input_bytes,
            "uncounted": dict(self.uncounted),
            "uncalled": list(self.uncalled),
            "layers": [layer.to_dict() for layer in self.layers],
        }

    def to_json(self, indent: int | None = 2) -> str:
        """Return `to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    def to_csv(self) -> str:
        """Return the rows as comma-separated values with a header line."""
        return render_csv(self)


def summary(
    model: nn.Module,
    input_shape: Inputs,
    batch_size: int = 1,
    *,
    device: torch.device | str | None = None,
    dtypes: torch.dtype | Sequence[torch.dtype] | None = None,
    depth: int | None = None,
    columns: Sequence[Column | str] | None = None,
    verbose: bool = True,
) -> Summary:
    """Print and return the cost of a network, layer by layer.

    Args:
        model: the network; it runs once, in evaluation mode, and is not changed.
        input_shape: shape of one input *without* the batch dimension, such as ``(4, 3, 3)``; with it for networks whose
            convolutions show that it is the batch, such as ``(1, 4, 3, 3)`` in two dimensions; a list of shapes for
            several inputs; a mapping for inputs by name; or tensors (with the batch dimension) in place of shapes.
        batch_size: number of inputs to count for, if shapes are given. Inputs above 1 GB are counted without being
            allocated or computed.
        device: device of the created inputs; ``None`` for the model's.
        dtypes: dtype of the created inputs, or one for each; ``None`` for the model's.
        depth: show modules down to this depth, each including its descendants; ``None`` for all.
        columns: which of `Column` to show; ``None`` for as many as fit.
        verbose: whether to print the table.

    Raises:
        SeparableError: the network cannot run on the input; the message names the layer and the shapes.
        SeparableValueError: an argument is invalid; the message says what is expected.

    Example:
        >>> net = nn.Conv2d(4, 8, kernel_size=3, padding=1, groups=2)
        >>> counted = summary(net, (4, 3, 3), columns=["layer", "output", "parameters", "macs"])
         Layer    Output         Params    MACs
        ────────────────────────────────────────
         Conv2d   (1, 8, 3, 3)      152   1,296
        ────────────────────────────────────────
                                    152   1,296
        Total params: 152
        Trainable params: 152
        Non-trainable params: 0
        MACs: 1,296 (FLOPs, two for each: 2,592)
        Bytes moved: 1,040 (2.49 FLOP/byte); weights: 608
        >>> counted.parameters, counted.macs
        (152, 1296)
    """
    chosen = as_columns(columns)
    if depth is not None and (isinstance(depth, bool) or not isinstance(depth, int) or depth < 0):
        raise SeparableValueError(f"depth={depth!r}: must be a whole number, at least 0, or None for all")
    model = _checked(model)
    args, kwargs, mode = make_inputs(model, input_shape, batch_size, device, dtypes)
    counted = _analyze(model, args, kwargs, depth, mode)
    counted = replace(counted, columns=chosen)
    if verbose:
        print(counted)
    return counted


def analyze(model: nn.Module, *inputs: Any, **named: Any) -> Summary:
    """Count the cost of ``model(*inputs, **named)`` without printing it.

    Args:
        model: the network; it runs once, in evaluation mode, and is not changed.
        *inputs: the network's positional arguments; a single mapping stands for arguments by name.
        **named: the network's arguments by name.

    Raises:
        SeparableError: the network cannot run on the inputs.

    Example:
        >>> analyze(nn.Linear(64, 10), torch.zeros(1, 64)).macs
        640
    """
    match inputs:
        case [Mapping() as by_name] if not named:
            return _analyze(_checked(model), (), by_name, None)
    return _analyze(_checked(model), inputs, named, None)


def _analyze(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    depth: int | None,
    mode: AbstractContextManager[object] | None = None,
) -> Summary:
    traces = execute(model, args, kwargs, mode)
    tensors = [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]
    rows = _rows(model, traces.modules, whole=depth == 0)
    called = {name for name, trace in traces.modules.items() if trace.calls}
    uncalled = tuple(
        name
        for name, module in model.named_modules()
        if name not in called
        and (own := list(module.parameters(recurse=False)))
        # nn.MultiheadAttention reads its projection's weight, and a ParameterList is read by its parent.
        and not any(id(parameter) in traces.read for parameter in own)
    )
    packed = [tensor for module in model.modules() for tensor in packed_parameters(module)]
    return Summary(
        network=type(model).__name__,
        input_shapes=tuple(tuple(tensor.shape) for tensor in tensors),
        layers=tuple(_folded(rows, depth)),
        weight_bytes=sum(stored_bytes(tensor) for tensor in (*model.parameters(), *model.buffers(), *packed)),
        input_bytes=sum(stored_bytes(tensor) for tensor in tensors),
        uncounted=traces.uncounted,
        uncalled=uncalled,
    )


def _rows(model: nn.Module, traces: Mapping[str, Trace], whole: bool) -> list[LayerCost]:
    """Make a row for each module; the network itself gets one if it has a cost of its own, or with ``whole``."""
    rows = []
    counted: set[int] = set()
    totals = _totals(model, traces)
    for name, module in model.named_modules():
        trace = traces.get(name, Trace())
        own = [p for p in module.parameters(recurse=False) if id(p) not in counted]
        counted.update(id(p) for p in own)
        conv = trace.convs[0] if len(set(trace.convs)) == 1 else None
        dense, dense_macs = _dense(module, trace, traces, name)
        silent = not own and not trace.macs and not trace.bytes and not dense
        if name == "" and len(traces) > 1 and silent and not whole:
            continue
        total = totals[name]
        rows.append(
            LayerCost(
                name=name,
                type=type(module).__name__,
                depth=name.count(".") + 1 if name else 0,
                calls=trace.calls,
                kernel=conv.kernel_size if conv else (),
                stride=conv.stride if conv else (),
                groups=conv.groups if conv else 0,
                output_shape=trace.output_shapes[0] if trace.output_shapes else (),
                parameters=sum(p.numel() for p in (*own, *packed_parameters(module))),
                trainable=sum(p.numel() for p in own if p.requires_grad),
                macs=trace.macs,
                bytes=trace.bytes,
                dense=dense.formula() if dense else "",
                dense_macs=dense_macs,
                saving=dense_macs / total if dense and total else None,
                formula=_formula(module, trace),
            )
        )
    return rows


def _totals(model: nn.Module, traces: Mapping[str, Trace]) -> dict[str, int]:
    """Return the multiply-accumulates of each module including its descendants."""
    totals = {name: 0 for name, _ in model.named_modules()}
    for name, trace in traces.items():
        parts = name.split(".") if name else []
        for i in range(len(parts) + 1):
            totals[".".join(parts[:i])] += trace.macs
    return totals


# Child names of depthwise separable units: this package's (and timm's), and the introductory article's.
_SEPARABLE = (("conv_dw", "conv_pw"), ("depth_conv", "point_conv"))


def _dense(module: nn.Module, trace: Trace, traces: Mapping[str, Trace], name: str) -> tuple[ConvSpec | None, int]:
    """Return the dense convolution that a module replaces, and its MACs at the module's output size."""
    if len(set(trace.convs)) == 1 and trace.convs[0].groups > 1:
        conv = trace.convs[0]
        return conv.dense(), trace.macs * conv.groups
    children = dict(module.named_children())
    for depthwise, pointwise in _SEPARABLE:
        if depthwise in children and pointwise in children and "conv_pwl" not in children:
            prefix = f"{name}." if name else ""
            ran = {key: trace for key, trace in traces.items() if key in (prefix + depthwise, prefix + pointwise)}
            if len(ran) != 2 or any(len(set(trace.convs)) != 1 for trace in ran.values()):
                return None, 0
            first, last = (trace.convs[0] for trace in ran.values())  # in execution order
            window, mix = ran[prefix + depthwise].convs[0], ran[prefix + pointwise].convs[0]
            if first.out_channels != last.in_channels or mix.groups > 1:
                return None, 0
            dense = replace(
                window, in_channels=first.in_channels, out_channels=last.out_channels, groups=1, bias=last.bias
            )
            pixels = ran[prefix + depthwise].macs // window.weights
            return dense, dense.weights * pixels
    return None, 0


def _formula(module: nn.Module, trace: Trace) -> str:
    if len(set(trace.convs)) == 1:
        return trace.convs[0].formula()
    if len(set(trace.products)) == 1 and not trace.convs:
        inner, columns = trace.products[0]
        # A product of two activations has no weights.
        if any(p.shape in ((inner, columns), (columns, inner)) for p in module.parameters(recurse=False)):
            return f"{inner}·{columns} = {inner * columns}"
    return ""


def _folded(rows: list[LayerCost], depth: int | None) -> list[LayerCost]:
    """Add the rows below ``depth`` to their ancestor at that depth."""
    if depth is None:
        return rows
    folded: list[LayerCost] = []
    for row in rows:
        if row.depth <= depth:
            folded.append(row)
            continue
        top = folded[-1]
        folded[-1] = replace(
            top,
            parameters=top.parameters + row.parameters,
            trainable=top.trainable + row.trainable,
            macs=top.macs + row.macs,
            bytes=top.bytes + row.bytes,
        )
    return folded


def _checked(model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise SeparableValueError(f"model is a {type(model).__name__}: expected an nn.Module")
    model = getattr(model, "_orig_mod", model)  # the module that torch.compile wraps
    assert isinstance(model, nn.Module)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise SeparableValueError(
                f"{f'layer {name!r}' if name else 'the model'} is scripted, so its layers cannot be read: "
                "pass the module from before torch.jit.script"
            )
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(parameter):
            raise SeparableError(f"parameter {name} has no shape yet (a lazy module): run the model once, then count")
    return model
