"""The door to the kernel library: finding it, choosing an instruction set, calling it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

import torch

from torch_separable.errors import SeparableError

_FILE = "libtorch_separable.so"

# Of the library's functions and what they take: `kInterface` of native/engine/engine.cpp.
_INTERFACE = 9


class Kind(IntEnum):
    """``ts_kind``."""

    IMPORT, CONVOLUTION, DEPTHWISE, POOL_MAX, POOL_AVERAGE, MEAN, ADD, SCALE, ACTIVATE, COPY, REPAIR_NONFINITE = range(
        11
    )
    ELEMENTWISE, RESAMPLE, STRIDED_COPY, NORMALIZE, SOFTMAX = range(11, 16)
    QUANTIZE, DEQUANTIZE, LOOK_UP = range(16, 19)


class MatrixSource(IntEnum):
    """``ts_matrix_source``."""

    POINTWISE, IM2COL, DEPTHWISE, ROW_VIEW = range(4)

    @property
    def convolution(self) -> str:
        """What a convolution whose matrix comes from there is called."""
        return ("pointwise", "dense", "separable", "dense")[self]


# In the order of ``ts_precision``.
PRECISIONS = (torch.float32, torch.bfloat16, torch.uint8)
# Those that a network is compiled for. uint8 values are those of quantized layers, beside either.
FLOATS = PRECISIONS[:2]


def _sizes(names: str) -> tuple[tuple[str, type[ctypes.c_int64]], ...]:
    return tuple((name, ctypes.c_int64) for name in names.split())


def _addresses(names: str) -> tuple[tuple[str, type[ctypes.c_void_p]], ...]:
    return tuple((name, ctypes.c_void_p) for name in names.split())


class ActivationParams(ctypes.Structure):
    """``ts_act``."""

    __slots__ = ()  # an assignment to a misspelt field raises
    _fields_ = (
        ("kind", ctypes.c_int32),
        ("alpha", ctypes.c_float),
        ("beta", ctypes.c_float),
        ("reserved", ctypes.c_int32),
    )


class WindowParams(ctypes.Structure):
    """``ts_window``."""

    __slots__ = ()  # an assignment to a misspelt field raises
    _fields_ = _sizes(
        "kernel_height kernel_width stride_height stride_width pad_height pad_width dilation_height dilation_width"
    )


class ExternalParams(ctypes.Structure):
    """``ts_external``."""

    __slots__ = ()  # an assignment to a misspelt field raises
    _fields_ = (("first_image", ctypes.c_int64), ("strides", ctypes.c_int64 * 4))


class ConvolutionParams(ctypes.Structure):
    """``ts_convolution``."""

    __slots__ = ()  # an assignment to a misspelt field raises
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

    __slots__ = ()  # an assignment to a misspelt field raises
    _fields_ = (("window", WindowParams), *_sizes("channels summed_groups"), *_addresses("weights bias"))


class PoolParams(ctypes.Structure):
    """``ts_pool``."""

    __slots__ = ()  # an assignment to a misspelt field raises
    _fields_ = (("window", WindowParams), ("count_padding", ctypes.c_int64))


class CopyParams(ctypes.Structure):
    """``ts_copy``."""

    __slots__ = ()  # an assignment to a misspelt field raises
    _fields_ = _sizes("stride_height stride_width channel_offset")


class RepairParams(ctypes.Structure):
    """``ts_repair``."""

    __slots__ = ()  # an assignment to a misspelt field raises
    _fields_ = (
        ("window", WindowParams),
        *_sizes("group_in_channels group_out_channels"),
        *_addresses("weights bias"),
    )


class ElementwiseParams(ctypes.Structure):
    """``ts_elementwise``."""

    _fields_ = (
        ("binary", ctypes.c_int64),
        ("first_strides", ctypes.c_int64 * 4),
        ("second_strides", ctypes.c_int64 * 4),
        *_addresses("constant"),
    )


class ResampleParams(ctypes.Structure):
    """``ts_resample``."""

    _fields_ = (
        ("blends", ctypes.c_int64),
        ("fill", ctypes.c_float),
        ("reserved", ctypes.c_int32),
        *_addresses("rows columns row_weights column_weights"),
    )


COPY_DIMENSIONS = 8  # kCopyDimensions


class StridedCopyParams(ctypes.Structure):
    """``ts_strided_copy``."""

    _fields_ = (
        *((name, ctypes.c_int64 * COPY_DIMENSIONS) for name in ("sizes", "in_strides", "out_strides")),
        ("keeps_padding", ctypes.c_int64),
    )


class NormalizeParams(ctypes.Structure):
    """``ts_normalize``."""

    _fields_ = (
        *_sizes("group_channels chunk"),
        ("epsilon", ctypes.c_float),
        ("reserved", ctypes.c_int32),
        *_addresses("weight bias"),
    )


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
    __slots__ = ()  # an assignment to a misspelt field raises
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
    """``ts_operation``: see native/engine/operation.h."""

    __slots__ = ()  # an assignment to a misspelt field raises
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
        """The window of a convolution, a depthwise stage, a pooling or a repair; other kinds have none."""
        params = self._int8 if self.is_int8 else getattr(self, _PARAMS_WITH_WINDOW[Kind(self.kind)])
        window: WindowParams = params.window
        return window

    @property
    def is_int8(self) -> bool:
        """Whether it computes with uint8 values: its offsets and strides are in bytes."""
        return bool(self.precision == PRECISIONS.index(torch.uint8))

    @property
    def product(self) -> ConvolutionParams | Int8ConvolutionParams:
        """What a convolution of either kind says of its matrix product."""
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
        """Yield the struct and the field of every address of weights that an operation of this kind holds."""
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
    """``ts_part``: tasks of an operation, by its place."""

    __slots__ = ()  # an assignment to a misspelt field raises
    _fields_ = tuple((name, ctypes.c_int64) for name in ("operation", "begin", "end"))


@dataclass(frozen=True)
class ThreadTaskLists:
    """Lists of tasks that are independent of each other, which run before the operations that they do not cover.

    A thread takes a whole list and runs it in order, so that its caches hold what the list's next task reads.

    Attributes:
        parts: The tasks of all lists, one list after the other.
        ends: Where each list ends among the parts.
        covered: How many operations, from the first, the lists execute.
    """

    parts: ctypes.Array[Part]
    ends: ctypes.Array[ctypes.c_int64]
    covered: int

    @staticmethod
    def of(lists: Sequence[Sequence[Part]], covered: int) -> ThreadTaskLists:
        """Put lists in the form that the library takes."""
        parts = [part for tasks in lists for part in tasks]
        ends = list(accumulate(map(len, lists)))
        return ThreadTaskLists((Part * len(parts))(*parts), (ctypes.c_int64 * len(ends))(*ends), covered)


@dataclass(frozen=True)
class InstructionSet:
    """The kernels of one instruction set, for values of one type.

    Attributes:
        number: by which the library knows it.
        name: ``baseline``, ``avx2``, ``avxvnni``, ``avx512``, ``avx512vnni``, ``avx512bf16``, ``amx``.
        dtype: of the values: ``torch.float32``, ``torch.bfloat16`` or, for int8 weights, ``torch.uint8``.
        vector: values of a vector.
        panel: output channels of a panel of packed weights.
        rows: pixels that a micro-kernel computes at once.
        lanes: channels are padded to multiples of it.
        depth: so are the rows of packed weights.
        operand_bytes: bytes of a pixel's value when it is multiplied: 4 where bfloat16 is converted to float32.
        even_odd: whether depthwise stages take even channels first, then odd ones (`even_odd` in planning/packing.py).
        paired_tail: whether two pixels can share a half-empty vector of output channels (`pack_matrix`).
        pays: whether it is faster here than the sets after it.
        narrow: the set with half as many lanes that tensors of few channels are for; ``None`` where there is none.
        shift: is subtracted from every uint8 value before it is multiplied: 128 where processors multiply int8 only.
    """

    number: int
    name: str
    dtype: torch.dtype
    vector: int
    panel: int
    rows: int
    lanes: int
    depth: int
    operand_bytes: int
    even_odd: bool = False
    paired_tail: bool = False
    pays: bool = True
    narrow: InstructionSet | None = None
    shift: int = 0

    @property
    def precision(self) -> str:
        """Of the values: ``float32`` or ``bfloat16``."""
        return str(self.dtype).removeprefix("torch.")


def available() -> bool:
    """Whether the package was built with the kernel library."""
    return library_path() is not None


def library_path() -> Path | None:
    """Where the kernel library lies; ``None`` where the package was built without one."""
    given = os.environ.get("TORCH_SEPARABLE_LIBRARY")
    if given:  # another build of it, as one under sanitizers
        return Path(given)
    # An editable install keeps the library apart from the sources, under the same package.
    spec = find_spec("torch_separable.runtime.native")
    places = [Path(__file__).parent, *map(Path, (spec.submodule_search_locations or ()) if spec else ())]
    return next((place / _FILE for place in places if (place / _FILE).is_file()), None)


@cache
def _library() -> ctypes.CDLL:
    path = library_path()
    if path is None:
        raise SeparableError(
            "this installation has no kernel library (it was built without a C++ compiler, or with "
            "TORCH_SEPARABLE_NO_NATIVE=1): install a compiler and reinstall, or run the network in PyTorch"
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise SeparableError(f"the kernel library {path} cannot be loaded: {error}") from error
    if (
        not hasattr(library, "ts_interface")
        or library.ts_interface() != _INTERFACE
        or library.ts_operation_size() != ctypes.sizeof(Operation)
    ):
        raise SeparableError(f"{path} is of another version of torch-separable: reinstall the package")
    library.ts_set_count.restype = ctypes.c_int64
    library.ts_set_name.restype = ctypes.c_char_p
    library.ts_set_runs_here.restype = ctypes.c_int64
    library.ts_set_pays_here.restype = ctypes.c_int64
    library.ts_cpu_has.restype = ctypes.c_int64
    library.ts_cpu_has.argtypes = (ctypes.c_char_p,)
    library.ts_measure.restype = ctypes.c_int64
    library.ts_measure.argtypes = (
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    )
    for counter in (library.ts_available_cpus, library.ts_pool_threads, library.ts_pool_joined):
        counter.restype = ctypes.c_int64
    library.ts_tasks.restype = ctypes.c_int64
    library.ts_tasks.argtypes = (ctypes.c_void_p,)
    library.ts_run.restype = None
    library.ts_run.argtypes = (
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_void_p,
    )
    return library


@cache
def instruction_sets(dtype: torch.dtype = torch.float32) -> dict[str, InstructionSet]:
    """The sets that this processor can run, by name, the best first."""
    library, found = _library(), {}
    for number in range(library.ts_set_count()):
        if library.ts_set_runs_here(ctypes.c_int64(number)):
            shape = (ctypes.c_int64 * 9)()
            library.ts_set_shape(ctypes.c_int64(number), ctypes.c_int64(PRECISIONS.index(dtype)), shape)
            name = library.ts_set_name(ctypes.c_int64(number)).decode()
            pays = bool(library.ts_set_pays_here(ctypes.c_int64(number)))
            vector, panel, rows, lanes, depth, operand_bytes, even_odd, paired_tail, shift = shape
            found[name] = InstructionSet(
                number,
                name,
                dtype,
                vector,
                panel,
                rows,
                lanes,
                depth,
                operand_bytes,
                bool(even_odd),
                bool(paired_tail),
                pays,
                shift=shift,
            )
    # Where bfloat16 are multiplied as they are, or made floats in turns, half of a vector is not twice as fast.
    avx2 = found.get("avx2") if dtype == torch.float32 else None
    return {name: replace(of, narrow=avx2 if of.lanes == 16 else None) for name, of in found.items()}


def cpu_has(feature: str) -> bool:
    """Whether the processor and the operating system support a feature.

    Args:
        feature: by Linux's name in ``/proc/cpuinfo``: ``avx2``, ``avx512f``, ``avx512_bf16``, ``avx512_vnni``,
            ``avx_vnni``, ``amx_bf16`` or ``amx_int8``. Features that belong together are one: ``avx2`` needs FMA,
            ``avx512f`` needs DQ, BW and VL.
    """
    return bool(_library().ts_cpu_has(feature.encode()))


def chosen_set(dtype: torch.dtype = torch.float32) -> InstructionSet:
    """The fastest set, or the one that ``TORCH_SEPARABLE_ISA`` names.

    Raises:
        SeparableError: this processor cannot run the named one.
    """
    sets = instruction_sets(dtype)
    wanted = os.environ.get("TORCH_SEPARABLE_ISA")
    if wanted is None:
        return next(kernels for kernels in sets.values() if kernels.pays)
    if wanted not in sets:
        raise SeparableError(f"TORCH_SEPARABLE_ISA={wanted}: this processor can run {', '.join(sets)}")
    return sets[wanted]


@cache
def parallel_for() -> ctypes.c_void_p | None:
    """Find the address of PyTorch's ``torch_parallel_for``, which runs on PyTorch's threads; ``None`` without one."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        if (folder / name).is_file():
            library = ctypes.CDLL(str(folder / name))
            if hasattr(library, "torch_parallel_for"):
                return ctypes.cast(library.torch_parallel_for, ctypes.c_void_p)
    return None


