"""The plan of a conversion: for each convolution, whether it stays dense, or its factorisation and rank."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from torch_separable._system.files import read_json, write_json
from torch_separable.conversion.reduction import Reduction
from torch_separable.conversion.solvers.factorize import Order
from torch_separable.cost.formulas import ConvSpec
from torch_separable.errors import SeparableError

SCHEMA = 1
Method = Literal["least_squares", "svd"]
Engine = Literal["compiled", "pytorch"]
Precision = Literal["f32", "bf16", "int8"]
UNKNOWN: Reduction[int] = Reduction(0, 0)  # of plans that were written by hand


@dataclass(frozen=True)
class LayerPlan:
    """The plan for one convolution.

    Attributes:
        name: module name in the dense network.
        weight_shape: shape of the dense kernel, (M, C/groups, *kernel size).
        order: ``"depthwise_first"``, ``"pointwise_first"``, or ``None`` to keep the layer dense.
        rank: depth multiplier or rank of the factorisation; 0 where the layer is kept dense.
        reason: why the layer is kept dense, or what the alternative to the choice would have been.
        macs: multiply-accumulates for one image: ``.dense`` and ``.converted``.
        parameters: ``.dense`` and ``.converted``.
        error: share of the output's variance that a fit of this layer alone loses on the calibration images.
        dense: description of the dense convolution, such as ``Conv2d(16, 32, 3x3/2)``: channels, kernel, stride.
        precision: of its arithmetic: ``"f32"``, ``"bf16"`` or ``"int8"``.
    """

    name: str
    weight_shape: tuple[int, ...]
    order: Order | None
    rank: int = 0
    reason: str = ""
    macs: Reduction[int] = UNKNOWN
    parameters: Reduction[int] = UNKNOWN
    error: float = 0.0
    dense: str = ""
    precision: Precision = "f32"

    def __post_init__(self) -> None:
        where = f"layer {self.name!r} of the plan"
        if not isinstance(self.name, str) or not self.name:
            raise SeparableError(f"a layer of the plan has name={self.name!r}: expected a module name")
        if not _are_whole(self.weight_shape):
            raise SeparableError(f"{where} has weight_shape={self.weight_shape!r}: expected whole numbers")
        object.__setattr__(self, "weight_shape", tuple(self.weight_shape))
        for name in ("macs", "parameters"):
            object.__setattr__(self, name, _as_reduction(getattr(self, name), name, where))
        if self.order is not None and self.order not in get_args(Order):
            raise SeparableError(
                f"{where} has order={self.order!r}: expected one of {', '.join(get_args(Order))}, or null (kept dense)"
            )
        if type(self.rank) is not int or self.rank < 0 or (self.rank == 0) != (self.order is None):
            raise SeparableError(
                f"{where} has rank={self.rank!r} with order={self.order!r}: expected 1 or more, or 0 with no order"
            )
        if type(self.error) not in (int, float) or not abs(self.error) <= sys.float_info.max:
            raise SeparableError(f"{where} has error={self.error!r}: expected a number")
        if self.precision not in get_args(Precision):
            raise SeparableError(
                f"{where} has precision={self.precision!r}: expected one of {', '.join(get_args(Precision))}"
            )
        for name in ("reason", "dense"):
            if not isinstance(getattr(self, name), str):
                raise SeparableError(f"{where} has {name}={getattr(self, name)!r}: expected text")

    @property
    def before(self) -> str:
        """Description of the dense convolution."""
        if self.dense or len(self.weight_shape) < 3:
            return self.dense or f"kernel {'x'.join(map(str, self.weight_shape))}"
        outputs, inputs, *kernel = self.weight_shape
        return f"Conv{len(kernel)}d({inputs}, {outputs}, {'x'.join(map(str, kernel))})"

    @property
    def after(self) -> str:
        """Description of the layers that replace it, in execution order; empty where it is kept dense.

        Example:
            >>> LayerPlan("conv1", (8, 4, 3, 3), "pointwise_first", rank=2).after
            'pointwise + depthwise 3x3 ·2'
        """
        if self.order is None:
            return ""
        kernel, multiplier = "x".join(map(str, self.weight_shape[2:])), f" ·{self.rank}" if self.rank > 1 else ""
        depthwise = f"depthwise {kernel}{multiplier}"
        return f"{depthwise} + pointwise" if self.order == "depthwise_first" else f"pointwise + {depthwise}"


@dataclass(frozen=True)
class Latency:
    """Predicted time for one image: the sum of layers that were timed one by one.

    Attributes:
        milliseconds: for the whole network: ``.dense`` and ``.converted``.
        engine: what was timed: ``"compiled"`` (`torch_separable.compile`) or ``"pytorch"``.
        threads: maximum number of threads.
    """

    milliseconds: Reduction[float]
    engine: Engine
    threads: int

    def __post_init__(self) -> None:
        times = self.milliseconds
        if not isinstance(times, list | tuple) or len(times) != 2 or not all(map(_is_time, times)):
            raise SeparableError(
                f"the plan's latency has milliseconds={times!r}: expected two numbers, dense and converted"
            )
        object.__setattr__(self, "milliseconds", Reduction(*times))
        if self.engine not in get_args(Engine):
            raise SeparableError(
                f"the plan's latency has engine={self.engine!r}: expected one of {', '.join(get_args(Engine))}"
            )
        if type(self.threads) is not int or self.threads < 1:
            raise SeparableError(f"the plan's latency has threads={self.threads!r}: expected 1 or more")


@dataclass(frozen=True)
class Plan:
    """A conversion, layer by layer: plain data that can be read, edited and applied again.

    Attributes:
        method: how kernels are found: by least squares on the outputs, or by the SVD of the weights alone.
        layers: convolutions in execution order, then those that cannot be converted, with the reason.
        macs: multiply-accumulates of the whole network for one image: ``.dense`` and ``.converted``.
        parameters: parameters of the whole network: ``.dense`` and ``.converted``.
        latency: predicted time for one image, where a latency was the budget.
        version: version of this layout.

    Example:
        >>> layer = LayerPlan("conv1", (8, 4, 3, 3), "depthwise_first", rank=1)
        >>> plan = Plan("svd", (layer,))
        >>> Plan.from_dict(plan.to_dict()) == plan
        True
    """

    method: Method
    layers: tuple[LayerPlan, ...]
    macs: Reduction[int] = UNKNOWN
    parameters: Reduction[int] = UNKNOWN
    latency: Latency | None = None
    version: int = SCHEMA

    def __post_init__(self) -> None:
        _check_version(self.version)
        if self.method not in get_args(Method):
            raise SeparableError(f"the plan has method={self.method!r}: expected one of {', '.join(get_args(Method))}")
        for name in ("macs", "parameters"):
            object.__setattr__(self, name, _as_reduction(getattr(self, name), name, "the plan"))
        repeated = [name for name, n in Counter(layer.name for layer in self.layers).items() if n > 1]
        if repeated:
            raise SeparableError(f"layer {repeated[0]!r} occurs twice in the plan")

    @property
    def converted(self) -> tuple[LayerPlan, ...]:
        """The layers that are replaced."""
        return tuple(layer for layer in self.layers if layer.order is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: object) -> Plan:
        """Build a plan from plain JSON values.

        Raises:
            SeparableError: a field is missing, unknown or of the wrong type; the message names it.
        """
        if not isinstance(document, dict):
            raise SeparableError(f"a plan is a JSON object, not a {type(document).__name__}")
        _check_version(document.get("version"))  # before the names, because another version has others
        _check_names(cls, document, "the plan", required={"method", "layers"})
        if not isinstance(document["layers"], list | tuple):
            raise SeparableError("the plan's layers are not a list")
        layers = []
        for i, entry in enumerate(document["layers"]):
            if not isinstance(entry, dict):
                raise SeparableError(f"layer {i} of the plan is not a JSON object")
            _check_names(LayerPlan, entry, f"layer {i} of the plan", required={"name", "weight_shape", "order"})
            layers.append(LayerPlan(**entry))
        latency = document.get("latency")
        if latency is not None:
            if not isinstance(latency, dict):
                raise SeparableError("the plan's latency is not a JSON object")
            _check_names(Latency, latency, "the plan's latency", required={"milliseconds", "engine", "threads"})
            latency = Latency(**latency)
        return cls(**{**document, "layers": tuple(layers), "latency": latency})

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that `save` wrote and somebody may have edited.

        Raises:
            SeparableError: the file is missing, is not JSON, or is not a plan.
        """
        document = read_json(path, "a plan")
        try:
            return cls.from_dict(document)
        except SeparableError as error:
            raise SeparableError(f"{path}: {error}") from error

    def __str__(self) -> str:
        from torch_separable.conversion.planning.render import render_plan  # it imports this file

        return render_plan(self).plain

    def _repr_html_(self) -> str:
        from torch_separable.conversion.planning.render import render_plan_html

        return render_plan_html(self)


