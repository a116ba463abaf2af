"""Find and load the kernel library, and declare the signatures of its functions."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from torch_separable.errors import SeparableError
from torch_separable.runtime.native.operations import Operation

_FILE = "libtorch_separable.so"

# Version of the functions and structures; the same as `kInterface` in native/engine/engine.cpp.
_INTERFACE = 10


def available() -> bool:
    """Return whether this installation contains the kernel library."""
    return library_path() is not None


def library_path() -> Path | None:
    """Return the path of the kernel library; ``None`` if the package was built without one.

    ``TORCH_SEPARABLE_LIBRARY`` names another build, such as one with sanitizers.
    """
    given = os.environ.get("TORCH_SEPARABLE_LIBRARY")
    if given:
        return Path(given)
    # An editable install keeps the library apart from the sources, in another directory of the same package.
    spec = find_spec("torch_separable.runtime.native")
    places = [Path(__file__).parent, *map(Path, (spec.submodule_search_locations or ()) if spec else ())]
    return next((place / _FILE for place in places if (place / _FILE).is_file()), None)


@cache
def load() -> ctypes.CDLL:
    """Load the kernel library, once per process.

    Raises:
        SeparableError: The installation has no library, the library cannot be loaded, or it belongs to another version
            of the package.
    """
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
        raise SeparableError(f"{path} belongs to another version of torch-separable: reinstall the package")
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
