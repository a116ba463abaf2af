"""Run a network file by the kernel library, as programs without PyTorch do, to compare its outputs."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from torch_separable.errors import SeparableError
from torch_separable.runtime.native.library import library_path

_TYPES = (torch.float32, torch.bfloat16, torch.uint8)  # in the order of separable_type


class _Error(ctypes.Structure):
    _fields_ = (("text", ctypes.c_char * 320),)


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 4),
        ("strides", ctypes.c_int64 * 4),
    )


class _Options(ctypes.Structure):
    _fields_ = (
        ("batch", ctypes.c_int64),
        ("instruction_set", ctypes.c_char_p),
        *((name, ctypes.c_void_p) for name in ("threads", "parallel_for", "parallel_user")),
        ("parallel_threads", ctypes.c_int64),
    )


@cache
def _library() -> ctypes.CDLL:
    path = library_path()
    library = None if path is None else ctypes.CDLL(str(path))
    if library is None or not hasattr(library, "separable_open"):
        raise SeparableError(f"{path} is of another version of torch-separable: reinstall the package")
    library.separable_output_count.restype = ctypes.c_int64
    for close in (library.separable_close, library.separable_context_free, library.separable_threads_free):
        close.restype, close.argtypes = None, (ctypes.c_void_p,)
    return library


def run_file(path: Path, images: Tensor, instruction_set: str, threads: int) -> list[Tensor]:
    """Return the outputs of a network file for images (N, C, H, W), by one of its schedules.

    Raises:
        SeparableError: The library refuses the file or the input.
    """
    library, error = _library(), _Error()
    network, context, team = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()

    def check(status: int) -> None:
        if status:
            raise SeparableError(f"{path}: {error.text.decode(errors='replace')}")

    try:
        check(library.separable_open(bytes(path), ctypes.byref(network), ctypes.byref(error)))
        check(library.separable_threads_create(
            ctypes.c_int64(threads), None, ctypes.c_size_t(0), ctypes.byref(team), ctypes.byref(error)
        ))  # fmt: skip
        options = _Options(len(images), instruction_set.encode(), team)
        check(library.separable_context_create(
            network, ctypes.byref(options), ctypes.byref(context), ctypes.byref(error)
        ))  # fmt: skip
        images = images.float()
        view = _Tensor(images.data_ptr(), 0, 4, tuple(images.shape), images.stride())
        check(library.separable_run(context, ctypes.byref(view), None, ctypes.c_int64(0), ctypes.byref(error)))
        return [_result(library, context, i) for i in range(library.separable_output_count(network))]
    finally:
        library.separable_context_free(context)
        library.separable_threads_free(team)
        library.separable_close(network)


def _result(library: ctypes.CDLL, context: ctypes.c_void_p, index: int) -> Tensor:
    """Copy a result; bfloat16 as float32, as a compiled network returns it."""
    place = _Tensor()
    if library.separable_result(context, ctypes.c_int64(index), ctypes.byref(place)):
        raise SeparableError(f"the library has no output {index}")
    shape, strides, dtype = place.shape[: place.rank], place.strides[: place.rank], _TYPES[place.type]
    count = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(place.data)
    values = torch.frombuffer(memory, dtype=dtype).as_strided(shape, strides)
    return values.float() if dtype == torch.bfloat16 else values.clone()
