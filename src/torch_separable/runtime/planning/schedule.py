"""From a program to operations: tiles, tasks, and the place of every value in one workspace."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from torch_separable._system.hardware import cache_bytes
from torch_separable.runtime.graph.ir import (
    Activate,
    Activation,
    Add,
    Binary,
    Concat,
    Convolution,
    Copy,
    DepthwiseConv,
    Dequantize,
    Mean,
    Native,
    Node,
    Normalize,
    Pool,
    Program,
    Quantize,
    Quantized,
    QuantizedConvolution,
    Rearrange,
    Rename,
    Resample,
    Scale,
    Slice,
    Softmax,
    TorchCall,
    Window,
    inputs_of,
)
from torch_separable.runtime.native.bindings import tasks
from torch_separable.runtime.native.huge_pages import ENOUGH, zeros
from torch_separable.runtime.native.instruction_sets import InstructionSet, instruction_sets
from torch_separable.runtime.native.operations import (
    PRECISIONS,
    ActivationParams,
    Kind,
    MatrixSource,
    Operation,
    Part,
    ThreadTaskLists,
    WindowParams,
)
from torch_separable.runtime.planning.aliasing import Place, aliases
from torch_separable.runtime.planning.depth_first import depth_first, early_layers, of_share
from torch_separable.runtime.planning.memory_plan import CACHE_LINE, place
from torch_separable.runtime.planning.movement import copying, rearranging, strided_copy, value_strides
from torch_separable.runtime.planning.packing import (
    even_odd,
    has_paired_tail,
    pack_bias,
    pack_dense,
    pack_filters,
    pack_matrix,
    pad_blocks,
    padded,
)
from torch_separable.runtime.planning.packing_int8 import BYTE_LANES
from torch_separable.runtime.planning.schedule_int8 import (
    Int8Builder,
    byte_image_stride,
    with_quantized_import,
)
from torch_separable.runtime.planning.tiling import FEW_PIXELS, Tile, tile_of


@dataclass(frozen=True)
class Step:
    """A run of native operations, or one call of PyTorch.

    Attributes:
        operations: prepared for the library; empty for a call.
        nodes: what they compute, in order (an operation each).
        call: of PyTorch.
        task_lists: in which the first operations run, depth first, each with operations of its own for its share of
            the images; ``None`` for one operation after the other.
    """

    operations: ctypes.Array[Operation]
    nodes: tuple[Node, ...]
    call: TorchCall | None = None
    task_lists: ThreadTaskLists | None = None

    @property
    def shard_groups(self) -> list[range]:
        """Places of the operations that are one for different shares of the images; mostly each by itself."""
        covered, shares = (0, 1) if self.task_lists is None else (self.task_lists.covered, len(self.task_lists.ends))
        early = [range(place, covered, covered // shares) for place in range(covered // shares)]
        return early + [range(place, place + 1) for place in range(covered, len(self.operations))]


@dataclass(frozen=True)
class Schedule:
    """A program prepared for one instruction set and number of threads.

    Attributes:
        program: as it was scheduled.
        steps: in order.
        offsets: place of each value in the workspace, in values of the kernels' type; of uint8 values, in bytes.
        strides: of a pixel of each value, in values of its own type.
        size: of the workspace, in values of the kernels' type.
        wide: outputs that are float32 where all other values are bfloat16.
        padded: channels of each value with the zeros that fill its last vector.
        weights: packed, in one piece where that fills large pages; operations name them by address.
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
    """Prepare ``program`` for ``threads`` threads, with ``tiles`` by `shape_key` where they are known."""
    nodes = _unfused(program, kernels, threads)
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
    stride = byte_image_stride(program) if quantize else _image_stride(program, kernels)
    if stride is not None:
        strides[program.input] = stride
    places = aliases(program, kernels.lanes)
    for name, where in places.items():
        lanes[name], strides[name] = lanes[where.root], strides[where.root]
    # Every thread takes images of its own through the early layers, where there are as many for each.
    images = program.shapes[program.input][0]
    shares = threads if images % threads == 0 else 1
    share = replace(program, shapes={name: (n // shares, c, h, w) for name, (n, c, h, w) in program.shapes.items()})
    early = early_layers(share, strides, bytes_each) if shares == threads else 0
    wide = _wide(program) if kernels.dtype == torch.bfloat16 else frozenset()
    sizes = {**dict.fromkeys(wide, 4), **dict.fromkeys(program.quantized, 1)}
    room = {name: stride * sizes.get(name, bytes_each) for name, stride in strides.items()}
    roots, size = place(program, room, early, places)
    offsets = {
        name: roots[where.root] // (1 if name in program.quantized else bytes_each)
        + where.pixel * strides[name]
        + where.channel
        for name, where in places.items()
        if where.root in roots
    }
    weights: list[Tensor] = []
    builder = _Builder(
        program, kernels, threads, offsets, strides, lanes, tiles, wide, weights, places, quantize=quantize
    )
    known = {} if shares > 1 else tiles
    first = _Builder(share, kernels, 1, offsets, strides, lanes, known, wide, weights, places, depth_first=True)
    steps = _steps(program, first, early, shares, builder)
    widths = {
        name: blocks * padded(shape[1] // blocks, lanes[name])
        for name, shape in program.shapes.items()
        for blocks in (program.blocks.get(name, 1),)
    }
    kept = (_side_by_side(weights, steps),) if sum(tensor.nbytes for tensor in weights) >= ENOUGH else tuple(weights)
    return Schedule(program, steps, offsets, strides, size // bytes_each, wide, kept, widths)


def _wide(program: Program) -> frozenset[str]:
    """Outputs of the network that convolutions give and nothing else reads: the sums are returned as they are."""
    read = {name for node in program.nodes for name in inputs_of(node)}
    made = {
        node.output
        for node in program.nodes
        if (isinstance(node, Convolution) and node.groups == 1)
        or (isinstance(node, QuantizedConvolution | Dequantize) and node.output not in program.quantized)
    }
    return frozenset(name for name in program.outputs if name in made - read)


def _unfused(
    program: Program, kernels: InstructionSet, threads: int
) -> tuple[tuple[Node, ...], dict[str, tuple[int, int, int, int]], dict[str, int]]:
    """Split separable convolutions whose weights are too large for every thread to stream them all.

    With several threads and few pixels (late layers) the output channels are shared out instead of the pixels, and the
    depthwise stage is computed once, not by every thread.
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


def _image_stride(program: Program, kernels: InstructionSet) -> int | None:
    """Values of a pixel of the input where it need not be padded to whole vectors; ``None`` where it must be.

    Dense kernels alone read single values of it. Of few channels a run of pixels is one copy for them.
    """
    channels = program.shapes[program.input][1]
    readers = [node for node in program.nodes if program.input in inputs_of(node)]
    dense = [
        node for node in readers
        if isinstance(node, Convolution) and node.depthwise is None and not node.window.is_pointwise
    ]  # fmt: skip
    if not dense or len(dense) < len(readers):
        return None
    in_lines = {line_channels(node, program.shapes[node.output][3], kernels) for node in dense}
    return max(channels, in_lines.pop() or 0) if len(in_lines) == 1 else channels


def _steps(program: Program, first: _Builder, early: int, shares: int, builder: _Builder) -> tuple[Step, ...]:
    """Build the ``early`` nodes by ``first``, for one share of the images, to run depth first, then the others."""
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
    _look_ahead([operation for some, _, _ in runs for operation in some])
    steps = [Step(_array(some), tuple(of), call) for some, of, call in runs if some or call is not None]
    if covered:
        steps[0] = _with_task_lists(steps[0], covered, shares)
    return tuple(steps)


def _with_task_lists(step: Step, covered: int, shares: int) -> Step:
    """Let the first operations, of one share of the images, run depth first for each of the shares."""
    first, rest = step.operations[:covered], step.operations[covered:]
    values = [(() if i == 0 else inputs_of(node), node.output) for i, node in enumerate(step.nodes[:covered])]
    for i, operation in enumerate(first):
        if operation.kind == Kind.REPAIR_NONFINITE:  # of what it writes, the values that other operations have written
            values[i] = (*values[i][0], values[i][1]), values[i][1]
    order = depth_first(first, values, tasks)
    sequences = [[Part(part.operation + n * covered, part.begin, part.end) for part in order] for n in range(shares)]
    operations = [*(of_share(operation, n) for n in range(shares) for operation in first), *rest]
    nodes = (*step.nodes[:covered] * shares, *step.nodes[covered:])
    return Step(_array(operations), nodes, task_lists=ThreadTaskLists.of(sequences, shares * covered))


class _Builder:
    def __init__(
        self,
        program: Program,
        kernels: InstructionSet,
        threads: int,
        offsets: dict[str, int],
        strides: dict[str, int],
        lanes: dict[str, int],
        tiles: Mapping[str, Tile],
        wide: frozenset[str],
        weights: list[Tensor],
        places: Mapping[str, Place],
        depth_first: bool = False,
        quantize: Quantize | None = None,
    ) -> None:
        self.program, self.kernels, self.threads, self.wide = program, kernels, threads, wide
        self.precision = PRECISIONS.index(kernels.dtype)
        self.offsets, self.strides, self.lanes, self.tiles = offsets, strides, lanes, tiles
        self.weights, self.places, self.depth_first, self.quantize = weights, places, depth_first, quantize
        self.int8: Int8Builder | None = None
        if program.quantized:
            bytewise = instruction_sets(torch.uint8)[kernels.name]
            self.int8 = Int8Builder(
                program, bytewise, kernels.dtype, threads, offsets, strides, lanes, wide, self._keep
            )

    def _set_for(self, node: Native) -> InstructionSet:
        """The set that runs a node: the narrow one where a value that it takes vectors of is padded for that."""
        values = [*inputs_of(node), node.output]
        if isinstance(node, Convolution) and node.depthwise is None:
            values = values[1:]  # its input's values are taken one by one
        narrow = self.kernels.narrow
        return narrow if narrow is not None and narrow.lanes in map(self.lanes.get, values) else self.kernels

    def input(self) -> Operation:
        """The operation that takes the images in."""
        name = self.program.input
        if self.int8 is not None and self.quantize is not None:
            return self.int8.input(self.quantize)
        n, c, h, w = self.program.shapes[name]
        return Operation(
            kind=Kind.IMPORT, precision=self.precision, instruction_set=self.kernels.number,
            output=self.offsets[name], second_input=-1, batch=n, in_height=h, in_width=w, in_channels=c,
            out_height=h, out_width=w, out_channels=c, out_stride=self.strides[name], out_padded=self.strides[name],
        )  # fmt: skip

    def _base(self, kind: int, node: Native, source: str | None = None) -> Operation:
        source = inputs_of(node)[0] if source is None else source
        n, c, h, w = self.program.shapes[source]
        _, m, oh, ow = self.program.shapes[node.output]
        residual = getattr(node, "residual", None)
        blocks = self.program.blocks.get(node.output, 1)
        return Operation(
            kind=kind, precision=self.precision, instruction_set=self._set_for(node).number,
            activation=_native(getattr(node, "activation", Activation())),
            input=self.offsets[source],
            output=self.offsets[node.output],
            second_input=-1 if residual is None else self.offsets[residual],
            second_stride=0 if residual is None else self.strides[residual],
            batch=n, in_height=h, in_width=w, in_channels=c, in_stride=self.strides[source],
            out_height=oh, out_width=ow, out_channels=m, out_stride=self.strides[node.output],
            out_padded=blocks * padded(m // blocks, self.lanes[node.output]),
        )  # fmt: skip

    def operations(self, node: Native | Quantized) -> list[Operation]:
        """The operations that compute a node."""
        if self.int8 is not None and self.int8.computes(node):
            return self.int8.operations(node)
        match node:
            case Convolution() if node.groups > 1:
                return self._grouped(node)
            case Convolution():
                return [self._convolution(node)]
            case DepthwiseConv():
                return self._filtering(node)
            case Pool():
                operation = self._base(Kind.POOL_MAX if node.maximum else Kind.POOL_AVERAGE, node)
                operation.pool.window, operation.pool.count_padding = _window(node.window), node.count_padding
                return [operation]
            case Mean():
                return [self._base(Kind.MEAN, node)]
            case Add():
                return [self._base(Kind.ADD, node)]
            case Scale():
                return [self._base(Kind.SCALE, node)]
            case Activate():
                return [self._base(Kind.ACTIVATE, node)]
            case Copy():
                operation = self._base(Kind.COPY, node)
                operation.copy.stride_height, operation.copy.stride_width = node.stride
                operation.copy.channel_offset = node.before
                return [operation]
            case Binary():
                return [self._binary(node)]
            case Resample():
                return [self._resample(node)]
            case Rearrange():
                return [self._rearrange(node)]
            case Rename():
                return []
            case Slice():
                return self._slice(node)
            case Concat():
                return self._concat(node)
            case Normalize():
                return [self._normalize(node)]
            case Softmax():
                return [self._base(Kind.SOFTMAX, node)]
            case _:
                raise TypeError(f"{node.name}: no kernel computes a {type(node).__name__} of float values")

    def _binary(self, node: Binary) -> Operation:
        operation, shapes = self._base(Kind.ELEMENTWISE, node), self.program.shapes
        params = operation.elementwise
        params.binary = int(node.operator)
        params.first_strides[:] = _broadcast(shapes[node.input], self.strides[node.input])
        if node.second is not None:
            operation.second_input = self.offsets[node.second]
            params.second_strides[:] = _broadcast(shapes[node.second], self.strides[node.second])
            operation.batch = shapes[node.output][0]
            return operation
        assert node.constant is not None
        channels = node.constant.shape[1]
        stored = pad_blocks(node.constant.float(), 1, self.lanes[node.output], 1) if channels > 1 else node.constant
        stored = stored.permute(0, 2, 3, 1).contiguous()
        params.constant = self._keep(stored)
        n, c, h, w = node.constant.shape
        params.second_strides[:] = _broadcast((n, c, h, w), stored.shape[3])
        return operation

    def _resample(self, node: Resample) -> Operation:
        operation = self._base(Kind.RESAMPLE, node)
        params = operation.resample
        params.blends, params.fill = node.blends, node.fill
        params.rows, params.row_weights = self._keep(node.rows.indices), self._keep(node.rows.weights)
        params.columns, params.column_weights = self._keep(node.columns.indices), self._keep(node.columns.weights)
        return operation

    def _rearrange(self, node: Rearrange) -> Operation:
        operation = self._base(Kind.STRIDED_COPY, node)
        operation.batch = self.program.shapes[node.output][0]
        strides = self.strides[node.input], self.strides[node.output]
        operation.strided_copy = strided_copy(rearranging(node.sizes, node.input_axes, node.output_axes, *strides))
        return operation

    def _slice(self, node: Slice) -> list[Operation]:
        if self.places[node.output].root != node.output:
            return []  # it is read where it lies
        operation, shapes = self._base(Kind.STRIDED_COPY, node), self.program.shapes
        source = list(value_strides(shapes[node.input], self.strides[node.input]))
        operation.input += node.start * source[node.axis]
        source[node.axis] *= node.step
        target = value_strides(shapes[node.output], self.strides[node.output])
        operation.batch = shapes[node.output][0]
        operation.strided_copy = strided_copy(copying(shapes[node.output], source, target))
        return [operation]

    def _concat(self, node: Concat) -> list[Operation]:
        operations, start, shapes = [], 0, self.program.shapes
        whole = self.places[node.output]
        target = value_strides(shapes[node.output], self.strides[node.output])
        for i, name in enumerate(node.inputs):
            channels_before = start if node.axis == 1 else 0
            expected = Place(whole.root, whole.channel + channels_before, whole.pixel)
            if node.axis != 1 or self.places[name] != expected:
                operation = self._base(Kind.STRIDED_COPY, node, name)
                operation.batch = shapes[node.output][0]
                source = value_strides(shapes[name], self.strides[name])
                last = i == len(node.inputs) - 1
                # Along other dimensions than channels every part brings the zeros of its padding along.
                n, c, h, w = shapes[name]
                moved = (n, c if node.axis == 1 else operation.out_padded, h, w)
                params = strided_copy(copying(moved, source, target), keeps_padding=node.axis != 1 or not last)
                operation.output += start * target[node.axis]
                if node.axis == 1 and last:
                    # The padding that it clears lies behind the channels of the whole.
                    operation.out_channels, operation.out_padded = c, operation.out_padded - start
                operation.strided_copy = params
                operations.append(operation)
            start += shapes[name][node.axis]
        return operations

    def _normalize(self, node: Normalize) -> Operation:
        operation, channels = self._base(Kind.NORMALIZE, node), node.weight.shape[0]
        params, lanes = operation.normalize, self.lanes[node.output]
        params.epsilon = node.epsilon
        params.weight = self._keep(pad_blocks(node.weight.float(), 1, lanes, 0).contiguous())
        params.bias = self._keep(pad_blocks(node.bias.float(), 1, lanes, 0).contiguous())
        if node.groups is not None:
            params.group_channels = channels // node.groups
            chunk = math.lcm(params.group_channels, lanes)
            params.chunk = chunk if channels % chunk == 0 else channels
        return operation

    def _keep(self, tensor: Tensor) -> int:
        self.weights.append(tensor)
        return tensor.data_ptr()

    def _convolution(self, node: Convolution) -> Operation:
        kernels, lanes_in, lanes_out = self._set_for(node), self.lanes[node.input], self.lanes[node.output]
        blocks_in, blocks_out = (self.program.blocks.get(name, 1) for name in (node.input, node.output))
        depthwise = node.depthwise
        operation = self._base(Kind.CONVOLUTION, node)
        convolution = operation.convolution
        convolution.window = _window(node.window if depthwise is None else depthwise.window)
        convolution.channel_blocks, convolution.depth_multiplier = blocks_out, 1
        convolution.float_output = node.output in self.wide
        if depthwise is not None:
            convolution.source = MatrixSource.DEPTHWISE
            convolution.depth_multiplier = depthwise.weight.shape[0]
            convolution.depthwise_activation = _native(depthwise.activation)
            convolution.depthwise_weights = self._keep(pack_filters(depthwise.weight, lanes_in, kernels))
            convolution.depthwise_bias = self._keep(pack_filters(depthwise.bias[:, None], lanes_in, kernels))
            matrix = pad_blocks(node.weight.flatten(1), convolution.depth_multiplier, lanes_in, 1)
            matrix = even_odd(matrix.unflatten(1, (convolution.depth_multiplier, -1)), kernels).flatten(1)
        elif node.window.is_pointwise and self._fits(node):
            convolution.source = MatrixSource.POINTWISE
            matrix = node.weight.flatten(1)
            if blocks_in > 1:
                matrix = pad_blocks(matrix, blocks_in, lanes_in, 1)
        else:
            channels, more = node.weight.shape[1], line_channels(node, operation.out_width, kernels)
            if more is not None and more > channels and not self._padded_to(node, more):
                more = None
            convolution.source = MatrixSource.IM2COL if more is None else MatrixSource.ROW_VIEW
            matrix = pack_dense(node.weight, more or channels)
        convolution.depth = padded(matrix.shape[1], kernels.depth)
        bias = node.bias
        if blocks_out > 1:
            matrix, bias = pad_blocks(matrix, blocks_out, lanes_out, 0), pad_blocks(bias, blocks_out, lanes_out, 0)
        if depthwise is None:  # of a group, where there are several
            taps = convolution.window.kernel_height * convolution.window.kernel_width
            in_lines = convolution.source == MatrixSource.ROW_VIEW
            operation.in_channels = convolution.depth // taps if in_lines else node.weight.shape[1]
            operation.out_channels = node.weight.shape[0]
        convolution.out_vectors = padded(matrix.shape[0], lanes_out) // kernels.vector
        convolution.paired_tail = has_paired_tail(matrix.shape[0], kernels)
        convolution.weights = self._keep(pack_matrix(matrix, kernels))
        convolution.bias = self._keep(pack_bias(bias, kernels))
        tile = tile_of(operation, kernels, self.threads, self.tiles, self.depth_first)
        convolution.tile_rows, convolution.channel_splits = tile
        return operation

    def _fits(self, node: Convolution) -> bool:
        """Whether the channels that are read can be padded to the depth of the weights without reading a group's."""
        channels = node.weight.shape[1]
        return channels % self.kernels.depth == 0 or channels == self.program.shapes[node.input][1]

    def _padded_to(self, node: Convolution, channels: int) -> bool:
        """Whether as many channels can be read, those beyond the input's as zeros, and none of another group."""
        return node.weight.shape[1] == self.program.shapes[node.input][1] and channels <= self.strides[node.input]

    def _grouped(self, node: Convolution) -> list[Operation]:
        """A convolution for each group, or for as many neighbouring ones together as fill whole vectors of outputs.

        Those are a dense convolution whose weights are zero between the groups, which costs no more than the lanes of
        their vectors that would otherwise compute nothing. Where a value is not finite, that is NaN in its neighbours'
        outputs, so another operation computes what is NaN anew.
        """
        outputs, channels = node.weight.shape[0] // node.groups, node.weight.shape[1]
        lanes = self.lanes[node.output]
        together = next(
            n for n in range(1, node.groups + 1)
            if node.groups % n == 0 and (n * outputs % lanes == 0 or n == node.groups)
        )  # fmt: skip
        operations = []
        for first in range(0, node.groups, together):
            weight = node.weight.new_zeros(together * outputs, together * channels, *node.weight.shape[2:])
            for n in range(together):
                rows = slice((first + n) * outputs, (first + n + 1) * outputs)
                weight[n * outputs : (n + 1) * outputs, n * channels : (n + 1) * channels] = node.weight[rows]
            bias = node.bias[first * outputs : (first + together) * outputs]
            operation = self._convolution(replace(node, weight=weight, bias=bias, groups=1))
            operation.input += first * channels
            operation.output += first * outputs
            operation.second_input += first * outputs if operation.second_input >= 0 else 0
            operations.append(operation)
        if together > 1:
            operations.append(self._repair(node))
        return operations

    def _repair(self, node: Convolution) -> Operation:
        operation = self._base(Kind.REPAIR_NONFINITE, node)
        repair = operation.repair
        repair.window = _window(node.window)
        repair.group_in_channels, repair.group_out_channels = node.weight.shape[1], node.weight.shape[0] // node.groups
        rounded = node.weight.to(self.kernels.dtype).float()
        repair.weights = self._keep(rounded.flatten(2).transpose(1, 2).contiguous())
        repair.bias = self._keep(node.bias.float().contiguous())
        return operation

    def _filtering(self, node: DepthwiseConv) -> list[Operation]:
        kernels, lanes, depthwise = self._set_for(node), self.lanes[node.output], node.depthwise
        multiplier, _, channels = depthwise.weight.shape
        filters = pack_filters(depthwise.weight, lanes, kernels)
        bias = pack_filters(depthwise.bias[:, None], lanes, kernels)
        operations = []
        for block in range(1 if node.summed else multiplier):
            operation = self._base(Kind.DEPTHWISE, node)
            params = operation.depthwise
            params.window = _window(depthwise.window)
            operation.output += block * padded(channels, lanes)
            operation.out_channels, params.channels = channels, padded(channels, lanes)
            params.summed_groups = multiplier if node.summed else 1
            params.weights = self._keep(filters if node.summed else filters[block].contiguous())
            params.bias = self._keep(bias if node.summed else bias[block].contiguous())
            operations.append(operation)
        return operations


def _broadcast(shape: tuple[int, int, int, int], pixel_stride: int) -> tuple[int, int, int, int]:
    """Values from an image, a row, a pixel and a channel of an operand to the next; 0 where it is repeated."""
    n, c, h, w = shape
    image, channel, row, pixel = value_strides(shape, pixel_stride)
    return image if n > 1 else 0, row if h > 1 else 0, pixel if w > 1 else 0, channel if c > 1 else 0


def pixel_stride(channels: int, blocks: int, lanes: int, bytes_each: int) -> int:
    """Values from a pixel to the next: whole vectors of each block of channels, and perhaps a cache line.

    A page apart, or a whole part of one, neighbouring pixels would have their lines in the same few places of the L1
    cache, and those of a depthwise kernel's window would drive each other out. A line more is 6 % of the memory at
    most.
    """
    packed = blocks * padded(channels // blocks, lanes)
    return packed + (CACHE_LINE // bytes_each if blocks == 1 and packed * bytes_each % 1024 == 0 else 0)


def line_channels(node: Convolution, out_width: int, kernels: InstructionSet) -> int | None:
    """Say with how many channels a dense convolution reads its input's lines; ``None`` where it copies its patches.

    A row of its kernel must be one run of values, a whole number of what a product takes at a time, and begin at a
    whole word of four bytes, as bfloat16 are multiplied in pairs. Where it is not, more channels, which are zeros, may
    make it so, if they are few: a fourth one of an image where bfloat16 are multiplied as they are. Of a kernel that is
    one pixel there is nothing to share. And as a micro-kernel's pixels are of one row there, rows too short to fill
    half of it are better gathered.
    """
    channels, window = node.weight.shape[1], node.window
    fits = (
        window.kernel[1] * channels % kernels.depth == 0
        and window.stride[1] * channels * kernels.operand_bytes % 4 == 0
    )
    whole = channels if fits else padded(channels, kernels.depth)
    few = (whole - channels) * (3 if kernels.operand_bytes == kernels.dtype.itemsize else 16) <= channels
    shares = window.kernel != (1, 1) and window.dilation[1] == 1
    return whole if shares and few and 2 * out_width >= kernels.rows else None


def _native(activation: Activation) -> ActivationParams:
    return ActivationParams(int(activation.kind), activation.alpha, activation.beta, 0)


def _window(window: Window) -> WindowParams:
    return WindowParams(*window.kernel, *window.stride, *window.padding, *window.dilation)


def _array(operations: Sequence[Operation]) -> ctypes.Array[Operation]:
    return (Operation * len(operations))(*operations)


def _look_ahead(operations: Sequence[Operation]) -> None:
    """Tell each convolution whose weights are read after its own; after the last, those of the next call."""
    convolutions = [operation for operation in operations if operation.kind == Kind.CONVOLUTION]
    for operation, following in zip(convolutions, [*convolutions[1:], *convolutions[:1]], strict=True):
        operation.product.next_weights = following.product.weights


def _side_by_side(weights: Sequence[Tensor], steps: Sequence[Step]) -> Tensor:
    """Move weights to one piece of memory, in the order in which they are read, and tell the operations."""
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
    """Tell the operations of new steps where their weights have been moved to."""
    for step in steps:
        for operation in step.operations:
            for params, name in operation.addresses():
                if (address := getattr(params, name)) is not None:
                    setattr(params, name, moved(address))


def view_of(workspace: Tensor, schedule: Schedule, name: str, layout: str = "") -> Tensor:
    """A value in the workspace as the network sees it, in one of ``arrangement.LAYOUTS``, without copying."""
    n, c, h, w = schedule.program.shapes[name]
    stride, offset = schedule.strides[name], workspace.storage_offset() + schedule.offsets[name]
    if name in schedule.program.quantized:
        workspace = workspace.view(torch.uint8)
        offset = workspace.storage_offset() + schedule.offsets[name]
    elif name in schedule.wide:
        workspace, offset = workspace.view(torch.float32), offset // 2
    pixels = torch.as_strided(workspace, (n, c, h, w), (h * w * stride, 1, w * stride, stride), offset)
    match layout or ("NC" if name in schedule.program.vectors else "NCHW"):
        case "NC":
            return pixels[:, :, 0, 0]
        case "NHWC":
            return pixels.permute(0, 2, 3, 1)
        case "NLC":
            return pixels.flatten(2).transpose(1, 2)
        case "NCL":
            return pixels.flatten(2)
        case _:
            return pixels


def padding_of(workspace: Tensor, schedule: Schedule, name: str) -> Tensor:
    """What lies beyond the channels of a value's pixels: kernels multiply it by zero, so it must be finite."""
    n, c, h, w = schedule.program.shapes[name]
    if name in schedule.program.quantized:
        workspace = workspace.view(torch.uint8)
    stride, offset = schedule.strides[name], workspace.storage_offset() + schedule.offsets[name]
    more = schedule.padded[name] - c
    return torch.as_strided(workspace, (n * h * w, more), (stride, 1), offset + c)
