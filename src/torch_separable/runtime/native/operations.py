"""The operations of a compiled network as ctypes structures: the C structures of native/engine/operation.h and int8.h.

A structure has the layout of the C structure that its docstring names; the fields are documented there. Change both
together, and increment ``kInterface`` in native/engine/engine.cpp and ``_INTERFACE`` in library.py. Every class sets
``__slots__``, so that assigning to a misspelt field raises an error.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate

import torch


class Kind(IntEnum):
    """What an operation computes: ``ts_kind``."""

    IMPORT, CONVOLUTION, DEPTHWISE, POOL_MAX, POOL_AVERAGE, MEAN, ADD, SCALE, ACTIVATE, COPY, REPAIR_NONFINITE = range(
        11
    )
    ELEMENTWISE, RESAMPLE, STRIDED_COPY, NORMALIZE, SOFTMAX = range(11, 16)
    QUANTIZE, DEQUANTIZE, LOOK_UP, MATRIX_PRODUCT = range(16, 20)


class MatrixSource(IntEnum):
    """Where the left matrix of a convolution's matrix product comes from: ``ts_matrix_source``."""

    POINTWISE, IM2COL, DEPTHWISE, ROW_VIEW = range(4)

    @property
    def convolution(self) -> str:
        """Name of a convolution with this source, as reports show it."""
        return ("pointwise", "dense", "separable", "dense")[self]


# In the order of ``ts_precision``: an operation stores the index.
PRECISIONS = (torch.float32, torch.bfloat16, torch.uint8)
# The precisions that a network can be compiled for. uint8 is the type of quantized activations within either.
FLOATS = PRECISIONS[:2]


def _sizes(names: str) -> tuple[tuple[str, type[ctypes.c_int64]], ...]:
    return tuple((name, ctypes.c_int64) for name in names.split())


def _addresses(names: str) -> tuple[tuple[str, type[ctypes.c_void_p]], ...]:
    return tuple((name, ctypes.c_void_p) for name in names.split())


class ActivationParams(ctypes.Structure):
    """``ts_act``."""

    __slots__ = ()
    _fields_ = (
        ("kind", ctypes.c_int32),
        ("alpha", ctypes.c_float),
        ("beta", ctypes.c_float),
        ("reserved", ctypes.c_int32),
    )


class WindowParams(ctypes.Structure):
    """``ts_window``."""

    __slots__ = ()
    _fields_ = _sizes(
        "kernel_height kernel_width stride_height stride_width pad_height pad_width dilation_height dilation_width"
    )


class ExternalParams(ctypes.Structure):
    """``ts_external``."""

    __slots__ = ()
    _fields_ = (("first_image", ctypes.c_int64), ("strides", ctypes.c_int64 * 4))


class ConvolutionParams(ctypes.Structure):
    """``ts_convolution``."""

    __slots__ = ()
    _fields_ = (
        ("window", WindowParams),
        *_sizes(
            "source depth out_vectors tile_rows channel_splits channel_blocks paired_tail float_output depth_multiplier"
        ),
        ("depthwise_activation", ActivationParams),
        *_addresses("weights next_weights bias depthwise_weights depthwise_bias"),
    )


class DepthwiseParams(ctypes.Structure):
    """``ts_depthwise``."""

    __slots__ = ()
    _fields_ = (("window", WindowParams), *_sizes("channels summed_groups"), *_addresses("weights bias"))


class PoolParams(ctypes.Structure):
    """``ts_pool``."""

    __slots__ = ()
    _fields_ = (("window", WindowParams), ("count_padding", ctypes.c_int64))


class CopyParams(ctypes.Structure):
    """``ts_copy``."""

    __slots__ = ()
    _fields_ = _sizes("stride_height stride_width channel_offset")


class RepairParams(ctypes.Structure):
    """``ts_repair``."""

    __slots__ = ()
    _fields_ = (
        ("window", WindowParams),
        *_sizes("group_in_channels group_out_channels"),
        *_addresses("weights bias"),
    )


class ElementwiseParams(ctypes.Structure):
    """``ts_elementwise``."""

    __slots__ = ()
    _fields_ = (
        ("binary", ctypes.c_int64),
        ("first_strides", ctypes.c_int64 * 4),
        ("second_strides", ctypes.c_int64 * 4),
        *_addresses("constant"),
    )


