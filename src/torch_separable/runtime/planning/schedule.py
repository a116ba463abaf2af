"""From a program to a schedule: steps of operations, their order, and the place of every value in one workspace."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from torch_separable._system.hardware import cache_bytes
from torch_separable.runtime.graph.ir import (
    Convolution,
    Copy,
    DepthwiseConv,
    Dequantize,
    Node,
    Program,
    QuantizedConvolution,
    TorchCall,
    inputs_of,
)
from torch_separable.runtime.native.bindings import tasks
from torch_separable.runtime.native.huge_pages import ENOUGH, zeros
from torch_separable.runtime.native.instruction_sets import InstructionSet
from torch_separable.runtime.native.operations import Kind, Operation, Part, ThreadTaskLists
from torch_separable.runtime.planning.aliasing import aliases
from torch_separable.runtime.planning.depth_first import depth_first, early_layers, of_shard
from torch_separable.runtime.planning.memory_plan import CACHE_LINE, place
from torch_separable.runtime.planning.operation_builder import OperationBuilder
from torch_separable.runtime.planning.packing import (
    padded,
)
from torch_separable.runtime.planning.packing_int8 import BYTE_LANES
from torch_separable.runtime.planning.schedule_int8 import (
    byte_image_stride,
    with_quantized_import,
)
from torch_separable.runtime.planning.strides import image_stride, pixel_stride
from torch_separable.runtime.planning.tiling import FEW_PIXELS, Tile


@dataclass(frozen=True)
class Step:
    """A sequence of native operations, or one fallback to PyTorch.

    Attributes:
        operations: structs that the library reads; empty for a fallback.
        nodes: the node that each operation computes.
        call: the fallback.
        task_lists: depth-first order of the first operations: a list for each shard of the batch, with operations of
            its own; ``None`` runs the operations one after the other.
    """

    operations: ctypes.Array[Operation]
    nodes: tuple[Node, ...]
    call: TorchCall | None = None
    task_lists: ThreadTaskLists | None = None

    @property
    def shard_groups(self) -> list[range]:
        """Indices of the operations that compute one node, a range each: one operation a shard of the batch."""
        covered, shards = (0, 1) if self.task_lists is None else (self.task_lists.covered, len(self.task_lists.ends))
        early = [range(place, covered, covered // shards) for place in range(covered // shards)]
        return early + [range(place, place + 1) for place in range(covered, len(self.operations))]


@dataclass(frozen=True)
class Schedule:
    """A program prepared for one instruction set and number of threads.

    Attributes:
        program: the scheduled program.
        steps: its steps, in order.
        offsets: offset of each value in the workspace, in elements of the kernels' type; of uint8 values, in bytes.
        strides: elements from a pixel of each value to the next, of the value's own type.
        size: size of the workspace, in elements of the kernels' type.
        wide: outputs that are float32 although the kernels' type is bfloat16.
        weights: packed weights, in one allocation if they fill huge pages; operations hold their addresses.
        padded: channels of each value, rounded up to whole vectors.
    """

    program: Program
    steps: tuple[Step, ...]
    offsets: dict[str, int]
    strides: dict[str, int]
    size: int
    wide: frozenset[str]
    weights: tuple[Tensor, ...]
    padded: dict[str, int]


def schedule(
    program: Program, kernels: InstructionSet, threads: int, tiles: Mapping[str, Tile] = MappingProxyType({})
) -> Schedule:
    """Prepare a program for one instruction set and number of threads.

    Args:
        program: a fused program.
        kernels: the instruction set.
        threads: number of threads.
        tiles: measured tile sizes by `shape_key`; other convolutions get theirs by rule.
    """
    nodes = _split_large_separable(program, kernels, threads)
    program = replace(program, nodes=nodes[0], shapes=nodes[1], blocks=nodes[2])
    program, quantize = with_quantized_import(program)
    bytes_each = kernels.dtype.itemsize
    lanes, strides = {}, {}
    narrow = kernels.lanes if kernels.narrow is None else kernels.narrow.lanes
    for name, (_, channels, _, _) in program.shapes.items():
        blocks = program.blocks.get(name, 1)
        if name in program.quantized:
            lanes[name], strides[name] = BYTE_LANES, pixel_stride(channels, blocks, BYTE_LANES, 1)
            continue
        lanes[name] = narrow if channels // blocks <= narrow else kernels.lanes
        strides[name] = pixel_stride(channels, blocks, lanes[name], bytes_each)
    stride = byte_image_stride(program) if quantize else image_stride(program, kernels)
    if stride is not None:
        strides[program.input] = stride
    places = aliases(program, kernels.lanes)
    for name, where in places.items():
        lanes[name], strides[name] = lanes[where.root], strides[where.root]
    # If the batch divides evenly, each thread takes its own images through the early layers.
    images = program.shapes[program.input][0]
    shards = threads if images % threads == 0 else 1
    shard = replace(program, shapes={name: (n // shards, c, h, w) for name, (n, c, h, w) in program.shapes.items()})
    early = early_layers(shard, strides, bytes_each) if shards == threads else 0
    wide = _float_outputs(program) if kernels.dtype == torch.bfloat16 else frozenset()
    sizes = {**dict.fromkeys(wide, 4), **dict.fromkeys(program.quantized, 1)}
    pixel_bytes = {name: stride * sizes.get(name, bytes_each) for name, stride in strides.items()}
    roots, size = place(program, pixel_bytes, early, places)
    offsets = {
        name: roots[where.root] // (1 if name in program.quantized else bytes_each)
        + where.pixel * strides[name]
        + where.channel
        for name, where in places.items()
        if where.root in roots
    }
    weights: list[Tensor] = []
    builder = OperationBuilder(
        program, kernels, threads, offsets, strides, lanes, tiles, wide, weights, places, quantize=quantize
    )
    known = {} if shards > 1 else tiles
    first = OperationBuilder(shard, kernels, 1, offsets, strides, lanes, known, wide, weights, places, depth_first=True)
    steps = _steps(program, first, early, shards, builder)
    widths = {
        name: blocks * padded(shape[1] // blocks, lanes[name])
        for name, shape in program.shapes.items()
        for blocks in (program.blocks.get(name, 1),)
    }
    fills_huge_pages = sum(tensor.nbytes for tensor in weights) >= ENOUGH
    kept = (_in_one_allocation(weights, steps),) if fills_huge_pages else tuple(weights)
    return Schedule(program, steps, offsets, strides, size // bytes_each, wide, kept, widths)


def _float_outputs(program: Program) -> frozenset[str]:
    """Outputs that convolutions write and no node reads: their float32 sums are returned without rounding."""
    read = {name for node in program.nodes for name in inputs_of(node)}
    made = {
        node.output
        for node in program.nodes
        if (isinstance(node, Convolution) and node.groups == 1)
        or (isinstance(node, QuantizedConvolution | Dequantize) and node.output not in program.quantized)
    }
    return frozenset(name for name in program.outputs if name in made - read)


def _split_large_separable(
    program: Program, kernels: InstructionSet, threads: int
) -> tuple[tuple[Node, ...], dict[str, tuple[int, int, int, int]], dict[str, int]]:
    """Split separable convolutions of few pixels and large weights into a depthwise and a pointwise one.

    With several threads and few pixels (late layers) the pointwise convolution divides its output channels among the
    threads, so that each streams a part of the weights. Fused, every thread would repeat the depthwise convolution.

    Returns:
        The nodes, shapes and blocks of the program.
    """
    shapes, blocks = dict(program.shapes), dict(program.blocks)
    nodes: list[Node] = []
    for node in program.nodes:
        depthwise = node.depthwise if isinstance(node, Convolution) else None
        n, _, h, w = shapes.get(node.output, (0, 0, 0, 0))
        few = threads > 1 and n * h * w < threads * FEW_PIXELS
        large = isinstance(node, Convolution) and node.weight.numel() * kernels.dtype.itemsize > cache_bytes(2) // 2
        if isinstance(node, Convolution) and depthwise and few and large:
            between = f"{node.output}.depthwise"
            multiplier, _, channels = depthwise.weight.shape
            shapes[between], blocks[between] = (n, multiplier * channels, h, w), multiplier
            nodes.append(DepthwiseConv(f"{node.name}.depthwise", node.input, between, depthwise))
            nodes.append(replace(node, input=between, depthwise=None))
        else:
            nodes.append(node)
    return tuple(nodes), shapes, blocks


def _steps(
    program: Program, first: OperationBuilder, early: int, shards: int, builder: OperationBuilder
) -> tuple[Step, ...]:
    """Build the steps: ``first`` builds the ``early`` nodes for one shard of the batch, ``builder`` the others."""
    runs: list[tuple[list[Operation], list[Node], TorchCall | None]] = []
    operations = [(first if early else builder).input()]
    nodes: list[Node] = [Copy("input", program.input, program.input)]
    covered = 0
    for at, node in enumerate(program.nodes):
        if isinstance(node, TorchCall):
            runs += [(operations, nodes, None), ([], [node], node)]
            operations, nodes = [], []
            continue
        built = (first if at < early else builder).operations(node)
        operations += built
        nodes += [node] * len(built)
        covered = len(operations) if at < early else covered
    runs.append((operations, nodes, None))
    _link_next_weights([operation for some, _, _ in runs for operation in some])
    steps = [Step(_array(some), tuple(of), call) for some, of, call in runs if some or call is not None]
    if covered:
        steps[0] = _with_task_lists(steps[0], covered, shards)
    return tuple(steps)


def _with_task_lists(step: Step, covered: int, shards: int) -> Step:
    """Repeat the first ``covered`` operations for each shard of the batch, in depth-first order."""
    first, rest = step.operations[:covered], step.operations[covered:]
    values = [(() if i == 0 else inputs_of(node), node.output) for i, node in enumerate(step.nodes[:covered])]
    for i, operation in enumerate(first):
        if operation.kind == Kind.REPAIR_NONFINITE:  # it also reads what it overwrites
            values[i] = (*values[i][0], values[i][1]), values[i][1]
    order = depth_first(first, values, tasks)
    task_lists = [[Part(part.operation + n * covered, part.begin, part.end) for part in order] for n in range(shards)]
    operations = [*(of_shard(operation, n) for n in range(shards) for operation in first), *rest]
    nodes = (*step.nodes[:covered] * shards, *step.nodes[covered:])
    return Step(_array(operations), nodes, task_lists=ThreadTaskLists.of(task_lists, shards * covered))


def _array(operations: Sequence[Operation]) -> ctypes.Array[Operation]:
    return (Operation * len(operations))(*operations)


def _link_next_weights(operations: Sequence[Operation]) -> None:
    """Store in each convolution the address of the weights to prefetch next; after the last, those of the first."""
    convolutions = [operation for operation in operations if operation.kind == Kind.CONVOLUTION]
    for operation, following in zip(convolutions, [*convolutions[1:], *convolutions[:1]], strict=True):
        operation.product.next_weights = following.product.weights


def _in_one_allocation(weights: Sequence[Tensor], steps: Sequence[Step]) -> Tensor:
    """Copy weights to one allocation, in the order in which they are read, and update the operations' addresses."""
    places: dict[int, int] = {}
    end = 0
    for tensor in weights:
        places[tensor.data_ptr()] = end
        end += padded(tensor.nbytes, CACHE_LINE)
    packed = zeros(end, torch.uint8)
    for tensor in weights:
        first = places[tensor.data_ptr()]
        packed[first : first + tensor.nbytes] = tensor.flatten().view(torch.uint8)
    readdress(steps, lambda address: packed.data_ptr() + places[address])
    return packed


def readdress(steps: Sequence[Step], moved: Callable[[int], int]) -> None:
    """Update the weights' addresses in the operations of steps."""
    for step in steps:
        for operation in step.operations:
            for params, name in operation.addresses():
                if (address := getattr(params, name)) is not None:
                    setattr(params, name, moved(address))
