"""A network file as a function of arrays."""

from __future__ import annotations

import ctypes
import json
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from separable_runtime import library
from separable_runtime.library import NetworkError, call

Layout = Literal["NCHW", "NHWC"]
Outputs = NDArray[Any] | dict[str, NDArray[Any]]

_ARGUMENT = 5  # SEPARABLE_ERROR_ARGUMENT
_TYPES = {0: np.dtype(np.float32), 2: np.dtype(np.uint8)}  # by separable_type


@dataclass(frozen=True)
class Array:
    """An input or output of a network.

    Attributes:
        name: as in the file.
        layout: of its dimensions, such as ``NCHW`` or ``NC``.
        dtype: of its values.
        shape: of one image, without the batch.
    """

    name: str
    layout: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """A way to run the network on this processor.

    Attributes:
        instruction_set: that it was compiled for.
        batch: images of a run.
        threads: that its tasks were planned for; any number can run them.
        workspace_bytes: memory of a run, beside the weights.
    """

    instruction_set: str
    batch: int
    threads: int
    workspace_bytes: int


class Network:
    """A compiled network, read from a file that processes share in memory.

    Calls may come from several threads at once, and release the interpreter's lock. Images are processed in the batch
    sizes that the file was compiled for; a rest that is smaller than all of them is filled up with zeros.

    Args:
        path: of the file.
        threads: How many threads a call may use; by default as many as the process may use CPUs.
        instruction_set: One of `plans`; by default the best.
        cpus: CPUs that the additional threads may run on; by default all.

    Attributes:
        metadata: what the file says of the network: name, precision, licence, preparation, classes, parity, versions.
        input: the images that it takes.
        outputs: what it returns.
        plans: of the instruction sets that this processor can run, the best first.
        classes: names of the classes, in the order of the first output's values; empty if they are unknown.

    Raises:
        NetworkError: The file is damaged, was written by a newer version, or was not compiled for this processor.

    Example:
        >>> network = Network("net.tsn")                                      # doctest: +SKIP
        >>> network(np.zeros((1, 3, 224, 224), np.float32)).shape             # doctest: +SKIP
        (1, 1000)
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        instruction_set: str | None = None,
        cpus: Sequence[int] | None = None,
    ) -> None:
        self._library = library.load()
        self.path = Path(path)
        self.threads = len(os.sched_getaffinity(0)) if threads is None else threads
        self._cpus = list(cpus or ())
        handle = ctypes.c_void_p()
        call(self._library.separable_open, bytes(self.path), ctypes.byref(handle))
        self._handle = handle
        self._close = weakref.finalize(self, self._library.separable_close, handle)
        size = ctypes.c_size_t()
        text = self._library.separable_metadata(handle, ctypes.byref(size))
        self.metadata: dict[str, Any] = json.loads(ctypes.string_at(text, size.value))
        self.classes: tuple[str, ...] = tuple(self.metadata.get("classes") or ())
        self.input = self._describe(self._library.separable_input, handle)
        count = self._library.separable_output_count(handle)
        self.outputs = tuple(self._describe(self._library.separable_output, handle, i) for i in range(count))
        self.plans = tuple(self._plans())
        self.instruction_set = instruction_set or self.plans[0].instruction_set
        self._batches = sorted({p.batch for p in self.plans if p.instruction_set == self.instruction_set}, reverse=True)
        if not self._batches:
            sets = ", ".join(dict.fromkeys(plan.instruction_set for plan in self.plans))
            raise NetworkError(f"instruction_set={instruction_set}: must be one of {sets}", _ARGUMENT)
        self._team = _Team(self._library, self.threads, self._cpus)

    def __call__(
        self, images: Any, *, layout: Layout = "NCHW", out: NDArray[Any] | Mapping[str, NDArray[Any]] | None = None
    ) -> Outputs:
        """Run the network.

        Args:
            images: float32 (N, C, H, W), or (N, H, W, C) with ``layout="NHWC"``: a NumPy array, or anything with the
                buffer protocol or DLPack. Arrays of any strides are read where they are.
            layout: of the images.
            out: arrays that the outputs are written to, of any strides: one array, or a dictionary by name.

        Returns:
            The output, or a dictionary of several outputs by name.

        Raises:
            NetworkError: The images do not fit the network.
        """
        view = self._images(images, layout)
        results = self._results(len(view), out)
        at = 0
        while at < len(view):
            left = len(view) - at
            size = next((batch for batch in self._batches if batch <= left), self._batches[-1])
            if size <= left:
                self._run(size, view[at : at + size], [result[at : at + size] for result in results])
            else:
                filled = np.zeros((size, *self.input.shape), np.float32)
                filled[:left] = view[at:]
                whole = [np.empty((size, *a.shape), a.dtype) for a in self.outputs]
                self._run(size, filled, whole)
                for result, computed in zip(results, whole, strict=True):
                    result[at:] = computed[:left]
            at += size
        if len(results) == 1:
            return results[0]
        return {array.name: result for array, result in zip(self.outputs, results, strict=True)}

    def prepare(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Scale uint8 images (H, W, C) or (N, H, W, C) to 0..1, and normalize them as the network was trained.

        The images must have the network's height and width.

        Returns:
            float32 (N, C, H, W), a view of (N, H, W, C).
        """
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise NetworkError(
                f"images are {images.dtype} with {images.ndim} dimensions: expected uint8 (N, H, W, C)", _ARGUMENT
            )
        scaled = (images if images.ndim == 4 else images[None]).astype(np.float32) / np.float32(255)
        known = self.metadata.get("preparation") or {}
        if known.get("mean"):
            scaled -= np.asarray(known["mean"], np.float32)
        if known.get("std"):
            scaled /= np.asarray(known["std"], np.float32)
        return scaled.transpose(0, 3, 1, 2)

    def close(self) -> None:
        """Release the file and all memory; later calls raise."""
        self._team.close()
        self._close()

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        name = self.metadata.get("name")
        return f"Network({name}, {self.instruction_set}, batch {', '.join(map(str, sorted(self._batches)))})"

    def _describe(self, function: Any, *arguments: Any) -> Array:
        found = library.Description()
        if status := function(*arguments, ctypes.byref(found)):
            raise NetworkError(f"{self.path} has no such array", status)
        shape = tuple(found.shape[1 : found.rank])
        return Array(found.name.decode(), found.layout.decode(), _TYPES[found.type], shape)

    def _plans(self) -> list[Plan]:
        plans, found = [], library.Schedule()
        while self._library.separable_schedule_at(self._handle, len(plans), ctypes.byref(found)) == 0:
            plans.append(Plan(found.instruction_set.decode(), found.batch, found.threads, found.workspace_bytes))
        return plans

    def _images(self, images: Any, layout: Layout) -> NDArray[np.float32]:
        if layout not in ("NCHW", "NHWC"):
            raise NetworkError(f"layout={layout!r}: must be NCHW or NHWC", _ARGUMENT)
        if isinstance(images, np.ndarray) or not hasattr(images, "__dlpack__"):
            array: NDArray[Any] = np.asarray(images)
        else:
            array = np.from_dlpack(images)
        if array.dtype != np.float32:
            raise NetworkError(f"images are {array.dtype}: convert them to float32, or see Network.prepare", _ARGUMENT)
        if array.ndim == 4 and layout == "NHWC":
            array = array.transpose(0, 3, 1, 2)
        if array.ndim != 4 or array.shape[1:] != self.input.shape:
            c, h, w = self.input.shape
            wanted = f"(N, {c}, {h}, {w})" if layout == "NCHW" else f"(N, {h}, {w}, {c})"
            raise NetworkError(f"images have shape {np.shape(images)}: expected {wanted}", _ARGUMENT)
        # Strides of the library count values: arrays whose values lie between multiples of four bytes are copied.
        return array if _counts_values(array) else array.copy()

    def _results(self, count: int, out: NDArray[Any] | Mapping[str, NDArray[Any]] | None) -> list[NDArray[Any]]:
        if out is None:
            return [np.empty((count, *array.shape), array.dtype) for array in self.outputs]
        named = out if isinstance(out, Mapping) else {self.outputs[0].name: out}
        if set(named) != {array.name for array in self.outputs}:
            raise NetworkError(f"out: expected {', '.join(array.name for array in self.outputs)}", _ARGUMENT)
        for array in self.outputs:
            given, shape = named[array.name], (count, *array.shape)
            if given.dtype != array.dtype or given.shape != shape or not given.flags.writeable:
                raise NetworkError(f"out: {array.name} must be a writeable {array.dtype} array of {shape}", _ARGUMENT)
            if not _counts_values(given):
                raise NetworkError(f"out: {array.name} is not aligned to its values", _ARGUMENT)
        return [named[array.name] for array in self.outputs]

    def _run(self, batch: int, images: NDArray[np.float32], results: Sequence[NDArray[Any]]) -> None:
        if not self._close.alive:
            raise NetworkError(f"{self.path} is closed", _ARGUMENT)
        outputs = (library.Tensor * len(results))(*map(_tensor, results))
        with self._team.context(self._handle, batch, self.instruction_set) as context:
            call(self._library.separable_run, context, ctypes.byref(_tensor(images)), outputs, len(results))