class ResampleParams(ctypes.Structure):
    """``ts_resample``."""

    __slots__ = ()
    _fields_ = (
        ("blends", ctypes.c_int64),
        ("fill", ctypes.c_float),
        ("reserved", ctypes.c_int32),
        *_addresses("rows columns row_weights column_weights"),
    )


COPY_DIMENSIONS = 8  # kCopyDimensions in operation.h


class StridedCopyParams(ctypes.Structure):
    """``ts_strided_copy``."""

    __slots__ = ()
    _fields_ = (
        *((name, ctypes.c_int64 * COPY_DIMENSIONS) for name in ("sizes", "in_strides", "out_strides")),
        ("keeps_padding", ctypes.c_int64),
    )


class NormalizeParams(ctypes.Structure):
    """``ts_normalize``."""

    __slots__ = ()
    _fields_ = (
        *_sizes("group_channels chunk"),
        ("epsilon", ctypes.c_float),
        ("reserved", ctypes.c_int32),
        *_addresses("weight bias"),
    )


class MatrixProductParams(ctypes.Structure):
    """``ts_matrix_product``."""

    __slots__ = ()
    _fields_ = (("transposed", ctypes.c_int64), ("scale", ctypes.c_float), ("reserved", ctypes.c_int32))


class Requantization(ctypes.Structure):
    """``ts_requantization``."""

    __slots__ = ()
    _fields_ = (
        *_addresses("initial multiplier offset"),
        ("low", ctypes.c_float),
        ("high", ctypes.c_float),
        ("zero_point", ctypes.c_int32),
        ("output", ctypes.c_int32),
        ("residual_multiplier", ctypes.c_float),
        ("residual_zero_point", ctypes.c_int32),
    )


class Int8ConvolutionParams(ctypes.Structure):
    """``ts_int8_convolution``."""

    __slots__ = ()
    _fields_ = (
        ("window", WindowParams),
        *_sizes("source depth out_vectors tile_rows channel_splits depth_multiplier input_zero_point"),
        *_addresses("weights next_weights"),
        ("result", Requantization),
        *_addresses("depthwise_weights"),
        ("depthwise", Requantization),
    )


class Int8DepthwiseParams(ctypes.Structure):
    """``ts_int8_depthwise``."""

    __slots__ = ()
    _fields_ = (
        ("window", WindowParams),
        *_sizes("channels summed_groups input_zero_point"),
        *_addresses("weights"),
        ("result", Requantization),
    )


class Int8ElementwiseParams(ctypes.Structure):
    """``ts_int8_elementwise``."""

    __slots__ = ()
    _fields_ = (
        ("external", ExternalParams),
        ("window", WindowParams),
        *_sizes("count_padding channel_offset fills"),
        *_addresses("table"),
        ("in_scale", ctypes.c_double),
        ("out_scale", ctypes.c_double),
        *((name, ctypes.c_float) for name in ("multiplier", "second_multiplier", "low", "high")),
        *((name, ctypes.c_int32) for name in ("zero_point", "second_zero_point", "out_zero_point", "other_precision")),
    )


class _ByKind(ctypes.Union):
    """The parameters of an operation; which field is valid follows from the operation's kind and precision."""

    __slots__ = ()
    _fields_ = (
        ("external", ExternalParams),
        ("convolution", ConvolutionParams),
        ("depthwise", DepthwiseParams),
        ("pool", PoolParams),
        ("copy", CopyParams),
        ("repair", RepairParams),
        ("elementwise", ElementwiseParams),
        ("resample", ResampleParams),
        ("strided_copy", StridedCopyParams),
        ("normalize", NormalizeParams),
        ("matrix_product", MatrixProductParams),
        ("int8_convolution", Int8ConvolutionParams),
        ("int8_depthwise", Int8DepthwiseParams),
        ("int8_elementwise", Int8ElementwiseParams),
    )


_PARAMS_WITH_WINDOW = {
    Kind.CONVOLUTION: "convolution",
    Kind.DEPTHWISE: "depthwise",
    Kind.POOL_MAX: "pool",
    Kind.POOL_AVERAGE: "pool",
    Kind.REPAIR_NONFINITE: "repair",
}