def _check_version(version: object) -> None:
    if type(version) is not int or version != SCHEMA:
        raise SeparableError(f"the plan has version {version!r}; this release reads version {SCHEMA}: plan again")


def _as_reduction(value: object, name: str, where: str) -> Reduction[int]:
    if not _are_whole(value) or len(value) != 2:  # type: ignore[arg-type]
        raise SeparableError(f"{where} has {name}={value!r}: expected two whole numbers, dense and converted")
    return Reduction(*value)  # type: ignore[misc]


def _are_whole(value: object) -> bool:
    return isinstance(value, list | tuple) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _is_time(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max  # type: ignore[operator]


def _check_names(kind: type, document: dict[str, Any], where: str, required: set[str]) -> None:
    known = {field.name for field in fields(kind)}
    missing, unknown = sorted(required - set(document)), sorted(set(document) - known)
    if missing:
        raise SeparableError(f"{where} lacks {missing[0]!r}")
    if unknown:
        raise SeparableError(f"{where} has an unknown field {unknown[0]!r}: known are {', '.join(sorted(known))}")


def separable_specs(spec: ConvSpec, order: Order, rank: int) -> tuple[ConvSpec, ConvSpec]:
    """Return the two convolutions that replace ``spec``, in the order in which they run."""
    ones = (1,) * len(spec.kernel_size)
    channels = spec.in_channels if order == "depthwise_first" else spec.out_channels
    inner = channels * rank
    window: dict[str, Any] = {
        "kernel_size": spec.kernel_size,
        "stride": spec.stride,
        "padding": spec.padding,
        "dilation": spec.dilation,
    }
    if order == "depthwise_first":
        return (
            ConvSpec(spec.in_channels, inner, **window, groups=channels, bias=False),
            ConvSpec(inner, spec.out_channels, ones, groups=spec.groups),
        )
    return (
        ConvSpec(spec.in_channels, inner, ones, groups=spec.groups, bias=False),
        ConvSpec(inner, spec.out_channels, **window, groups=channels),
    )


def separable_macs(spec: ConvSpec, order: Order, rank: int, input_pixels: int, output_pixels: int) -> int:
    """Return the multiply-accumulates of a factorised layer for given numbers of input and output pixels.

    arXiv 1704.04861, section 3.1, with a depth multiplier: depthwise first ``D·C·(k² + M)`` for each output pixel;
    pointwise first ``D·M·k²`` for each output pixel and ``D·M·C`` for each *input* pixel.
    """
    first, second = separable_specs(spec, order, rank)
    between = output_pixels if order == "depthwise_first" else input_pixels
    return first.weights * between + second.weights * output_pixels
