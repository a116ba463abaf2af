"""Worked steps: each count of a convolution in symbols, with numbers, and as a result.

Symbols: ``C`` input and ``M`` output channels, ``k`` kernel size, ``g`` groups, ``D`` depth multiplier, ``n`` and
``n'`` input and output size in one dimension, ``s`` stride, ``p`` padding, ``d`` dilation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch_separable.explanation.arguments import Subject
from torch_separable.explanation.stages import FLOAT32_BYTES, Stage, separable_stages, single_stage


@dataclass(frozen=True)
class Step:
    """One line of the worked arithmetic.

    Attributes:
        part: the stage that it belongs to, or "together" for both stages.
        title: the quantity that is computed.
        symbols: the formula in symbols.
        numbers: the formula in numbers.
        result: its value.
        unit: unit of the value; empty for pure numbers.
    """

    part: str
    title: str
    symbols: str
    numbers: str
    result: int | float | tuple[int, ...]
    unit: str = ""

    @property
    def result_text(self) -> str:
        """The result as text, with its unit."""
        if isinstance(self.result, tuple):
            text = times(self.result)
        elif self.unit == "of dense":
            text = share(self.result)
        else:
            text = count(self.result)
        return f"{text} {self.unit}".rstrip()


@dataclass(frozen=True)
class Alternative:
    """One way to build a layer from C to M channels, and its cost.

    Attributes:
        name: kind of layer.
        stages: its convolutions in execution order.
        dense_macs: multiply-accumulates of the standard convolution of the same shape.
        chosen: whether this is the layer being explained.
    """

    name: str
    stages: tuple[Stage, ...]
    dense_macs: int
    chosen: bool = False

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(stage.spec.weights for stage in self.stages)

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum(stage.spec.parameters for stage in self.stages)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one input."""
        return sum(stage.macs for stage in self.stages)

    @property
    def share(self) -> float:
        """Its multiply-accumulates divided by those of the standard convolution."""
        return self.macs / self.dense_macs


def count(value: int | float) -> str:
    """Format a number with thousands separators; a fraction gets three significant digits.

    Example:
        >>> count(1296), count(2.2039), count(999.7)
        ('1,296', '2.2', '1,000')
    """
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def share(value: float) -> str:
    """Format a fraction in per cent, with three significant digits.

    Example:
        >>> share(1.0), share(68 / 288), share(1.4), share(0.00123)
        ('100 %', '23.6 %', '140 %', '0.123 %')
    """
    percent = 100 * value
    return f"{percent:,.0f} %" if percent >= 100 else f"{percent:.3g} %"


def times(size: Sequence[int]) -> str:
    """Format a size in several dimensions, such as ``3×3``."""
    return "×".join(map(str, size))


def _product(*factors: object) -> str:
    return "·".join(map(str, factors))


def dense_stage(subject: Subject) -> Stage:
    """Return the standard convolution of the same channels, kernel, stride and padding."""
    if subject.order is None:
        (stage,) = subject.stages
        return single_stage(stage.spec.dense(), stage.input_size, stage.same_padding)
    spatial = subject.stages[0 if subject.order == "depthwise_first" else 1]
    first, last = subject.stages
    spec = replace(
        spatial.spec,
        in_channels=first.spec.in_channels,
        out_channels=last.spec.out_channels,
        groups=1,
        bias=last.spec.bias,
    )
    return single_stage(spec, first.input_size, spatial.same_padding)


def depth_multiplier(subject: Subject) -> int:
    """Return ``D`` of a depthwise separable layer: channels between the stages per input (or output) channel."""
    first, last = subject.stages
    outer = first.spec.in_channels if subject.order == "depthwise_first" else last.spec.out_channels
    return first.spec.out_channels // outer


def alternatives(subject: Subject) -> tuple[Alternative, ...]:
    """Return the layers from C to M channels, dense first, with the explained layer marked.

    The list has every number of groups that divides both channel counts, then both orders of depthwise separable
    convolution at depth multiplier 1 and at the explained layer's. A 1x1 convolution has no separable alternative.
    """
    dense = dense_stage(subject)
    listed: dict[str, tuple[Stage, ...]] = {}
    common = math.gcd(dense.spec.in_channels, dense.spec.out_channels)
    for groups in range(1, common + 1):
        if common % groups == 0:
            stage = single_stage(replace(dense.spec, groups=groups), dense.input_size, dense.same_padding)
            listed[_name((stage,))] = (stage,)
    if not dense.spec.is_pointwise:
        for rank in sorted({1, depth_multiplier(subject) if subject.order else 1}):
            for order in ("depthwise_first", "pointwise_first"):
                stages = separable_stages(dense, order, rank)
                listed[_name(stages, rank)] = stages
    name = _name(subject.stages, depth_multiplier(subject) if subject.order else 1)
    listed[name] = subject.stages
    return tuple(Alternative(each, stages, dense.macs, each == name) for each, stages in listed.items())


def _name(stages: tuple[Stage, ...], rank: int = 1) -> str:
    if len(stages) == 1:
        return f"{stages[0].name}, groups={stages[0].spec.groups}"
    return " → ".join(stage.name for stage in stages) + (f", D={rank}" if rank > 1 else "")


def steps(subject: Subject) -> tuple[Step, ...]:
    """Return the steps of each stage, then those of both stages together."""
    worked = [step for stage in subject.stages for step in _stage_steps(stage)]
    if len(subject.stages) > 1:
        return (*worked, *_total_steps(subject))
    (stage,) = subject.stages
    if stage.spec.groups > 1:
        g = stage.spec.groups
        worked.append(Step(stage.name, "Share of the dense layer", "1/g", f"1/{g}", 1 / g, "of dense"))
    return tuple(worked)