class Operation(ctypes.Structure):
    """One step of a compiled network: ``ts_operation``."""

    __slots__ = ()
    _anonymous_ = ("_by_kind",)
    _fields_ = (
        ("kind", ctypes.c_int32),
        ("precision", ctypes.c_int32),
        ("instruction_set", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("activation", ActivationParams),
        *_sizes("input output second_input second_stride batch"),
        *_sizes("in_height in_width in_channels in_stride out_height out_width out_channels out_stride"),
        *_sizes("out_padded"),
        ("_by_kind", _ByKind),
    )

    @property
    def window(self) -> WindowParams:
        """The window of a convolution, depthwise convolution, pooling or repair; other kinds have none (KeyError)."""
        params = self._int8 if self.is_int8 else getattr(self, _PARAMS_WITH_WINDOW[Kind(self.kind)])
        window: WindowParams = params.window
        return window

    @property
    def is_int8(self) -> bool:
        """Whether it works on uint8 activations, where offsets and strides count bytes."""
        return bool(self.precision == PRECISIONS.index(torch.uint8))

    @property
    def product(self) -> ConvolutionParams | Int8ConvolutionParams:
        """The parameters of a convolution, floating-point or int8."""
        params: ConvolutionParams | Int8ConvolutionParams = self.int8_convolution if self.is_int8 else self.convolution
        return params

    @property
    def _int8(self) -> ctypes.Structure:
        names = {Kind.CONVOLUTION: "int8_convolution", Kind.DEPTHWISE: "int8_depthwise"}
        params: ctypes.Structure = getattr(self, names.get(Kind(self.kind), "int8_elementwise"))
        return params

    @property
    def has_window(self) -> bool:
        """Whether each output pixel is computed from a window of input pixels."""
        return Kind(self.kind) in _PARAMS_WITH_WINDOW

    def addresses(self) -> Iterator[tuple[ctypes.Structure, str]]:
        """Yield (structure, field name) for every field that holds the address of weights or tables."""
        held: ctypes.Structure
        if self.is_int8:
            yield from self._int8_addresses()
            return
        match self.kind:
            case Kind.CONVOLUTION:
                held, names = self.convolution, "weights next_weights bias depthwise_weights depthwise_bias"
            case Kind.DEPTHWISE:
                held, names = self.depthwise, "weights bias"
            case Kind.REPAIR_NONFINITE:
                held, names = self.repair, "weights bias"
            case Kind.ELEMENTWISE:
                held, names = self.elementwise, "constant"
            case Kind.RESAMPLE:
                held, names = self.resample, "rows columns row_weights column_weights"
            case Kind.NORMALIZE:
                held, names = self.normalize, "weight bias"
            case _:
                return
        for name in names.split():
            yield held, name

    def _int8_addresses(self) -> Iterator[tuple[ctypes.Structure, str]]:
        names, results = {
            Kind.CONVOLUTION: ("weights next_weights depthwise_weights", "result depthwise"),
            Kind.DEPTHWISE: ("weights", "result"),
            Kind.LOOK_UP: ("table", ""),
        }.get(Kind(self.kind), ("", ""))
        for name in names.split():
            yield self._int8, name
        for result in results.split():
            for name in ("initial", "multiplier", "offset"):
                yield getattr(self._int8, result), name


class Part(ctypes.Structure):
    """Tasks ``begin`` to ``end`` of the operation at index ``operation``: ``ts_part``."""

    __slots__ = ()
    _fields_ = tuple((name, ctypes.c_int64) for name in ("operation", "begin", "end"))


@dataclass(frozen=True)
class ThreadTaskLists:
    """Independent lists of tasks, which run before the operations that no list contains.

    A thread runs a whole list in order, so that its caches hold what the list's next task reads.

    Attributes:
        parts: Tasks of all lists, one list after the other.
        ends: For each list, the index in ``parts`` behind its last task.
        covered: Number of operations, counted from the first, that the lists execute.
    """

    parts: ctypes.Array[Part]
    ends: ctypes.Array[ctypes.c_int64]
    covered: int

    @staticmethod
    def of(lists: Sequence[Sequence[Part]], covered: int) -> ThreadTaskLists:
        """Flatten lists of parts into the two arrays that the library takes."""
        parts = [part for tasks in lists for part in tasks]
        ends = list(accumulate(map(len, lists)))
        return ThreadTaskLists((Part * len(parts))(*parts), (ctypes.c_int64 * len(ends))(*ends), covered)
