"""Compile a network: capture it, plan it for each input shape and number of threads, and run the plan."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from torch_separable._network.ambient import default_settings
from torch_separable._network.checks import as_network, require_float32
from torch_separable._network.copying import copied_on_write
from torch_separable._network.outputs import evaluating
from torch_separable._network.weights import check_weights, refresh_weights
from torch_separable._system.heap import trim_heap
from torch_separable._system.timing import interleaved
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.runtime.comparison import compare_with_eager
from torch_separable.runtime.graph.ir import Program, TorchCall
from torch_separable.runtime.graph.quantized import read_quantized
from torch_separable.runtime.inputs import checked, taking_images
from torch_separable.runtime.memory import MemoryUse, memory_of
from torch_separable.runtime.native.bindings import available_cpus
from torch_separable.runtime.native.instruction_sets import InstructionSet, chosen_set, instruction_sets
from torch_separable.runtime.native.operations import FLOATS
from torch_separable.runtime.planning.schedule import schedule
from torch_separable.runtime.planning.weight_cache import with_shared_packed, without_weights
from torch_separable.runtime.prepared import Prepared
from torch_separable.runtime.profiling.autotune import known_tiles, tune
from torch_separable.runtime.profiling.breakdown import Breakdown, NodeTime
from torch_separable.runtime.profiling.roofline import measured_peak
from torch_separable.runtime.verification import Verification, verify_outputs

if TYPE_CHECKING:  # it imports this module
    from torch_separable.runtime.saving.network_file import Details, NetworkFile


@default_settings()
def compile(
    model: nn.Module,
    example_input: Tensor,
    *,
    threads: int | None = None,
    tune: bool = False,
    dtype: torch.dtype = torch.float32,
    compare: bool | None = None,
) -> CompiledModel:
    """Prepare a network to run with fused kernels.

    Batch norms are folded into the weights, which are packed for this processor. Later changes of the network do not
    affect the compiled one: until then both share the weights' memory, which PyTorch copies at the first write to it.
    (PyTorch does not see writes through NumPy arrays that were made of a weight before.) Operators without a kernel run
    in PyTorch and are named by ``fallbacks``. Images that the network returns are in channels-last memory format.

    Args:
        model: the trained network, with one tensor as its input; it is not changed.
        example_input: an input of the usual shape, such as images (N, C, H, W). Other shapes are prepared when they
            first come, and each holds memory for activations; packed weights are held once for all shapes.
        threads: How many threads run it at most; ``None`` follows ``torch.set_num_threads``, and counts no more CPUs
            than the process may use (affinity, CPU quota of its control group).
        tune: whether the sizes of tiles are measured for shapes that were not measured before on this machine (about a
            second for a network); what is found is kept in the user's cache directory, and used by later calls of
            ``compile`` without ``tune``, too.
        dtype: of activations and weights: ``torch.float32``, or ``torch.bfloat16``, which has 8 bits of precision,
            takes half of the memory, and is meant for processors that multiply it (AVX512-BF16, AMX); on others it is
            slower. Inputs and outputs are float32 in either, and so are sums. ``verify`` says what it costs.
        compare: whether to time a few calls against eager PyTorch (channels-last), and warn if the compiled network is
            slower. By default only if operators fall back to PyTorch; without fallbacks a loss is rare.

    Raises:
        SeparableError: This installation has no kernel library; the network cannot be copied or captured; or its
            weights are not finite, or not on the CPU.

    Example:
        >>> from torch_separable.models import mobilenet_v1
        >>> model, image = mobilenet_v1(0.25).eval(), torch.randn(1, 3, 128, 128)
        >>> compiled = compile(model, image)
        >>> compiled.fallbacks
        ()
        >>> with torch.no_grad():
        ...     float((compiled(image) - model(image)).abs().max()) < 1e-4
        True
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise SeparableValueError(f"threads={threads!r}: must be a whole number, at least 1, or None")
    if dtype not in FLOATS:
        raise SeparableValueError(f"dtype={dtype}: must be torch.float32 or torch.bfloat16")
    require_float32(as_network(model), "model", "compile")
    kernels = chosen_set(dtype)
    elsewhere = {p.device.type for p in (*model.parameters(), *model.buffers())} - {"cpu"}
    if elsewhere:
        raise SeparableError(f"weights are on {min(elsewhere)}: move the network to the CPU, model.to('cpu')")
    check_weights(model)
    # Later changes of the model must not change what input shapes that are compiled later compute.
    refresh_weights(model)
    with torch.inference_mode(False):
        own = copied_on_write(model)
    compiled = CompiledModel(own, kernels, threads, tune)
    compiled.prepare(example_input)
    if compare or (compare is None and compiled.fallbacks):
        _warn_if_slower(compiled, example_input)
    return compiled