def thread_pool() -> ctypes.c_void_p | None:
    """Choose the threads that run operations: ``None`` for the library's own pool, or PyTorch's `parallel_for`.

    ``TORCH_SEPARABLE_THREADS=torch`` chooses PyTorch's.

    Raises:
        SeparableError: The variable has another value, or this PyTorch has no ``torch_parallel_for``.
    """
    wanted = os.environ.get("TORCH_SEPARABLE_THREADS", "own")
    if wanted not in ("own", "torch"):
        raise SeparableError(f"TORCH_SEPARABLE_THREADS={wanted}: must be own or torch")
    if wanted == "torch" and parallel_for() is None:
        raise SeparableError(
            f"TORCH_SEPARABLE_THREADS=torch: PyTorch {torch.__version__} has no torch_parallel_for; unset the variable"
        )
    return parallel_for() if wanted == "torch" else None


def available_cpus() -> int:
    """Count the CPUs that this process may use, by its affinity and its control group's quota."""
    count: int = _library().ts_available_cpus()
    return count


def pool_statistics() -> tuple[int, int]:
    """Count the threads that the library's pool has started, and how often one of them has joined a run."""
    library = _library()
    return library.ts_pool_threads(), library.ts_pool_joined()


def tasks(operation: Operation) -> int:
    """How many tasks an operation has."""
    count: int = _library().ts_tasks(ctypes.addressof(operation))
    return count


