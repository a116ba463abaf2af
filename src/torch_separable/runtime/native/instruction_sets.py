"""The instruction sets that have kernels: which of them this processor can run, and which one is used."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, replace
from functools import cache

import torch

from torch_separable.errors import SeparableError
from torch_separable.runtime.native.library import load
from torch_separable.runtime.native.operations import PRECISIONS


@dataclass(frozen=True)
class InstructionSet:
    """The kernels of one instruction set, for activations of one type.

    Attributes:
        number: Index of the set in the library.
        name: ``baseline``, ``avx2``, ``avxvnni``, ``avx512``, ``avx512vnni``, ``avx512bf16`` or ``amx``.
        dtype: Type of the activations: ``torch.float32``, ``torch.bfloat16`` or, with int8 weights, ``torch.uint8``.
        vector: Values in a vector.
        panel: Output channels in a panel of packed weights.
        rows: Pixels that a micro-kernel computes at once.
        lanes: Channels are padded to a multiple of this number.
        depth: K, the number of rows of packed weights, is padded to a multiple of this number.
        operand_bytes: Size of an activation when it is multiplied: 4 if bfloat16 is converted to float32 first.
        even_odd: Whether depthwise stages take even channels first, then odd ones (`even_odd` in planning/packing.py).
        paired_tail: Whether two pixels can share a half-empty vector of output channels (`pack_matrix`).
        pays: Whether it is faster on this processor than the sets after it.
        narrow: The set with half as many lanes, for tensors of few channels; ``None`` if there is none.
        shift: Subtracted from uint8 activations before they are multiplied: 128 if the processor multiplies only int8.
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
        """Name of ``dtype`` without its prefix: ``float32``, ``bfloat16`` or ``uint8``."""
        return str(self.dtype).removeprefix("torch.")


@cache
def built_sets(dtype: torch.dtype = torch.float32) -> dict[str, InstructionSet]:
    """Return the instruction sets that networks can be scheduled for, by name, the best first.

    They are those of the library, also those that this processor lacks, and ``neon``: the kernels of ARM64 read weights
    that are packed as for ``baseline``.

    Args:
        dtype: Type of the activations.
    """
    library, found = load(), {}
    for number in range(library.ts_set_count()):
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
    if "baseline" in found:  # ARM64's 32 registers hold the accumulators of more pixels (native/CMakeLists.txt)
        found["neon"] = replace(found["baseline"], name="neon", rows=12)
    # For bfloat16 a vector of half the width is not cheaper: it is multiplied directly, or converted in even/odd order.
    avx2 = found.get("avx2") if dtype == torch.float32 else None
    return {name: replace(of, narrow=avx2 if of.lanes == 16 else None) for name, of in found.items()}


@cache
def instruction_sets(dtype: torch.dtype = torch.float32) -> dict[str, InstructionSet]:
    """Return the instruction sets that this processor can run, by name, the best first.

    Args:
        dtype: Type of the activations.
    """
    library = load()
    return {
        name: kernels
        for name, kernels in built_sets(dtype).items()
        if name != "neon" and library.ts_set_runs_here(ctypes.c_int64(kernels.number))
    }


def cpu_has(feature: str) -> bool:
    """Return whether the processor and the operating system support a feature.

    Args:
        feature: Name as in Linux's ``/proc/cpuinfo``: ``avx2``, ``avx512f``, ``avx512_bf16``, ``avx512_vnni``,
            ``avx_vnni``, ``amx_bf16`` or ``amx_int8``. ``avx2`` includes FMA; ``avx512f`` includes DQ, BW and VL.
    """
    return bool(load().ts_cpu_has(feature.encode()))


def chosen_set(dtype: torch.dtype = torch.float32) -> InstructionSet:
    """Return the fastest instruction set, or the one that ``TORCH_SEPARABLE_ISA`` names.

    Args:
        dtype: Type of the activations.

    Raises:
        SeparableError: This processor cannot run the set that the variable names.
    """
    sets = instruction_sets(dtype)
    wanted = os.environ.get("TORCH_SEPARABLE_ISA")
    if wanted is None:
        return next(kernels for kernels in sets.values() if kernels.pays)
    if wanted not in sets:
        raise SeparableError(f"TORCH_SEPARABLE_ISA={wanted}: this processor can run {', '.join(sets)}")
    return sets[wanted]