def _warn_if_slower(compiled: CompiledModel, x: Tensor) -> None:
    if not x.numel():
        return
    found = compare_with_eager(compiled.model, compiled, lambda: compiled.profile(x, rounds=3), x)
    if found.is_slower:
        warnings.warn(
            f"torch_separable: {type(compiled.model).__name__} is slower than eager PyTorch for inputs of shape "
            f"{tuple(x.shape)}: {found} compile(..., compare=False) skips this comparison",
            stacklevel=4,
        )


class CompiledModel:
    """A network with packed weights and a plan for each shape of input; made by `compile`.

    Calls take a float32 tensor on the CPU, of any strides, and may come from several threads at once; they return
    float32, whichever the precision between. Kernels read images (N, C, H, W), vectors (N, C) and tokens (N, L, C).
    Signals (N, C, L) and volumes (N, C, D, H, W) are taken as well; PyTorch runs their convolutions.
    """

    def __init__(self, model: nn.Module, kernels: InstructionSet, threads: int | None, tune: bool = False) -> None:
        self.model, self.kernels, self.threads, self.tune = model, kernels, threads, tune
        self._programs: dict[tuple[int, ...], Program] = {}
        self._schedules: dict[tuple[tuple[int, ...], int], Prepared] = {}
        self._lock = Lock()

    def prepare(self, example: Tensor) -> None:
        """Prepare for inputs of this shape."""
        self._prepared(checked(example))

    def __call__(self, x: Tensor) -> Any:
        """Run the network on an input, such as images (N, C, H, W), without gradients; return what the network does."""
        x = checked(x)
        return self._prepared(x).run(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledModel:
        """Itself: nothing about it changes."""
        return self

    def __reduce__(self) -> NoReturn:
        """Refuse: packed weights are of this processor and process.

        Raises:
            SeparableError: always.
        """
        raise SeparableError(
            "a compiled network cannot be pickled: pickle the network, and compile it where it is read"
        )

    def save(
        self,
        path: str | Path,
        *,
        targets: Sequence[str] | None = None,
        batch: int | Sequence[int] | None = None,
        threads: int | Sequence[int] | None = None,
        details: Details | None = None,
    ) -> NetworkFile:
        """Write the network as one file, which ``separable_runtime`` and ``libseparable`` run without PyTorch.

        The file holds packed weights and a schedule for each instruction set, batch size and number of threads. It is
        run before it is kept: its outputs must have the bits of this compiled network, and their difference from
        PyTorch's is noted in it. [Deploying](deploy.md) shows how to run it.

        Args:
            path: of the file; its usual suffix is ``.tsn``.
            targets: instruction sets, such as ``("avx2", "avx512", "neon")``; by default the one that this network was
                compiled for. At least one of them must run on this processor.
            batch: one or several batch sizes; by default that of the shape that was compiled first. Other dimensions
                are those of that shape.
            threads: one or several numbers of threads that tasks are planned for; by default 1, and as many as the
                network was compiled for. Any number of threads can run any of these plans.
            details: name, preparation, class names and licence, which the file tells those who run it.

        Raises:
            SeparableError: PyTorch runs a part of the network, which is named, or none of the targets runs here.

        Example:
            >>> import tempfile
            >>> compiled = compile(nn.Conv2d(3, 8, 3), torch.randn(1, 3, 32, 32), threads=1)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     file = compiled.save(f"{folder}/network.tsn")
            >>> [(plan.batch, plan.threads) for plan in file.plans], file.parity.difference < 1e-5
            ([(1, 1)], True)
        """
        from torch_separable.runtime.saving.network_file import save_network

        return save_network(self, path, targets=targets, batch=batch, threads=threads, details=details)

    @property
    def precision(self) -> str:
        """``int8`` if the network is quantized, else the data type that it was compiled for."""
        quantized = any(program.quantized for program in self._programs.values())
        return "int8" if quantized else self.kernels.precision

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What PyTorch runs, and what a quantized network computes in float32, and why, in the first plan."""
        program = next(iter(self._programs.values()))
        calls = {node.name: node for node in program.nodes if isinstance(node, TorchCall)}
        by_pytorch = [f"{name}: {call.function} ({call.reason})" for name, call in calls.items()]
        in_float32 = [
            f"{program.layers.get(name) or name}: float32 ({reason})"
            for name, reason in program.unquantized.items()
            if name not in calls
        ]
        return (*by_pytorch, *in_float32)

    @property
    def memory(self) -> MemoryUse:
        """The memory that it holds between calls.

        Example:
            >>> compiled = compile(nn.Conv2d(64, 64, 1), torch.randn(1, 64, 8, 8))
            >>> compiled.memory.packed_weights >= 4 * 64 * 64
            True
        """
        return memory_of(self.model, list(self._schedules.values()))

    def program(self, x: Tensor) -> Program:
        """Return the program for inputs of this shape, with meta tensors in place of the weights that were packed."""
        self.prepare(x)
        return self._programs[tuple(x.shape)]

    @default_settings()
    def verify(self, x: Tensor, *, outputs: Sequence[str] | None = None) -> Verification:
        """Compare every floating-point output with PyTorch's on real inputs (N, C, H, W).

        Args:
            x: images.
            outputs: names of the outputs to compare, such as ``["1"]`` for the second of a tuple or ``["logits"]``;
                all by default.

        Raises:
            SeparableError: an output has another shape than in PyTorch.
        """
        x = checked(x)
        if not x.numel():
            raise SeparableValueError(f"the input has shape {tuple(x.shape)}: give at least one image to compare on")
        with evaluating(self.model), torch.no_grad():
            expected = self.model(x.clone())  # it may change its input in place
        return verify_outputs(self(x), expected, self.precision, outputs)

    def __repr__(self) -> str:
        shapes = ", ".join(map(str, self._programs))
        return f"CompiledModel({type(self.model).__name__}, {self.kernels.name}, {self.precision}, {shapes})"

    def profile(self, x: Tensor, rounds: int = 20) -> list[NodeTime]:
        """Time every operation by itself: medians of ``rounds``."""
        x = checked(x)
        return self._prepared(x).profile(x, rounds)

    def explain(self, x: Tensor | None = None, rounds: int = 20) -> Breakdown:
        """Say what runs each operation, how long it takes, and how near that is to what this machine can do.

        Args:
            x: an input; by default noise of the shape that was prepared first.
            rounds: of which the times are medians.

        Example:
            >>> compiled = compile(nn.Conv2d(3, 8, 3), torch.randn(1, 3, 32, 32))
            >>> [(node.kind, node.flops) for node in compiled.explain(rounds=3).nodes]
            [('import', 0), ('dense', 388800)]
        """
        x = torch.randn(next(iter(self._programs))) if x is None else checked(x)
        prepared = self._prepared(x)
        nodes = prepared.profile(x, rounds)
        whole = interleaved({"call": lambda: prepared.run(x)}, rounds=rounds)["call"]
        peak, int8 = measured_peak(self.kernels, prepared.threads), None
        if any(node.int8 for node in nodes):
            int8 = measured_peak(instruction_sets(torch.uint8)[self.kernels.name], prepared.threads)
        return Breakdown(tuple(nodes), whole, len(x), peak, int8)

    def _prepared(self, x: Tensor) -> Prepared:
        shape, threads = tuple(x.shape), self.threads or min(torch.get_num_threads(), available_cpus())
        found = self._schedules.get((shape, threads))
        if found is None:
            with self._lock, _no_collection(), default_settings():
                found = self._schedules.get((shape, threads))
                if found is None:
                    program = capture(self.model, x)
                    self._programs.setdefault(shape, without_weights(program))
                    known = tune(program, self.kernels, threads) if self.tune else known_tiles(self.kernels, threads)
                    plan = schedule(program, self.kernels, threads, known)
                    plan = with_shared_packed(plan, (other.plan for other in self._schedules.values()))
                    found = Prepared(plan, self.kernels, threads)
                    self._schedules[shape, threads] = found
                    del program, plan  # and with them the weights that were packed
                    trim_heap()
        return found


@default_settings()
def capture(model: nn.Module, x: Tensor) -> Program:
    """Read a network as a program of fused nodes, for inputs of the shape of ``x``.

    Raises:
        SeparableError: ``torch.export`` cannot trace it.
    """
    with evaluating(model), torch.no_grad(), taking_images(model, x) as image:
        return read_quantized(model, image)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Disable cyclic garbage collection during graph capture.

    Capturing makes hundreds of thousands of objects, most of which stay. Collections would traverse them repeatedly and
    take a sixth of the time of a process's first `compile`.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