class _Team:
    """Threads and idle contexts of one process: after a fork the child makes its own."""

    def __init__(self, loaded: ctypes.CDLL, threads: int, cpus: Sequence[int]) -> None:
        self._library, self._threads, self._cpus = loaded, threads, cpus
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._idle: dict[int, list[ctypes.c_void_p]] = {}
        self._team = ctypes.c_void_p()
        cpus = (ctypes.c_int32 * len(self._cpus))(*self._cpus)
        call(
            self._library.separable_threads_create, self._threads, cpus if self._cpus else None, len(self._cpus),
            ctypes.byref(self._team),
        )  # fmt: skip
        self._end = weakref.finalize(self, _free, self._library, self._team, self._idle, self._process)

    def context(self, network: ctypes.c_void_p, batch: int, instruction_set: str) -> _Context:
        if os.getpid() != self._process:
            self._end.detach()
            self._start()
        idle = self._idle.setdefault(batch, [])
        try:
            return _Context(idle, idle.pop())
        except IndexError:
            handle = ctypes.c_void_p()
            options = library.Options(batch, instruction_set.encode(), self._team if self._threads > 1 else None)
            call(
                self._library.separable_context_create, network, ctypes.byref(options), ctypes.byref(handle)
            )  # fmt: skip
            return _Context(idle, handle)

    def close(self) -> None:
        self._end()


class _Context:
    """A context that is put back when a run is done."""

    def __init__(self, idle: list[ctypes.c_void_p], handle: ctypes.c_void_p) -> None:
        self._idle, self._handle = idle, handle

    def __enter__(self) -> ctypes.c_void_p:
        return self._handle

    def __exit__(self, *_: object) -> None:
        self._idle.append(self._handle)


def _free(loaded: ctypes.CDLL, team: ctypes.c_void_p, idle: Mapping[int, list[ctypes.c_void_p]], process: int) -> None:
    if os.getpid() != process:
        return  # the threads are those of the parent
    for handles in idle.values():
        while handles:
            loaded.separable_context_free(handles.pop())
    loaded.separable_threads_free(team)


def _counts_values(array: NDArray[Any]) -> bool:
    """Whether the array's address and strides are multiples of its values' size."""
    return array.flags.aligned and not any(stride % array.itemsize for stride in array.strides)


def _tensor(array: NDArray[Any]) -> library.Tensor:
    kind = next(number for number, dtype in _TYPES.items() if dtype == array.dtype)
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return library.Tensor(array.ctypes.data, kind, array.ndim, tuple(array.shape), strides)
