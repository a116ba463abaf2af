"""Random int8 programs, drawn from seeds, and their comparison with the reference executor.

Scales range from 1e-6 to 1e6; zero points lie at run_both ends; some weights saturate; some channels are dead; some
multipliers and offsets are far too small or far too large.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from torch_separable.runtime import available, instruction_sets
from torch_separable.runtime.graph.ir import (
    RELU,
    Activation,
    Add,
    Copy,
    Dequantize,
    LookUp,
    Mean,
    Node,
    Pool,
    Program,
    Quantization,
    Quantize,
    QuantizedAdd,
    QuantizedConcat,
    QuantizedConvolution,
    QuantizedScale,
    Shape,
    Window,
)
from torch_separable.runtime.graph.reference import run_program
from torch_separable.runtime.native.bindings import run
from torch_separable.runtime.planning.schedule import schedule
from torch_separable.runtime.planning.workspace_views import view_of

SETS = list(instruction_sets()) if available() else ["none"]
GUARD = 1024  # values before and after the workspace that nothing may touch
ACTIVATIONS = (Activation(), RELU, Activation(alpha=0.0, beta=6.0), Activation(alpha=-1.0, beta=1.0))


class Case:
    """A program that is drawn, node by node, from a seed."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        torch.manual_seed(seed)
        self.nodes: list[Node] = []
        self.shapes: dict[str, Shape] = {}
        self.blocks: dict[str, int] = {}
        self.quantized: dict[str, Quantization] = {}
        self.x = torch.empty(0)

    def quantization(self, scale: float | None = None) -> Quantization:
        exponent = self.draw.choice([-6.0, 6.0, self.draw.uniform(-6, 6), self.draw.uniform(-2, 0)])
        return Quantization(scale or 10.0**exponent, self.draw.choice([0, 255, self.draw.randint(0, 255)]))

    def image(self, shape: Shape) -> str:
        """The network's input, quantized."""
        q = self.quantization()
        self.x = (torch.randint(0, 256, shape) - q.zero_point) * q.scale + q.scale * torch.randn(shape) / 8
        if self.draw.random() < 0.3:  # of other strides
            self.x = self.x.to(memory_format=torch.channels_last)
        self.shapes.update(x=shape, q=shape)
        self.quantized["q"] = q
        self.nodes.append(Quantize("q", "x", "q"))
        return "q"

    def weight(self, *shape: int) -> Tensor:
        largest = self.draw.choice([1, 10, 127])
        weight = torch.randint(-largest, largest + 1, shape, dtype=torch.int8)
        if self.draw.random() < 0.2:
            weight = torch.where(weight < 0, -127, 127).to(torch.int8) * (1 if self.draw.random() < 0.5 else -1)
        if self.draw.random() < 0.2:
            weight[torch.rand(shape[0]) < 0.5] = 0  # dead channels
        return weight

    def convolution(
        self, source: str, output: str, weight: Tensor, window: Window, size: tuple[int, int],
        residual: str | None = None, groups: int = 1, floats: bool = False,
    ) -> QuantizedConvolution:  # fmt: skip
        """A convolution whose results mostly cover the range of a uint8."""
        n, m = self.shapes[source][0], weight.shape[0]
        own, to = self.quantized.get(source, Quantization(1.0, 128)), self.quantization()
        spread = 1 + 100 * weight.float().flatten(1).norm(dim=1)
        multiplier = 10.0 ** torch.empty(m).uniform_(-0.5, 0.5) * 60 / spread
        multiplier *= self.draw.choice([1.0] * 8 + [1e-9, 1e9])
        offset = torch.empty(m).uniform_(-100, 100) * self.draw.choice([1.0] * 8 + [1e-6, 1e9])
        activation = self.draw.choice(ACTIVATIONS)
        low, high = to.bounds(activation) if not floats else (activation.alpha, activation.beta)
        self.shapes[output] = (n, m, *size)
        if not floats:
            self.quantized[output] = to
        factor = 0.0 if residual is None else self.draw.choice([0.5, 1.0, 1.7, 1e-3, 300.0])
        assert own.scale > 0
        return QuantizedConvolution(
            output, source, output, weight, multiplier, offset, window, low, high, residual, factor, groups
        )

    def windows(self) -> tuple[Window, tuple[int, int], tuple[int, int]]:
        """A window, a size of image, and the size of what it gives."""
        d = self.draw
        if d.random() < 0.5:
            side, step = d.choice([3, 5]), d.choice([1, 2])
            window = Window((side, side), (step, step), (side // 2, side // 2), (1, 1))
        else:
            kernel = (d.choice([1, 2, 3, 5, 7]), d.choice([1, 2, 3, 5, 7]))
            stride, padding = (d.randint(1, 3), d.randint(1, 3)), (d.randint(0, 3), d.randint(0, 3))
            window = Window(kernel, stride, padding, (d.randint(1, 2), d.randint(1, 2)))
        spans = [(k - 1) * e + 1 for k, e in zip(window.kernel, window.dilation, strict=True)]
        sizes = [max(d.randint(1, 17), span - 2 * p) for span, p in zip(spans, window.padding, strict=True)]
        outputs = [
            (n + 2 * p - span) // s + 1
            for n, p, span, s in zip(sizes, window.padding, spans, window.stride, strict=True)
        ]
        return window, (sizes[0], sizes[1]), (outputs[0], outputs[1])

    def program(self) -> Program:
        name = self.nodes[-1].output
        return Program(
            "x", tuple(self.nodes), self.shapes, self.blocks, frozenset(), (name,), None, quantized=self.quantized
        )


def executed(program: Program, x: Tensor, isa: str, threads: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Run a program by the kernels; nothing outside the workspace may change."""
    plan = schedule(program, instruction_sets(dtype)[isa], threads)
    memory = torch.full((plan.size + 2 * GUARD,), math.nan, dtype=dtype)
    workspace = memory[GUARD:-GUARD]
    workspace.view(torch.uint8).random_(0, 256)  # what pads channels may be anything
    for name in program.shapes:
        if name not in program.quantized and name in plan.offsets:
            view_of(workspace, plan, name).zero_()
    (step,) = plan.steps
    step.operations[0].external.strides[:] = x.stride()
    run(step.operations, workspace, x.data_ptr(), threads)
    assert memory[:GUARD].isnan().all()
    assert memory[-GUARD:].isnan().all()
    return view_of(workspace, plan, program.outputs[0]).clone()


def check(case: Case, isa: str, what: str) -> bool:
    """Compare with the reference; say whether results are not all the same."""
    program, threads = case.program(), case.draw.choice([1, 1, 2, 3])
    expected = run_program(program, case.x)
    got = executed(program, case.x, isa, threads)
    assert got.dtype == expected.dtype, what
    different = int((got != expected).sum())
    assert different == 0, f"{what}: {different} of {expected.numel()} values differ"
    return bool((expected != expected.flatten()[0]).any())


def dense(case: Case) -> None:
    window, size, out = case.windows()
    if case.draw.random() < 0.3:
        window, out = Window(), size
    channels, outputs = case.draw.randint(1, 40), case.draw.randint(1, 70)
    case.image((case.draw.randint(1, 2), channels, *size))
    residual = None
    if case.draw.random() < 0.3:
        case.nodes.append(case.convolution("q", "r", case.weight(outputs, channels, *window.kernel), window, out))
        residual = "r"
    weight = case.weight(outputs, channels, *window.kernel)
    case.nodes.append(case.convolution("q", "y", weight, window, out, residual))


def float_output(case: Case) -> None:
    window, size, out = case.windows()
    if case.draw.random() < 0.4:
        window, size, out = Window(), (1, 1), (1, 1)  # a linear layer
    channels, outputs = case.draw.randint(1, 80), case.draw.randint(1, 70)
    case.image((case.draw.randint(1, 3), channels, *size))
    weight = case.weight(outputs, channels, *window.kernel)
    case.nodes.append(case.convolution("q", "y", weight, window, out, floats=True))


def depthwise(case: Case) -> None:
    window, size, out = case.windows()
    channels = case.draw.randint(1, 80)
    case.image((case.draw.randint(1, 2), channels, *size))
    residual = None
    if case.draw.random() < 0.3:
        weight = case.weight(channels, 1, *window.kernel)
        case.nodes.append(case.convolution("q", "r", weight, window, out, groups=channels))
        residual = "r"
    weight, floats = case.weight(channels, 1, *window.kernel), residual is None and case.draw.random() < 0.2
    case.nodes.append(case.convolution("q", "y", weight, window, out, residual, channels, floats))


def separable(case: Case) -> None:
    window, size, out = case.windows()
    channels, multiplier, outputs = case.draw.randint(1, 40), case.draw.choice([1, 1, 2, 3]), case.draw.randint(1, 60)
    case.image((case.draw.randint(1, 2), channels, *size))
    weight = case.weight(channels * multiplier, 1, *window.kernel)
    first = case.convolution("q", "between", weight, window, out, groups=channels)
    between = case.quantized.pop("between")
    case.shapes.pop("between")
    mix = case.weight(outputs, channels * multiplier, 1, 1)
    node = case.convolution("q", "y", mix, Window(), out)
    values = {**node.__dict__, "depthwise": first, "between": between}
    case.nodes.append(QuantizedConvolution(**values))


def rank(case: Case) -> None:
    """Depthwise to several blocks and pointwise, or pointwise to several blocks that are filtered and summed."""
    window, size, out = case.windows()
    channels, multiplier, outputs = case.draw.randint(1, 24), case.draw.choice([2, 3]), case.draw.randint(1, 40)
    case.image((case.draw.randint(1, 2), channels, *size))
    case.blocks["between"] = multiplier
    if case.draw.random() < 0.5:
        weight = case.weight(channels * multiplier, 1, *window.kernel)
        case.nodes.append(case.convolution("q", "between", weight, window, out, groups=channels))
        mix = case.weight(outputs, channels * multiplier, 1, 1)
        case.nodes.append(case.convolution("between", "y", mix, Window(), out))
    else:
        mix = case.weight(outputs * multiplier, channels, 1, 1)
        case.nodes.append(case.convolution("q", "between", mix, Window(), size))
        weight = case.weight(outputs, multiplier, *window.kernel)
        case.nodes.append(case.convolution("between", "y", weight, window, out, groups=outputs))


def grouped(case: Case) -> None:
    window, size, out = case.windows()
    groups = case.draw.choice([2, 3, 4, 8])
    channels, outputs = case.draw.choice([1, 2, 3, 4, 8, 16]), case.draw.choice([1, 2, 4, 5, 8, 16])
    case.image((case.draw.randint(1, 2), groups * channels, *size))
    weight = case.weight(groups * outputs, channels, *window.kernel)
    floats = case.draw.random() < 0.2
    case.nodes.append(case.convolution("q", "y", weight, window, out, groups=groups, floats=floats))


def elementwise(case: Case) -> None:
    shape = (case.draw.randint(1, 2), case.draw.randint(1, 70), case.draw.randint(1, 9), case.draw.randint(1, 9))
    case.image(shape)
    case.shapes.update(y=shape, z=(shape[0], shape[1], 1, 1))
    case.quantized["y"] = to = case.quantization()
    q = case.quantized["q"]
    low, high = to.bounds(case.draw.choice(ACTIVATIONS))
    match case.draw.randrange(6):
        case 0:
            one, other = (case.draw.choice([1.0, 0.37, 1e-6, 1e6, case.draw.uniform(0, 3)]) for _ in range(2))
            table = torch.randperm(256).to(torch.uint8)
            case.shapes["t"], case.quantized["t"] = shape, case.quantization()
            case.nodes += [
                LookUp("t", "q", "t", table),
                QuantizedAdd("y", "q", "t", "y", one, other, low, high),
            ]
        case 1:
            case.quantized["z"] = case.quantization()
            case.nodes += [
                Mean("z", "q", "z"),
                QuantizedScale("y", "q", "z", "y", case.draw.choice([0.01, 1.0, 1e-6, 1e6]), low, high),
            ]
        case 2:
            case.quantized["z"] = case.quantization(q.scale * case.draw.choice([0.5, 1.0, 3.0]))
            case.nodes.append(Mean("z", "q", "z", case.draw.choice(ACTIVATIONS)))
        case 3:
            case.nodes.append(LookUp("y", "q", "y", torch.randint(0, 256, (256,), dtype=torch.uint8)))
        case 4:
            stride = (case.draw.randint(1, 2), case.draw.randint(1, 3))
            before, after = case.draw.choice([0, 3, 20]), case.draw.choice([0, 3, 20])
            case.quantized["y"] = q
            size = (-(-shape[2] // stride[0]), -(-shape[3] // stride[1]))
            case.shapes["y"] = (shape[0], before + shape[1] + after, *size)
            case.nodes.append(Copy("y", "q", "y", stride, before))
        case _:
            case.shapes["t"], case.quantized["t"] = shape, q
            case.quantized["y"] = q
            case.shapes["y"] = (shape[0], 2 * shape[1], *shape[2:])
            table = torch.randperm(256).to(torch.uint8)
            case.nodes += [LookUp("t", "q", "t", table), QuantizedConcat("y", ("q", "t"), "y")]


def pooling(case: Case) -> None:
    d = case.draw
    kernel = (d.randint(1, 4), d.randint(1, 4))
    maximum = d.random() < 0.4
    dilation = (d.randint(1, 2), d.randint(1, 2)) if maximum else (1, 1)
    padding = (d.randint(0, kernel[0] // 2), d.randint(0, kernel[1] // 2))
    window = Window(kernel, (d.randint(1, 3), d.randint(1, 3)), padding, dilation)
    spans = [(k - 1) * e + 1 for k, e in zip(kernel, dilation, strict=True)]
    size = [max(d.randint(1, 12), span) for span in spans]
    pairs = zip(size, window.padding, spans, window.stride, strict=True)
    out = [(n + 2 * p - span) // s + 1 for n, p, span, s in pairs]
    case.image((d.randint(1, 2), d.randint(1, 70), size[0], size[1]))
    n, c, _, _ = case.shapes["q"]
    q = case.quantized["q"]
    case.shapes["y"] = (n, c, out[0], out[1])
    case.quantized["y"] = q if maximum else case.quantization(q.scale * d.choice([0.3, 1.0, 2.0, 1e6]))
    activation = Activation() if maximum else d.choice(ACTIVATIONS)
    case.nodes.append(Pool("y", "q", "y", window, maximum, d.random() < 0.5, activation))


def borders(case: Case) -> None:
    """Floats between uint8 values: a float layer, and values that are quantized from it and back."""
    channels, outputs = case.draw.randint(1, 40), case.draw.randint(1, 40)
    size = (case.draw.randint(1, 9), case.draw.randint(1, 9))
    case.image((case.draw.randint(1, 2), channels, *size))
    n = case.shapes["q"][0]
    case.shapes.update(f=(n, channels, *size), g=(n, channels, *size), s=(n, channels, *size), y=(n, outputs, *size))
    case.shapes["w"] = (n, channels, *size)
    case.quantized["s"] = case.quantization(case.quantized["q"].scale * case.draw.choice([1.0, 0.7, 3.0]))
    case.nodes += [
        Dequantize("f", "q", "f"),
        Add("g", "f", "f", "g"),
        Quantize("s", "g", "s", *case.draw.choice([(0, 255), (1, 254), (0, 127)])),
    ]
    if case.draw.random() < 0.5:
        case.nodes.append(case.convolution("s", "y", case.weight(outputs, channels, 1, 1), Window(), size))
    else:
        case.nodes.append(Dequantize("w", "s", "w"))


PROGRAMS: Mapping[str, Callable[[Case], None]] = {
    each.__name__: each
    for each in (dense, float_output, depthwise, separable, rank, grouped, elementwise, pooling, borders)
}
