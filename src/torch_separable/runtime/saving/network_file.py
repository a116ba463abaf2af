"""Write a compiled network as one file, which the runtime without PyTorch opens (docs/deploy.md)."""

from __future__ import annotations

import json
import platform
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_unflatten

from torch_separable._network.outputs import evaluating
from torch_separable._system.files import replacing
from torch_separable._system.hardware import processor
from torch_separable._version import __version__
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.runtime.engine import CompiledModel, capture
from torch_separable.runtime.graph.ir import Program, TorchCall
from torch_separable.runtime.native.bindings import available_cpus
from torch_separable.runtime.native.instruction_sets import InstructionSet, built_sets, instruction_sets
from torch_separable.runtime.native.operations import PRECISIONS, Operation
from torch_separable.runtime.planning.schedule import Schedule, schedule
from torch_separable.runtime.planning.workspace_views import view_of
from torch_separable.runtime.prepared import Prepared
from torch_separable.runtime.profiling.autotune import known_tiles
from torch_separable.runtime.saving.container import ALIGNMENT, MAJOR, MINOR, write
from torch_separable.runtime.saving.operations import Addresses, Blobs, Kinds, Texts
from torch_separable.runtime.saving.reader import run_file

SUFFIX = ".tsn"
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2}  # separable_type


@dataclass(frozen=True)
class Details:
    """What a file says of its network beside the operations.

    Attributes:
        name: of the network.
        mean: value subtracted from each channel of images in 0..1 before they are passed; empty if unknown.
        std: value that each channel is then divided by; empty if unknown.
        classes: names of the classes, in the order of the first output's values; empty if unknown.
        license: of the weights, by its SPDX identifier; empty if unknown.
    """

    name: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()
    license: str = ""


@dataclass(frozen=True)
class FilePlan:
    """A way to run the network that a file offers.

    Attributes:
        instruction_set: that the weights are packed for.
        batch: number of images of a run.
        threads: that the tasks are planned for; any number can run them.
        workspace_bytes: memory of a run, beside the weights.
    """

    instruction_set: str
    batch: int
    threads: int
    workspace_bytes: int


@dataclass(frozen=True)
class Parity:
    """How the outputs of a file compared with PyTorch's when it was written.

    Attributes:
        instruction_set: that ran the file.
        images: number of images, of noise unless ``real``.
        real: whether the caller gave them.
        largest: largest absolute value of PyTorch's outputs.
        difference: largest absolute difference.
    """

    instruction_set: str
    images: int
    real: bool
    largest: float
    difference: float


@dataclass(frozen=True)
class NetworkFile:
    """A file that was written.

    Attributes:
        path: of the file.
        bytes: its size.
        precision: of activations and weights; int8 layers of a quantized network are part of either.
        plans: ways to run it.
        parity: with PyTorch.
    """

    path: Path
    bytes: int
    precision: str
    plans: tuple[FilePlan, ...]
    parity: Parity

    def __str__(self) -> str:
        sets = ", ".join(dict.fromkeys(plan.instruction_set for plan in self.plans))
        batches = ", ".join(map(str, dict.fromkeys(plan.batch for plan in self.plans)))
        return (
            f"{self.path}: {self.bytes:,} bytes, {self.precision}, for {sets}, batch {batches}; differs from PyTorch "
            f"by at most {self.parity.difference:.1e} for outputs up to {self.parity.largest:.1f} "
            f"({self.parity.images} images{'' if self.parity.real else ' of noise'})"
        )


