"""From a node to operations: the parameters, weights and offsets that the kernels read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from torch_separable.runtime.graph.ir import (
    Activate,
    Activation,
    Add,
    Binary,
    BinaryOperator,
    Concat,
    Convolution,
    Copy,
    DepthwiseConv,
    MatrixProduct,
    Mean,
    Native,
    Normalize,
    Pool,
    Program,
    Quantize,
    Quantized,
    Rearrange,
    Rename,
    Resample,
    Scale,
    Slice,
    Softmax,
    Window,
    inputs_of,
)
from torch_separable.runtime.native.instruction_sets import InstructionSet, built_sets
from torch_separable.runtime.native.operations import (
    PRECISIONS,
    ActivationParams,
    Kind,
    MatrixSource,
    Operation,
    WindowParams,
)
from torch_separable.runtime.planning.aliasing import Place
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
from torch_separable.runtime.planning.schedule_int8 import (
    Int8Builder,
)
from torch_separable.runtime.planning.strides import broadcast_strides, row_view_channels
from torch_separable.runtime.planning.tiling import Tile, tile_of


class OperationBuilder:
    """Builds the operations of a program for one instruction set and number of threads.

    Attributes:
        program: the program.
        kernels: the instruction set.
        threads: number of threads.
        offsets: offset of each value in the workspace; see `Schedule`.
        strides: elements from a pixel of each value to the next.
        lanes: vector width that each value's channels are padded to.
        tiles: measured tile sizes by `shape_key`.
        wide: outputs that are float32 although the kernels' type is bfloat16.
        weights: packed weights; building an operation appends its own.
        places: where each value lies in another one; see aliasing.py.
        depth_first: whether the operations run depth first, in small tiles.
        quantize: quantization of the images as they are imported.
    """

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
            bytewise = built_sets(torch.uint8)[kernels.name]
            self.int8 = Int8Builder(
                program, bytewise, kernels.dtype, threads, offsets, strides, lanes, wide, self._keep
            )

    def _set_for(self, node: Native) -> InstructionSet:
        """The set that runs a node: the narrow one if a value that it reads or writes in vectors is padded for it."""
        values = [*inputs_of(node), node.output]
        if isinstance(node, Convolution) and node.depthwise is None:
            values = values[1:]  # dense kernels broadcast single elements of the input
        narrow = self.kernels.narrow
        return narrow if narrow is not None and narrow.lanes in map(self.lanes.get, values) else self.kernels

    def input(self) -> Operation:
        """The operation that imports the images into the workspace."""
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
                return self._depthwise(node)
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
            case MatrixProduct():
                return [self._matrix_product(node)]
            case _:
                raise TypeError(f"{node.name}: no kernel computes a {type(node).__name__} of float values")

    def _binary(self, node: Binary) -> Operation:
        operation, shapes = self._base(Kind.ELEMENTWISE, node), self.program.shapes
        params = operation.elementwise
        params.binary = int(node.operator)
        operation.batch = shapes[node.output][0]
        if node.operator is not BinaryOperator.SECOND:  # reads nothing of its first operand
            params.first_strides[:] = broadcast_strides(shapes[node.input], self.strides[node.input])
        if node.second is not None:
            operation.second_input = self.offsets[node.second]
            params.second_strides[:] = broadcast_strides(shapes[node.second], self.strides[node.second])
            return operation
        assert node.constant is not None
        channels = node.constant.shape[1]
        stored = pad_blocks(node.constant.float(), 1, self.lanes[node.output], 1) if channels > 1 else node.constant
        stored = stored.permute(0, 2, 3, 1).contiguous()
        params.constant = self._keep(stored)
        n, c, h, w = node.constant.shape
        params.second_strides[:] = broadcast_strides((n, c, h, w), stored.shape[3])
        return operation

    def _matrix_product(self, node: MatrixProduct) -> Operation:
        operation = self._base(Kind.MATRIX_PRODUCT, node)
        operation.second_input, operation.second_stride = self.offsets[node.second], self.strides[node.second]
        operation.matrix_product.transposed, operation.matrix_product.scale = node.transposed, node.scale
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
            return []  # a view: no copy
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
                # Along other dimensions than channels, each part is copied with its padding channels.
                n, c, h, w = shapes[name]
                moved = (n, c if node.axis == 1 else operation.out_padded, h, w)
                params = strided_copy(copying(moved, source, target), keeps_padding=node.axis != 1 or not last)
                operation.output += start * target[node.axis]
                if node.axis == 1 and last:
                    # The last part clears the padding channels of the whole.
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
            channels = node.weight.shape[1]
            padded_channels = row_view_channels(node, operation.out_width, kernels)
            if (
                padded_channels is not None
                and padded_channels > channels
                and not self._padded_to(node, padded_channels)
            ):
                padded_channels = None
            convolution.source = MatrixSource.IM2COL if padded_channels is None else MatrixSource.ROW_VIEW
            matrix = pack_dense(node.weight, padded_channels or channels)
        convolution.depth = padded(matrix.shape[1], kernels.depth)
        bias = node.bias
        if blocks_out > 1:
            matrix, bias = pad_blocks(matrix, blocks_out, lanes_out, 0), pad_blocks(bias, blocks_out, lanes_out, 0)
        if depthwise is None:  # channels of one group
            taps = convolution.window.kernel_height * convolution.window.kernel_width
            is_row_view = convolution.source == MatrixSource.ROW_VIEW
            operation.in_channels = convolution.depth // taps if is_row_view else node.weight.shape[1]
            operation.out_channels = node.weight.shape[0]
        convolution.out_vectors = padded(matrix.shape[0], lanes_out) // kernels.vector
        convolution.paired_tail = has_paired_tail(matrix.shape[0], kernels)
        convolution.weights = self._keep(pack_matrix(matrix, kernels))
        convolution.bias = self._keep(pack_bias(bias, kernels))
        tile = tile_of(operation, kernels, self.threads, self.tiles, self.depth_first)
        convolution.tile_rows, convolution.channel_splits = tile
        return operation

    def _fits(self, node: Convolution) -> bool:
        """Whether reading the channels in multiples of ``depth`` stays within the input's own padding."""
        channels = node.weight.shape[1]
        return channels % self.kernels.depth == 0 or channels == self.program.shapes[node.input][1]

    def _padded_to(self, node: Convolution, channels: int) -> bool:
        """Whether ``channels`` channels can be read: the input's own and zeros, but none of another group."""
        return node.weight.shape[1] == self.program.shapes[node.input][1] and channels <= self.strides[node.input]

    def _grouped(self, node: Convolution) -> list[Operation]:
        """One convolution for each group, or for several neighbouring groups whose outputs fill whole vectors.

        Merged groups are a dense convolution whose weights are zero between groups; the zeros fill vector lanes that
        would be idle. 0 × ∞ is NaN, so where an input is not finite, `Kind.REPAIR_NONFINITE` recomputes the outputs.
        """
        outputs, channels = node.weight.shape[0] // node.groups, node.weight.shape[1]
        lanes = self.lanes[node.output]
        merged = next(
            n for n in range(1, node.groups + 1)
            if node.groups % n == 0 and (n * outputs % lanes == 0 or n == node.groups)
        )  # fmt: skip
        operations = []
        for first in range(0, node.groups, merged):
            weight = node.weight.new_zeros(merged * outputs, merged * channels, *node.weight.shape[2:])
            for n in range(merged):
                rows = slice((first + n) * outputs, (first + n + 1) * outputs)
                weight[n * outputs : (n + 1) * outputs, n * channels : (n + 1) * channels] = node.weight[rows]
            bias = node.bias[first * outputs : (first + merged) * outputs]
            operation = self._convolution(replace(node, weight=weight, bias=bias, groups=1))
            operation.input += first * channels
            operation.output += first * outputs
            operation.second_input += first * outputs if operation.second_input >= 0 else 0
            operations.append(operation)
        if merged > 1:
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

    def _depthwise(self, node: DepthwiseConv) -> list[Operation]:
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


def _native(activation: Activation) -> ActivationParams:
    return ActivationParams(int(activation.kind), activation.alpha, activation.beta, 0)


def _window(window: Window) -> WindowParams:
    return WindowParams(*window.kernel, *window.stride, *window.padding, *window.dilation)
