"""Break down a compiled network's time: cost, time and utilization of each operation."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from torch_separable._console import notebook
from torch_separable.runtime.graph.ir import Convolution, Node, QuantizedConvolution, TorchCall
from torch_separable.runtime.native.operations import PRECISIONS, Kind, MatrixSource, Operation
from torch_separable.runtime.profiling.roofline import Peak

_NAMES = {Kind.POOL_MAX: "max_pool", Kind.POOL_AVERAGE: "average_pool"}
_WIDTH = 80
_HEADS = ("layer", "kernel", "ms", "time", "GFLOP/s", "KB", "FLOP/B", "peak", "roof")


@dataclass(frozen=True)
class NodeTime:
    """The measurement of one operation of a compiled network.

    Attributes:
        name: name of the node in the captured graph.
        layer: name of the module that it comes from; empty if unknown.
        kind: the kernel, or ``PyTorch: operator (reason)`` for a fallback.
        milliseconds: median time.
        flops: operations on numbers, two per multiply-add; only convolutions are counted.
        bytes: bytes of weights, inputs and outputs, each moved once; 0 for a fallback.
        int8: whether it multiplies uint8 by int8.
    """

    name: str
    layer: str
    kind: str
    milliseconds: float
    flops: int
    bytes: int
    int8: bool = False

    @property
    def gflops(self) -> float:
        """Throughput in GFLOP/s."""
        return self.flops / self.milliseconds / 1e6

    @property
    def intensity(self) -> float:
        """Arithmetic intensity in FLOPs per byte."""
        return self.flops / self.bytes if self.bytes else 0.0


@dataclass(frozen=True)
class Breakdown:
    """The time of a compiled network, operation by operation; returned by `CompiledModel.explain`.

    Attributes:
        nodes: operations in execution order, each timed separately.
        milliseconds: median time of a whole call, which enters the library once instead of once per operation.
        batch: batch size.
        peak: measured peak of this machine for the same instruction set and number of threads.
        int8_peak: likewise for multiply-adds of uint8 and int8; ``None`` where no operation needs it.
    """

    nodes: tuple[NodeTime, ...]
    milliseconds: float
    batch: int
    peak: Peak
    int8_peak: Peak | None = None

    def peak_of(self, node: NodeTime) -> Peak:
        """Return the peak of the numbers that a node multiplies."""
        return self.int8_peak if node.int8 and self.int8_peak is not None else self.peak

    def share_of_peak(self, node: NodeTime) -> float:
        """Return a node's throughput divided by the peak."""
        return node.gflops / self.peak_of(node).gflops

    def share_of_roof(self, node: NodeTime) -> float:
        """Return a node's throughput divided by the roofline at its arithmetic intensity."""
        return node.gflops / self.peak_of(node).attainable(node.intensity)

    @property
    def gflops(self) -> float:
        """Throughput of a whole call in GFLOP/s."""
        return sum(node.flops for node in self.nodes) / self.milliseconds / 1e6

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "milliseconds": self.milliseconds,
            "batch": self.batch,
            "gflops": self.gflops,
            "peak": self.peak.to_dict(),
            **({} if self.int8_peak is None else {"int8_peak": self.int8_peak.to_dict()}),
            "nodes": [
                {
                    "name": node.name,
                    "layer": node.layer,
                    "kind": node.kind,
                    "milliseconds": node.milliseconds,
                    "flops": node.flops,
                    "bytes": node.bytes,
                    "gflops": node.gflops,
                    "intensity": node.intensity,
                }
                for node in self.nodes
            ],
        }

    def __str__(self) -> str:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for i, head in enumerate(_HEADS):
            # Layer names differ at their ends, so `_tail` cuts long ones at the beginning; rich would cut the end.
            table.add_column(
                head,
                justify="left" if i < 2 else "right",
                no_wrap=i != 1,
                overflow="fold",
                min_width=9 if i == 1 else None,
            )
        for row in self._rows():
            table.add_row(_tail(row[0], 22), *row[1:])
        out = io.StringIO()
        console = Console(file=out, width=_WIDTH, color_system=None, markup=False, emoji=False, highlight=False)
        console.print(table)
        console.print(self._summary())
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")

    def _repr_html_(self) -> str:
        return notebook.table(_HEADS, self._rows(), right=[i > 1 for i in range(len(_HEADS))])

    def _rows(self) -> list[tuple[str, ...]]:
        total = sum(node.milliseconds for node in self.nodes)
        return [
            (
                node.layer or node.name,
                node.kind,
                f"{node.milliseconds:.3f}",
                f"{100 * node.milliseconds / total:.0f} %",
                f"{node.gflops:.3g}" if node.flops else "",
                f"{node.bytes / 1e3:,.0f}" if node.bytes else "",
                f"{node.intensity:.3g}" if node.flops else "",
                f"{100 * self.share_of_peak(node):.0f} %" if node.flops else "",
                f"{100 * self.share_of_roof(node):.0f} %" if node.flops else "",
            )
            for node in self.nodes
        ]

    def _summary(self) -> str:
        peak, int8 = self.peak, self.int8_peak
        # The time that all operations would take at their peaks.
        least = sum(node.flops / self.peak_of(node).gflops for node in self.nodes) / 1e6
        beside = "" if int8 is None else f", and {int8.gflops:.3g} in int8"
        threads = f"{peak.threads} thread{'' if peak.threads == 1 else 's'}"
        return (
            f"A call of {self.batch} image{'' if self.batch == 1 else 's'}: {self.milliseconds:.3g} ms, "
            f"{self.gflops:.3g} GFLOP/s, {100 * least / self.milliseconds:.0f} % of the measured peak of "
            f"{peak.gflops:.3g} ({peak.instruction_set}, {peak.precision}, {threads}){beside}."
        )