def save_network(
    compiled: CompiledModel,
    path: str | Path,
    *,
    targets: Sequence[str] | None = None,
    batch: int | Sequence[int] | None = None,
    threads: int | Sequence[int] | None = None,
    details: Details | None = None,
    images: Tensor | None = None,
    tolerance: float | None = None,
) -> NetworkFile:
    """Write a compiled network; see `CompiledModel.save`.

    Args:
        compiled: the network.
        path: of the file.
        targets: instruction sets.
        batch: batch sizes.
        threads: numbers of threads.
        details: what the file says of the network.
        images: (N, C, H, W) to compare on; noise by default.
        tolerance: largest difference from PyTorch's outputs, relative to the largest output if that is above 1, with
            which the file is kept; ``None`` for any.

    Raises:
        SeparableError: PyTorch computes a part of the network, no target runs here, or outputs differ.
    """
    path, details = Path(path), details or Details()
    if path.is_dir():
        raise SeparableError(f"{path} is a folder: name a file, such as {path / f'network{SUFFIX}'}")
    first = next(iter(compiled._programs))
    if len(first) != 4:
        raise SeparableError(
            f"the network was compiled for inputs of shape {first}: files hold networks for (N, C, H, W)"
        )
    batches = _numbers("batch", batch) or [first[0]]
    teams = _numbers("threads", threads) or sorted({1, compiled.threads or available_cpus()})
    sets = _targets(targets, compiled.kernels)
    programs = {size: capture(compiled.model, torch.zeros(size, *first[1:])) for size in batches}
    _require_kernels(compiled, programs.values())
    _check_details(details, first[1])
    plans: list[tuple[InstructionSet, int, int, Schedule]] = []
    for kernels in sets:
        here = kernels.name in instruction_sets(kernels.dtype)
        for size, program in programs.items():
            for team in teams:
                tiles = known_tiles(kernels, team) if here else {}
                plans.append((kernels, size, team, schedule(program, kernels, team, tiles)))
    writer = _Writer(compiled, programs[batches[0]], details, plans)
    with replacing(path) as aside:
        with aside.open("wb") as file:
            write(file, writer.sections(None))
        parity = _compare(compiled, aside, plans, images)
        allowed = (tolerance or 0) * max(1.0, parity.largest)
        if tolerance is not None and not parity.difference <= allowed:
            raise SeparableError(
                f"{path} is not written: its outputs differ from PyTorch's by {parity.difference:.1e}; at most "
                f"{allowed:.1e} is allowed for outputs up to {parity.largest:.1f}"
            )
        with aside.open("wb") as file:
            write(file, writer.sections(parity))
        size_of_file = aside.stat().st_size
    return NetworkFile(path, size_of_file, compiled.kernels.precision, writer.plans(), parity)


def _numbers(what: str, given: int | Sequence[int] | None) -> list[int]:
    numbers = [] if given is None else [given] if isinstance(given, int) else list(given)
    if not all(type(number) is int and number >= 1 for number in numbers) or (given is not None and not numbers):
        raise SeparableValueError(f"{what}={given!r}: must be one or several whole numbers, at least 1")
    return list(dict.fromkeys(numbers))