def _stage_steps(stage: Stage) -> list[Step]:
    spec, part = stage.spec, stage.name
    kernel, k = _product(*spec.kernel_size), _product(*("k" for _ in spec.kernel_size))
    C, M, g = spec.in_channels, spec.out_channels, spec.groups
    depth = C // g
    worked = []
    if not spec.is_pointwise or max(spec.stride) > 1:
        worked.append(_output_step(stage))
    if g > 1:
        worked.append(Step(part, "Input channels per filter", "C/g", f"{C}/{g}", depth))
        worked.append(Step(part, "Filters per group", "M/g", f"{M}/{g}", M // g))
    of_one = math.prod(spec.kernel_size) * depth
    worked.append(
        Step(part, "Weights per filter", _product(k, "(C/g)" if g > 1 else "C"), _product(kernel, depth), of_one)
    )
    weights = _product(k, "(C/g)" if g > 1 else "C", "M")
    numbers = _product(kernel, f"({C}/{g})" if g > 1 else C, M)
    worked.append(Step(part, "Weights of all M filters", weights, numbers, spec.weights, "weights"))
    if spec.bias:
        with_bias = f"{count(spec.weights)} + {M}"
        worked.append(Step(part, "With one bias per filter", "weights + M", with_bias, spec.parameters, "parameters"))
    pixels, where = (stage.input_size, "input") if spec.transposed else (stage.output_size, "output")
    worked.append(
        Step(
            part,
            f"Multiply-accumulates: each weight once per {where} pixel",
            f"weights · {where} pixels",
            f"{count(spec.weights)} · {_product(*pixels)}",
            stage.macs,
            "MACs",
        )
    )
    worked.append(_bytes_step(stage))
    worked.append(
        Step(
            part,
            "Arithmetic intensity (1 MAC = 2 FLOPs)",
            "2 · MACs / bytes",
            f"2 · {count(stage.macs)} / {count(stage.bytes_moved)}",
            2 * stage.macs / stage.bytes_moved,
            "FLOP/byte",
        )
    )
    return worked


def _output_step(stage: Stage) -> Step:
    spec = stage.spec
    worked: dict[str, None] = {}
    for axis, n in enumerate(stage.input_size):
        k, s, p, d, o = (
            getattr(spec, name)[axis] for name in ("kernel_size", "stride", "padding", "dilation", "output_padding")
        )
        if spec.transposed:
            worked[f"({n} − 1)·{s} − 2·{p} + {d}·({k} − 1) + {o} + 1"] = None
        else:
            # padding="same" of an even kernel may be odd in total, which 2·p cannot express
            zeros = d * (k - 1) if stage.same_padding and d * (k - 1) % 2 else f"2·{p}"
            worked[f"⌊({n} + {zeros} − {d}·({k} − 1) − 1)/{s}⌋ + 1"] = None
    symbols = "(n − 1)·s − 2·p + d·(k − 1) + o + 1" if spec.transposed else "⌊(n + 2·p − d·(k − 1) − 1)/s⌋ + 1"
    if len(worked) == 1 and len(stage.input_size) > 1:
        symbols += ", in each dimension"
    return Step(stage.name, "Output size n'", symbols, ", ".join(worked), stage.output_size)


def _bytes_step(stage: Stage) -> Step:
    spec = stage.spec
    inputs, outputs = _product(spec.in_channels, *stage.input_size), _product(spec.out_channels, *stage.output_size)
    return Step(
        stage.name,
        "Bytes in float32, each tensor moved once",
        f"{FLOAT32_BYTES}·(input + parameters + output)",
        f"{FLOAT32_BYTES}·({inputs} + {count(spec.parameters)} + {outputs})",
        stage.bytes_moved,
        "bytes",
    )


def _total_steps(subject: Subject) -> list[Step]:
    this = next(each for each in alternatives(subject) if each.chosen)
    k = _product(*("k" for _ in dense_stage(subject).spec.kernel_size))
    first_macs = subject.order == "depthwise_first"
    symbols = [f"{k}·C·D", "C·D·M"] if first_macs else ["C·D·M", f"{k}·D·M"]

    def added(values: Sequence[int]) -> str:
        return " + ".join(map(count, values))

    weights = [stage.spec.weights for stage in subject.stages]
    parameters = [stage.spec.parameters for stage in subject.stages]
    macs = [stage.macs for stage in subject.stages]
    together = [
        Step("together", "Weights of both stages", " + ".join(symbols), added(weights), this.weights, "weights")
    ]
    if this.parameters > this.weights:
        both = "parameters of both stages"
        together.append(Step("together", "With biases", both, added(parameters), this.parameters, "parameters"))
    together.append(Step("together", "Multiply-accumulates", "MACs of both stages", added(macs), this.macs, "MACs"))
    # The closed form holds if both stages apply each weight equally often; pointwise first with a stride does not.
    closed = all(stage.applications == subject.stages[-1].applications for stage in subject.stages)
    ratio = f" = {'D/M' if first_macs else 'D/C'} + D/({k})" if closed else ""
    together.append(
        Step(
            "together",
            "Share of the dense layer",
            "MACs / dense MACs" + ratio,
            f"{count(this.macs)} / {count(this.dense_macs)}",
            this.share,
            "of dense",
        )
    )
    return together