def _tail(text: str, most: int) -> str:
    return text if len(text) <= most else f"…{text[1 - most :]}"


def kind_of(node: Node, operation: Operation | None) -> str:
    """Name the kernel of a node's operation, or the operator of a fallback and its reason."""
    if isinstance(node, TorchCall) or operation is None:
        assert isinstance(node, TorchCall)
        return f"PyTorch: {node.function} ({node.reason})"
    prefix = "int8 " if operation.is_int8 else ""
    if operation.kind == Kind.CONVOLUTION:
        return prefix + MatrixSource(operation.product.source).convolution
    return prefix + _NAMES.get(Kind(operation.kind), Kind(operation.kind).name.lower())


def flops_of(operation: Operation | None, node: Node) -> int:
    """Return the floating-point operations of a convolution or matrix product, two per multiply-add; else 0."""
    if operation is not None and operation.kind == Kind.MATRIX_PRODUCT:
        rows = operation.batch * operation.out_height * operation.out_width
        return int(2 * rows * operation.in_channels * operation.out_channels)
    if operation is None or operation.kind not in (1, 2):
        return 0
    pixels = operation.batch * operation.out_height * operation.out_width
    taps = _taps(operation)
    if isinstance(node, QuantizedConvolution):
        if node.depthwise is None:
            return int(2 * pixels * taps * node.weight.shape[1] * operation.out_channels)
        return int(2 * pixels * (node.weight.shape[:2].numel() + taps * len(node.depthwise.weight)))
    if operation.kind == Kind.DEPTHWISE:
        return int(2 * pixels * taps * operation.depthwise.summed_groups * operation.out_channels)
    taps *= operation.convolution.depth_multiplier
    if operation.convolution.source == MatrixSource.DEPTHWISE:
        return int(2 * pixels * (_mixed(operation) * operation.out_channels + taps * operation.in_channels))
    # From the weights, without the zeros that pad rows and fill the blocks of groups that share a panel.
    assert isinstance(node, Convolution)
    return int(2 * pixels * taps * node.weight.shape[1] * operation.out_channels)


def _taps(operation: Operation) -> int:
    return int(operation.window.kernel_height * operation.window.kernel_width)


def _mixed(operation: Operation) -> int:
    """Return the length of each output's dot product; the operation's ``depth`` includes zero padding."""
    separable = operation.convolution.source == MatrixSource.DEPTHWISE
    taps = _taps(operation)
    return int((operation.convolution.depth_multiplier if separable else taps) * operation.in_channels)


def bytes_of(operation: Operation | None) -> int:
    """Return the bytes of an operation's weights, inputs and outputs, each moved once.

    Depthwise kernels and biases are float32 in bfloat16 programs as well. What int8 operations read and write counts
    one byte a value.
    """
    if operation is None:
        return 0
    inputs = operation.batch * operation.in_height * operation.in_width * operation.in_channels
    outputs = operation.batch * operation.out_height * operation.out_width * operation.out_channels
    if operation.kind == Kind.REPAIR_NONFINITE:  # it only reads the values
        return int(PRECISIONS[operation.precision].itemsize * outputs)
    branch = outputs if operation.second_input >= 0 else 0
    if operation.kind == Kind.SCALE:
        branch = operation.batch * operation.out_channels
    if operation.is_int8:
        return int(inputs + outputs + branch + _int8_weights(operation))
    values, floats = inputs + outputs + branch, 0
    if operation.kind == Kind.CONVOLUTION:
        values += _mixed(operation) * operation.out_channels
        floats += operation.out_channels
        if operation.convolution.source == MatrixSource.DEPTHWISE:
            floats += operation.convolution.depth_multiplier * operation.in_channels * (_taps(operation) + 1)
    if operation.kind == Kind.DEPTHWISE:
        floats += operation.depthwise.summed_groups * operation.out_channels * (_taps(operation) + 1)
    return int(PRECISIONS[operation.precision].itemsize * values + 4 * floats)


def _int8_weights(operation: Operation) -> int:
    """Bytes of int8 weights, without padding and without the constants of each channel."""
    if operation.kind == Kind.CONVOLUTION:
        params = operation.int8_convolution
        filters = params.depth_multiplier * operation.in_channels * _taps(operation)
        separable = params.source == MatrixSource.DEPTHWISE
        return int(params.depth * operation.out_channels + (filters if separable else 0))
    if operation.kind == Kind.DEPTHWISE:
        return int(operation.int8_depthwise.summed_groups * operation.out_channels * _taps(operation))
    return 0