def _targets(names: Sequence[str] | None, compiled: InstructionSet) -> list[InstructionSet]:
    """Return the sets of these names, the best first."""
    known = built_sets(compiled.dtype)
    names = [compiled.name] if names is None else [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in known:
            raise SeparableValueError(f"targets: {name} is none of {', '.join(known)}")
    if not any(name in instruction_sets(compiled.dtype) for name in names):
        raise SeparableError(
            f"targets {', '.join(names)}: this processor can run none of them, so the file could not be compared with "
            f"the network. Add {compiled.name}"
        )
    return [kernels for name, kernels in known.items() if name in names]


def _require_kernels(compiled: CompiledModel, programs: Any) -> None:
    for program in programs:
        if any(isinstance(node, TorchCall) for node in program.nodes):
            raise SeparableError(
                "the network cannot be saved, because it needs PyTorch for "
                f"{'; '.join(compiled.fallbacks)}. Replace these operators, or run the network by ts.compile"
            )


def _check_details(details: Details, channels: int) -> None:
    for name in ("mean", "std"):
        values = getattr(details, name)
        if values and len(values) != channels:
            raise SeparableValueError(f"{name} has {len(values)} values: the input has {channels} channels")


def _compare(
    compiled: CompiledModel,
    path: Path,
    plans: Sequence[tuple[InstructionSet, int, int, Schedule]],
    images: Tensor | None,
) -> Parity:
    """Run the file by every schedule that this processor can run, and compare it with the schedule and with PyTorch."""
    largest, difference, count, best = 0.0, 0.0, 0, ""
    for kernels, batch, threads, plan in plans:
        if kernels.name not in instruction_sets(kernels.dtype):
            continue
        shape = next(iter(compiled._programs))[1:]
        x = _batch_of(images, batch, shape)
        got = run_file(path, x, kernels.name, threads)
        own = tree_leaves(Prepared(plan, kernels, threads).run(x))
        if not all(torch.equal(one, other) or _same_bits(one, other) for one, other in zip(got, own, strict=True)):
            raise SeparableError(
                f"{path} is not kept: by {kernels.name} with {threads} threads its outputs differ from those of the "
                "compiled network, which is a bug of torch-separable: please report it"
            )
        with evaluating(compiled.model), torch.no_grad():
            expected = [output.float() for output in tree_leaves(compiled.model(x.clone()))]
        for one, other in zip(got, expected, strict=True):
            if one.numel():
                largest = max(largest, float(other.abs().max()))
                difference = max(difference, float((one.float() - other).abs().max()))
        best, count = best or kernels.name, max(count, len(x))
    return Parity(best, count, images is not None, largest, difference)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Compare bits, as NaN is unequal to itself."""
    return one.shape == other.shape and torch.equal(
        one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    )


def _batch_of(images: Tensor | None, batch: int, shape: Sequence[int]) -> Tensor:
    if images is None:
        return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))
    return images.detach().cpu().float()[torch.arange(batch) % len(images)]


class _Writer:
    """The sections of a file, from schedules."""

    def __init__(
        self,
        compiled: CompiledModel,
        program: Program,
        details: Details,
        plans: Sequence[tuple[InstructionSet, int, int, Schedule]],
    ) -> None:
        self._compiled, self._program, self._details = compiled, program, details
        self._texts, self._blobs = Texts(), Blobs(ALIGNMENT)
        self._kinds = Kinds(self._texts)
        self._plans = [FilePlan(s.name, batch, team, _workspace_bytes(plan, s)) for s, batch, team, plan in plans]
        schedules = [self._schedule(*plan) for plan in plans]
        self._section = struct.pack("<Q", len(schedules)) + b"".join(schedules)
        self._outputs = self._output_descriptions(*plans[0])

    def plans(self) -> tuple[FilePlan, ...]:
        """Return what the file offers."""
        return tuple(self._plans)

    def sections(self, parity: Parity | None) -> dict[str, bytes]:
        """Return the content of the file; the metadata of a file that was compared has its parity."""
        network, kinds = self._network(), self._kinds.section()
        return {
            "metadata": json.dumps(self._metadata(parity), ensure_ascii=False, allow_nan=False).encode(),
            "texts": self._texts.section(),
            "network": network,
            "kinds": kinds,
            "plans": self._section,
            "blobs": self._blobs.index(),
            "weights": self._blobs.section(),
        }

    def _schedule(self, kernels: InstructionSet, batch: int, threads: int, plan: Schedule) -> bytes:
        (step,) = plan.steps
        addresses = Addresses(list(step.operations), plan.weights, self._blobs)
        names = {built.number: name for name, built in built_sets(kernels.dtype).items() if name != "neon"}
        names[kernels.number] = kernels.name  # ARM64's set has the number of `baseline` here
        rows = [self._kinds.row(op, addresses.number, names[op.instruction_set]) for op in step.operations]
        words = [batch, threads, _workspace_bytes(plan, kernels)]
        shapes = _shapes(list(step.operations), names)
        words.append(len(shapes))
        for name, precision, numbers in shapes:
            words += [self._texts.number(name), precision, *numbers]
        words.append(len(rows))
        after: list[int] = []
        lists = step.task_lists
        parts, ends = ([], []) if lists is None else (list(lists.parts), list(lists.ends))
        after += [0 if lists is None else lists.covered, len(parts)]
        for part in parts:
            after += [part.operation, part.end, part.begin]
        after += [len(ends), *ends]
        outputs = _results(plan, kernels)
        after.append(len(outputs))
        for dtype, offset, shape, strides in outputs:
            after += [_TYPES[dtype], len(shape), offset]
            for size, stride in zip(shape, strides, strict=True):
                after += [size, stride]
        content = struct.pack(f"<{len(words)}Q", *words) + b"".join(rows) + struct.pack(f"<{len(after)}Q", *after)
        return struct.pack("<QQ", self._texts.number(kernels.name), len(content) // 8) + content

    def _output_descriptions(
        self, kernels: InstructionSet, batch: int, threads: int, plan: Schedule
    ) -> list[dict[str, Any]]:
        program = plan.program
        layouts = program.output_layouts or ("",) * len(program.outputs)
        return [
            {
                "name": name,
                "layout": layout or ("NC" if value in program.vectors else "NCHW"),
                "type": "uint8" if dtype == torch.uint8 else "float32",
                "shape": list(shape),
            }
            for name, value, layout, (dtype, _, shape, _) in zip(
                _output_names(program), program.outputs, layouts, _results(plan, kernels), strict=True
            )
        ]

    def _input_description(self) -> dict[str, Any]:
        shape = next(iter(self._compiled._programs))
        return {"name": "images", "layout": "NCHW", "type": "float32", "shape": [self._plans[0].batch, *shape[1:]]}

    def _network(self) -> bytes:
        def array(about: dict[str, Any]) -> bytes:
            kind = 2 if about["type"] == "uint8" else 0
            names = self._texts.number(about["name"]), self._texts.number(about["layout"])
            return struct.pack(f"<{4 + len(about['shape'])}Q", *names, kind, len(about["shape"]), *about["shape"])

        content = array(self._input_description())
        for values in (self._details.mean, self._details.std):
            content += struct.pack(f"<Q{len(values)}d", len(values), *values)
        content += struct.pack("<Q", len(self._outputs)) + b"".join(map(array, self._outputs))
        classes = [self._texts.number(name) for name in self._details.classes]
        return content + struct.pack(f"<{1 + len(classes)}Q", len(classes), *classes)

    def _metadata(self, parity: Parity | None) -> dict[str, Any]:
        return {
            "format": f"torch-separable network {MAJOR}.{MINOR}",
            "name": self._details.name or type(self._compiled.model).__name__,
            "license": self._details.license,
            "precision": self._compiled.kernels.precision,
            "input": self._input_description(),
            "outputs": self._outputs,
            "preparation": {"mean": list(self._details.mean), "std": list(self._details.std)},
            "classes": list(self._details.classes),
            "plans": [asdict(plan) for plan in self._plans],
            "parity": None if parity is None else asdict(parity),
            "written_by": {
                "torch_separable": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "processor": processor(),
            },
        }


def _workspace_bytes(plan: Schedule, kernels: InstructionSet) -> int:
    return max(plan.size, 2) * kernels.dtype.itemsize


def _shapes(operations: Sequence[Operation], names: dict[int, str]) -> list[tuple[str, int, list[int]]]:
    """Describe the kernels that run operations: name, precision, and the sizes that packing depends on."""
    used = dict.fromkeys((op.instruction_set, op.precision) for op in operations)
    found = []
    for number, precision in used:
        k = built_sets(PRECISIONS[precision])[names[number]]
        sizes = (k.vector, k.panel, k.rows, k.lanes, k.depth, k.operand_bytes, k.even_odd, k.paired_tail, k.shift)
        found.append((names[number], precision, list(map(int, sizes))))
    return found


def _results(plan: Schedule, kernels: InstructionSet) -> list[tuple[torch.dtype, int, list[int], list[int]]]:
    """Return type, offset in bytes, shape and strides of each output in the workspace."""
    memory = torch.empty(max(plan.size, 2), dtype=kernels.dtype, device="meta")
    program = plan.program
    layouts = program.output_layouts or ("",) * len(program.outputs)
    found = []
    for name, layout in zip(program.outputs, layouts, strict=True):
        view = view_of(memory, plan, name, layout)
        found.append((view.dtype, int(view.storage_offset()) * view.itemsize, list(view.shape), list(view.stride())))
    return found


def _output_names(program: Program) -> list[str]:
    """Name the outputs by the keys under which the network returns them."""
    count = len(program.outputs)
    if program.structure.is_leaf():
        return ["output"]
    paths = tree_flatten_with_path(tree_unflatten(list(range(count)), program.structure))[0]
    return [keystr(path).strip("[].'").replace("'][", ".") or f"output{i}" for i, (path, _) in enumerate(paths)]