def run(
    operations: ctypes.Array[Operation],
    workspace: torch.Tensor,
    external: int,
    threads: int,
    task_lists: ThreadTaskLists | None = None,
    parallel: ctypes.c_void_p | None = None,
) -> None:
    """Execute prepared operations; the interpreter's lock is released meanwhile.

    Args:
        operations: The operations in order; the first of them in the order of ``task_lists``, if there are any.
        workspace: Memory of the operations' type of values, as large as they need.
        external: The address of the tensor that an import reads, or 0.
        threads: How many threads may take part, the calling one included.
        task_lists: The order in which the first operations run.
        parallel: The address of a ``ts_parallel_for`` whose threads run the operations; by default `thread_pool`.
    """
    _library().ts_run(
        ctypes.addressof(operations),
        len(operations),
        None if task_lists is None else ctypes.addressof(task_lists.parts),
        None if task_lists is None else ctypes.addressof(task_lists.ends),
        0 if task_lists is None else len(task_lists.ends),
        0 if task_lists is None else task_lists.covered,
        workspace.data_ptr(),
        external,
        threads,
        (parallel or thread_pool()) if threads > 1 else None,
    )


def measure(kernels: InstructionSet, rounds: int, threads: int, values: torch.Tensor | None = None) -> int:
    """Have each thread do rounds of multiply-adds in registers, or read its part of ``values`` as often.

    Returns:
        The floating-point operations (two for a multiply-add), or the bytes, of all threads together.
    """
    part = 0 if values is None else values.numel() // threads // 256 * 256  # whole vectors of any set
    done: int = _library().ts_measure(
        kernels.number,
        PRECISIONS.index(kernels.dtype),
        rounds,
        None if values is None else values.data_ptr(),
        part,
        threads,
        parallel_for() if threads > 1 else None,
    )
    return done
