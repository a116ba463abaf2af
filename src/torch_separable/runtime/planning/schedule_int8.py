"""From quantized nodes to operations on uint8 values, whose offsets and strides are in bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torch_separable.errors import SeparableError
from torch_separable.runtime.graph.ir import (
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
    Rename,
    Window,
    inputs_of,
)
from torch_separable.runtime.native.instruction_sets import InstructionSet
from torch_separable.runtime.native.operations import (
    PRECISIONS,
    Kind,
    MatrixSource,
    Operation,
    Requantization,
    WindowParams,
)
from torch_separable.runtime.planning.packing import pack_dense, pad_blocks, padded
from torch_separable.runtime.planning.packing_int8 import (
    BYTE_LANES,
    Constants,
    pack_filters_int8,
    pack_matrix_int8,
    whole_panels,
)
from torch_separable.runtime.planning.tiling import tile_of

UINT8 = PRECISIONS.index(torch.uint8)


def with_quantized_import(program: Program) -> tuple[Program, Quantize | None]:
    """Let the images be quantized as they are read, where nothing else reads them; also return how."""
    readers = [node for node in program.nodes if program.input in inputs_of(node)]
    if len(readers) != 1 or not isinstance(readers[0], Quantize) or program.input in program.outputs:
        return program, None
    nodes = tuple(node for node in program.nodes if node is not readers[0])
    return replace(program, input=readers[0].output, nodes=nodes), readers[0]


def byte_image_stride(program: Program) -> int | None:
    """Bytes of a pixel of a uint8 input that dense kernels alone read: they take four channels at a time."""
    readers = [node for node in program.nodes if program.input in inputs_of(node)]
    dense = [
        node for node in readers
        if isinstance(node, QuantizedConvolution) and node.groups == 1 and node.depthwise is None
        and not node.window.is_pointwise
    ]  # fmt: skip
    if program.input not in program.quantized or not dense or len(dense) < len(readers):
        return None
    return padded(program.shapes[program.input][1], 4)


@dataclass(frozen=True)
class Int8Builder:
    """Builds operations of quantized nodes.

    Attributes:
        program: whose values are placed.
        kernels: of uint8.
        dtype: of the values that are not quantized.
        threads: that share the work.
        offsets: of values, in bytes where they are uint8, in values of ``dtype`` elsewhere.
        strides: of their pixels, in values of their own type.
        lanes: what the channels of values are padded to.
        wide: values that are float32 where others are bfloat16.
        keep: holds a tensor that operations point to, and returns its address.
    """

    program: Program
    kernels: InstructionSet
    dtype: torch.dtype
    threads: int
    offsets: Mapping[str, int]
    strides: Mapping[str, int]
    lanes: Mapping[str, int]
    wide: frozenset[str]
    keep: Callable[[Tensor], int]

    def computes(self, node: Node) -> bool:
        """Whether a node works on uint8 values."""
        return any(name in self.program.quantized for name in (*inputs_of(node), node.output))

    def input(self, node: Quantize) -> Operation:
        """The operation that takes the images in, quantized by ``node``."""
        name = self.program.input
        n, c, h, w = self.program.shapes[name]
        operation = Operation(
            kind=Kind.IMPORT, precision=UINT8, instruction_set=self.kernels.number, output=self.offsets[name],
            second_input=-1, batch=n, in_height=h, in_width=w, in_channels=c, out_height=h, out_width=w,
            out_channels=c, out_stride=self.strides[name], out_padded=self.strides[name],
        )  # fmt: skip
        self._quantizes(operation, node)
        return operation

    def operations(self, node: Node) -> list[Operation]:
        """The operations that compute a node."""
        match node:
            case QuantizedConvolution():
                return self._convolution(node)
            case QuantizedConcat():
                return self._concat(node)
            case Rename():
                return []
            case Quantize():
                operation = self._base(Kind.QUANTIZE, node.input, node.output)
                self._quantizes(operation, node)
            case Dequantize():
                operation = self._base(Kind.DEQUANTIZE, node.input, node.output)
                own = operation.int8_elementwise
                own.zero_point, own.multiplier = self._of(node.input).zero_point, self._of(node.input).scale
                own.other_precision = self._float_precision(node.output)
            case QuantizedAdd():
                operation = self._base(Kind.ADD, node.input, node.output, node.residual)
                self._rescales(operation, node.input, node.output, node.residual, node.low, node.high)
                operation.int8_elementwise.multiplier = node.multiplier
                operation.int8_elementwise.second_multiplier = node.residual_multiplier
            case QuantizedScale():
                operation = self._base(Kind.SCALE, node.input, node.output, node.residual)
                self._rescales(operation, node.input, node.output, node.residual, node.low, node.high)
                operation.int8_elementwise.multiplier = node.multiplier
            case LookUp():
                operation = self._base(Kind.LOOK_UP, node.input, node.output)
                operation.int8_elementwise.table = self.keep(node.table.contiguous())
            case Pool():
                operation = self._base(Kind.POOL_MAX if node.maximum else Kind.POOL_AVERAGE, node.input, node.output)
                operation.int8_elementwise.window = _window(node.window)
                operation.int8_elementwise.count_padding = node.count_padding
                self._averages(operation, node)
            case Mean():
                operation = self._base(Kind.MEAN, node.input, node.output)
                self._averages(operation, node)
            case Copy():
                operation = self._base(Kind.COPY, node.input, node.output)
                own = operation.int8_elementwise
                own.channel_offset, own.out_zero_point = node.before, self._of(node.output).zero_point
                own.window, own.fills = (
                    _window(Window(stride=node.stride)),
                    operation.out_channels > operation.in_channels,
                )
            case _:
                raise AssertionError(f"{node.name}: no kernel computes it with uint8 values")
        return [operation]

    def _of(self, value: str) -> Quantization:
        return self.program.quantized[value]

    def _at(self, value: str) -> int:
        """The offset of a value in bytes."""
        size = 1 if value in self.program.quantized else self.dtype.itemsize
        return self.offsets[value] * size

    def _float_precision(self, value: str) -> int:
        return PRECISIONS.index(torch.float32 if value in self.wide else self.dtype)

    def _base(self, kind: Kind, source: str, output: str, second: str | None = None) -> Operation:
        n, c, h, w = self.program.shapes[source]
        _, m, oh, ow = self.program.shapes[output]
        return Operation(
            kind=kind, precision=UINT8, instruction_set=self.kernels.number,
            input=self._at(source), output=self._at(output),
            second_input=-1 if second is None else self._at(second),
            second_stride=0 if second is None else self.strides[second],
            batch=n, in_height=h, in_width=w, in_channels=c, in_stride=self.strides[source],
            out_height=oh, out_width=ow, out_channels=m, out_stride=self.strides[output],
            out_padded=self._padded(output),
        )  # fmt: skip

    def _padded(self, value: str) -> int:
        """Channels of a value with what fills the last vectors of its blocks."""
        blocks, channels = self.program.blocks.get(value, 1), self.program.shapes[value][1]
        return blocks * padded(channels // blocks, self.lanes[value])

    def _quantizes(self, operation: Operation, node: Quantize) -> None:
        own, to = operation.int8_elementwise, self._of(node.output)
        own.multiplier = float(1.0 / torch.tensor(to.scale, dtype=torch.float32))
        own.low, own.high, own.out_zero_point = node.low - to.zero_point, node.high - to.zero_point, to.zero_point
        if operation.kind == Kind.QUANTIZE:
            own.other_precision = self._float_precision(node.input)

    def _rescales(
        self, operation: Operation, source: str, output: str, second: str | None, low: float, high: float
    ) -> None:
        own = operation.int8_elementwise
        own.zero_point, own.out_zero_point = self._of(source).zero_point, self._of(output).zero_point
        own.second_zero_point = 0 if second is None else self._of(second).zero_point
        own.low, own.high = low, high

    def _averages(self, operation: Operation, node: Pool | Mean) -> None:
        self._rescales(operation, node.input, node.output, None, *self._of(node.output).bounds(node.activation))
        own = operation.int8_elementwise
        own.in_scale, own.out_scale = self._of(node.input).scale, self._of(node.output).scale
        if isinstance(node, Mean) and 255 * operation.in_height * operation.in_width >= 2**31:
            raise SeparableError(f"{node.name}: the sum over {operation.in_height}x{operation.in_width} pixels exceeds "
                                 "32 bits. Exclude the layer from quantization")  # fmt: skip

    def _concat(self, node: QuantizedConcat) -> list[Operation]:
        operations, channel = [], 0
        for name in node.inputs:
            operation = self._base(Kind.COPY, name, node.output)
            operation.int8_elementwise.window = _window(Window())
            operation.int8_elementwise.channel_offset = channel
            channel += operation.in_channels
            operations.append(operation)
        return operations

    def _convolution(self, node: QuantizedConvolution) -> list[Operation]:
        channels = self.program.shapes[node.input][1]
        blocks_in, blocks_out = (self.program.blocks.get(name, 1) for name in (node.input, node.output))
        outputs, of_group = node.weight.shape[:2]
        if node.depthwise is not None:
            return [self._separable(node, node.depthwise)]
        if node.groups == 1:
            return [self._dense(node)]
        if of_group == 1 and blocks_in == 1 and outputs == channels * blocks_out:
            return self._filters(node)
        if outputs == node.groups and of_group == blocks_in and blocks_out == 1:
            return [self._summed_filters(node)]
        return self._grouped(node, blocks_in, blocks_out)

    def _constants(self, node: QuantizedConvolution, zero_point: int) -> Constants:
        return Constants.of(node.name, node.weight, node.multiplier, node.offset, zero_point, self.kernels)

    def _requantization(self, node: QuantizedConvolution, constants: Constants) -> Requantization:
        to = self.program.quantized.get(node.output)
        residual = None if node.residual is None else self._of(node.residual)
        return Requantization(
            initial=self.keep(constants.initial), multiplier=self.keep(constants.multiplier),
            offset=self.keep(constants.offset), low=node.low, high=node.high,
            zero_point=0 if to is None else to.zero_point,
            output=UINT8 if to is not None else self._float_precision(node.output),
            residual_multiplier=node.residual_multiplier,
            residual_zero_point=0 if residual is None else residual.zero_point,
        )  # fmt: skip

    def _dense(self, node: QuantizedConvolution) -> Operation:
        operation = self._base(Kind.CONVOLUTION, node.input, node.output, node.residual)
        blocks = self.program.blocks.get(node.input, 1)
        weight = pad_blocks(node.weight, blocks, BYTE_LANES, 1) if blocks > 1 else node.weight
        convolution = operation.int8_convolution
        convolution.window, convolution.depth_multiplier = _window(node.window), 1
        convolution.input_zero_point = self._of(node.input).zero_point
        if node.window.is_pointwise:
            convolution.source, matrix = MatrixSource.POINTWISE, weight.flatten(1)
        else:
            # A row view's pixels are of one output row: rows too short to fill half of a micro-kernel are copied.
            shares = node.window.kernel != (1, 1) and node.window.dilation[1] == 1
            in_lines = shares and 2 * operation.out_width >= self.kernels.rows
            convolution.source = MatrixSource.ROW_VIEW if in_lines else MatrixSource.IM2COL
            operation.in_channels = padded(weight.shape[1], 4)
            matrix = pack_dense(weight, operation.in_channels)
        return self._product(operation, node, matrix, self._constants(node, self._of(node.input).zero_point))

    def _separable(self, node: QuantizedConvolution, stage: QuantizedConvolution) -> Operation:
        assert node.between is not None, f"{node.name}: the quantization of the depthwise result is missing"
        operation = self._base(Kind.CONVOLUTION, node.input, node.output, node.residual)
        blocks, channels = self.program.blocks.get(node.input, 1), stage.groups
        multiplier = stage.weight.shape[0] // channels
        # Channels in the order in which the input has them, and the kernels of each, outermost.
        order = torch.arange(channels * multiplier).view(channels // blocks, blocks, multiplier).permute(2, 1, 0)
        convolution = operation.int8_convolution
        convolution.window, convolution.source = _window(stage.window), MatrixSource.DEPTHWISE
        convolution.depth_multiplier = multiplier
        convolution.input_zero_point = self._of(node.input).zero_point
        constants = self._constants(stage, self._of(node.input).zero_point)
        constants = constants.reordered(order.flatten()).in_blocks(multiplier * blocks)
        filters = pad_blocks(stage.weight[order.flatten(), 0], multiplier * blocks, BYTE_LANES, 0)
        packed = [
            pack_filters_int8(kernels.permute(1, 2, 0)[None], self.kernels) for kernels in filters.chunk(multiplier)
        ]
        convolution.depthwise_weights = self.keep(torch.stack(packed))
        convolution.depthwise = Requantization(
            initial=self.keep(constants.initial), multiplier=self.keep(constants.multiplier),
            offset=self.keep(constants.offset), low=stage.low, high=stage.high,
            zero_point=node.between.zero_point, output=UINT8,
        )  # fmt: skip
        columns = order % multiplier * channels + order // multiplier
        matrix = pad_blocks(node.weight.flatten(1)[:, columns.flatten()], multiplier * blocks, BYTE_LANES, 1)
        return self._product(operation, node, matrix, self._constants(node, node.between.zero_point))

    def _product(
        self, operation: Operation, node: QuantizedConvolution, matrix: Tensor, constants: Constants
    ) -> Operation:
        kernels, convolution = self.kernels, operation.int8_convolution
        blocks, quantized = self.program.blocks.get(node.output, 1), node.output in self.program.quantized
        if blocks > 1:
            if not quantized:
                raise SeparableError(
                    f"{node.name}: its output is float32 in {blocks} blocks, which no int8 kernel writes"
                )
            matrix, constants = pad_blocks(matrix, blocks, BYTE_LANES, 0), constants.in_blocks(blocks)
        operation.out_channels = node.weight.shape[0]
        convolution.depth = padded(matrix.shape[1], kernels.depth)
        convolution.out_vectors = padded(matrix.shape[0], BYTE_LANES if quantized else kernels.vector) // kernels.vector
        convolution.weights = self.keep(pack_matrix_int8(matrix, kernels))
        convolution.result = self._requantization(node, constants.padded(whole_panels(kernels)))
        tile = tile_of(operation, kernels, self.threads, {})
        convolution.tile_rows, convolution.channel_splits = tile
        return operation

    def _filters(self, node: QuantizedConvolution) -> list[Operation]:
        """A depthwise convolution: an operation for each block of output channels."""
        channels, blocks = node.groups, self.program.blocks.get(node.output, 1)
        operations = []
        for block in range(blocks):
            operation = self._base(Kind.DEPTHWISE, node.input, node.output, node.residual)
            own = torch.arange(channels) * blocks + block
            weight = node.weight[own, 0].permute(1, 2, 0)[None]
            self._depthwise(
                operation, node, weight, self._constants(node, self._of(node.input).zero_point).reordered(own)
            )
            before = block * padded(channels, BYTE_LANES)
            operation.output += before
            operation.second_input += before if operation.second_input >= 0 else 0
            operation.out_channels = channels
            operations.append(operation)
        return operations

    def _summed_filters(self, node: QuantizedConvolution) -> Operation:
        """A convolution of groups whose channels lie a block apart: each block is filtered, and all are summed."""
        operation = self._base(Kind.DEPTHWISE, node.input, node.output, node.residual)
        weight = node.weight.permute(1, 2, 3, 0)
        self._depthwise(operation, node, weight, self._constants(node, self._of(node.input).zero_point))
        return operation

    def _depthwise(
        self, operation: Operation, node: QuantizedConvolution, weight: Tensor, constants: Constants
    ) -> None:
        own = operation.int8_depthwise
        own.window, own.channels = _window(node.window), padded(weight.shape[3], BYTE_LANES)
        own.summed_groups, own.input_zero_point = weight.shape[0], self._of(node.input).zero_point
        own.weights = self.keep(pack_filters_int8(weight, self.kernels))
        own.result = self._requantization(node, constants.padded(BYTE_LANES))

    def _grouped(self, node: QuantizedConvolution, blocks_in: int, blocks_out: int) -> list[Operation]:
        """A convolution for as many neighbouring groups together as read and write whole vectors.

        Those are a dense convolution whose weights are zero between the groups.
        """
        outputs, channels = node.weight.shape[0] // node.groups, node.weight.shape[1]
        apart = blocks_in == blocks_out == 1 and node.output in self.program.quantized
        together = next(
            n for n in range(1, node.groups + 1)
            if n == node.groups
            or (apart and node.groups % n == 0 and n * outputs % BYTE_LANES == 0 and n * channels % 4 == 0)
        )  # fmt: skip
        operations = []
        for first in range(0, node.groups, together):
            weight = node.weight.new_zeros(together * outputs, together * channels, *node.weight.shape[2:])
            for n in range(together):
                rows = slice((first + n) * outputs, (first + n + 1) * outputs)
                weight[n * outputs : (n + 1) * outputs, n * channels : (n + 1) * channels] = node.weight[rows]
            rows = slice(first * outputs, (first + together) * outputs)
            part = replace(node, weight=weight, multiplier=node.multiplier[rows], offset=node.offset[rows], groups=1)
            if blocks_in > 1 or blocks_out > 1:  # from PyTorch's order of channels to that of the values
                part = _in_order_of_blocks(part, blocks_in, blocks_out)
            operation = self._dense(part)
            operation.input += first * channels
            operation.output += first * outputs
            operation.second_input += first * outputs if operation.second_input >= 0 else 0
            operations.append(operation)
        return operations


def _in_order_of_blocks(node: QuantizedConvolution, blocks_in: int, blocks_out: int) -> QuantizedConvolution:
    outputs, channels = node.weight.shape[:2]
    rows = torch.arange(outputs).view(-1, blocks_out).T.flatten()
    columns = torch.arange(channels).view(-1, blocks_in).T.flatten()
    return replace(
        node, weight=node.weight[rows][:, columns], multiplier=node.multiplier[rows], offset=node.offset[rows]
    )


def _window(window: Window) -> WindowParams:
    return WindowParams(*window.kernel, *window.stride, *window.padding, *window.dilation)
