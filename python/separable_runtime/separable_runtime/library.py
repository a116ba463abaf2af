"""The functions of libseparable (native/standalone/separable.h)."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

_FILE = "libseparable.so"


class NetworkError(Exception):
    """A file that cannot be run, or an argument that does not fit the network.

    Attributes:
        status: ``separable_status``, such as 2 for a damaged file.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ErrorText(ctypes.Structure):
    """``separable_error``."""

    _fields_ = (("text", ctypes.c_char * 320),)


class Tensor(ctypes.Structure):
    """``separable_tensor``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 4),
        ("strides", ctypes.c_int64 * 4),
    )


class Description(ctypes.Structure):
    """``separable_description``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("layout", ctypes.c_char_p),
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 4),
        ("mean", ctypes.POINTER(ctypes.c_float)),
        ("std", ctypes.POINTER(ctypes.c_float)),
    )


class Schedule(ctypes.Structure):
    """``separable_schedule``."""

    _fields_ = (
        ("instruction_set", ctypes.c_char_p),
        *((name, ctypes.c_int64) for name in ("batch", "threads", "workspace_bytes")),
    )


class Options(ctypes.Structure):
    """``separable_options``."""

    _fields_ = (
        ("batch", ctypes.c_int64),
        ("instruction_set", ctypes.c_char_p),
        *((name, ctypes.c_void_p) for name in ("threads", "parallel_for", "parallel_user")),
        ("parallel_threads", ctypes.c_int64),
    )


@cache
def load() -> ctypes.CDLL:
    """Load the library beside this package, or the one that ``SEPARABLE_LIBRARY`` names."""
    path = Path(os.environ.get("SEPARABLE_LIBRARY") or Path(__file__).parent / _FILE)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(f"{path} cannot be loaded: {error}; reinstall separable-runtime") from error
    pointer, error, number = ctypes.c_void_p, ctypes.POINTER(ErrorText), ctypes.c_int64
    arguments: dict[str, tuple[Any, ...]] = {
        "separable_open": (ctypes.c_char_p, ctypes.POINTER(pointer), error),
        "separable_input": (pointer, ctypes.POINTER(Description)),
        "separable_output": (pointer, number, ctypes.POINTER(Description)),
        "separable_schedule_at": (pointer, number, ctypes.POINTER(Schedule)),
        "separable_threads_create": (number, pointer, ctypes.c_size_t, ctypes.POINTER(pointer), error),
        "separable_context_create": (pointer, ctypes.POINTER(Options), ctypes.POINTER(pointer), error),
        "separable_run": (pointer, ctypes.POINTER(Tensor), ctypes.POINTER(Tensor), number, error),
    }
    for name, types in arguments.items():
        getattr(library, name).argtypes = types
    library.separable_metadata.argtypes = (pointer, ctypes.POINTER(ctypes.c_size_t))
    library.separable_metadata.restype = pointer
    library.separable_output_count.argtypes, library.separable_output_count.restype = (pointer,), number
    for free in ("separable_close", "separable_threads_free", "separable_context_free"):
        getattr(library, free).argtypes, getattr(library, free).restype = (pointer,), None
    return library


def call(function: Any, *arguments: Any) -> None:
    """Call a function whose last argument is an error text.

    Raises:
        NetworkError: The function failed.
    """
    text = ErrorText()
    status = function(*arguments, ctypes.byref(text))
    if status:
        raise NetworkError(text.text.decode(errors="replace"), status)
