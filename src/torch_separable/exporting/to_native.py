"""Write ``.tsn`` files: compiled networks, which ``separable_runtime`` and ``libseparable`` run without PyTorch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from torch_separable._system.locking import sole_writer
from torch_separable.errors import SeparableValueError
from torch_separable.exporting.result import Exported
from torch_separable.runtime.engine import compile as compile_network
from torch_separable.runtime.saving.network_file import Details, save_network

_LOCK_TIMEOUT = 30.0  # seconds; another writer into the folder may be waiting for the disk


@dataclass(frozen=True)
class NativeOptions:
    """What a compiled file is made for.

    Attributes:
        targets: instruction sets, such as ``("avx2", "avx512vnni", "neon")``; by default this processor's best.
        threads: one or several numbers of threads that tasks are planned for; by default 1 and as many as there are.
        dtype: of activations and weights: ``torch.float32`` or ``torch.bfloat16``.
        details: name, preparation, class names and licence, which the file tells those who run it.

    Example:
        >>> NativeOptions(targets=("avx2", "neon"), details=Details(license="MIT")).dtype
        torch.float32
    """

    targets: tuple[str, ...] | None = None
    threads: int | tuple[int, ...] | None = None
    dtype: torch.dtype = torch.float32
    details: Details | None = None


def to_native(
    network: nn.Module,
    path: Path,
    shape: Sequence[int],
    batch: int | Sequence[int] | None,
    images: Tensor | None,
    options: NativeOptions,
    tolerance: float,
) -> Exported:
    """Compile a network for its targets and write the file.

    Args:
        network: with one tensor (N, C, H, W) in.
        path: of the file.
        shape: of one image.
        batch: one or several batch sizes; 1 by default.
        images: to compare on.
        options: what the file is made for.
        tolerance: largest difference from PyTorch, relative to the largest output, of float32 networks. Those in
            bfloat16 or int8 differ by their precision, which is reported.
    """
    sizes = (1,) if batch is None else (batch,) if isinstance(batch, int) else tuple(batch)
    if not sizes or not all(type(size) is int and size >= 1 for size in sizes):
        raise SeparableValueError(f"batch={batch!r}: must be one or several whole numbers, at least 1")
    compiled = compile_network(network, torch.zeros(sizes[0], *shape), dtype=options.dtype, compare=False)
    exact = options.dtype == torch.float32 and not any(p.quantized for p in compiled._programs.values())
    with sole_writer(path.parent, wait=_LOCK_TIMEOUT, leftovers_of=path.name):
        file = save_network(
            compiled,
            path,
            targets=options.targets,
            batch=sizes,
            threads=options.threads,
            details=options.details,
            images=images,
            tolerance=tolerance if exact else None,
        )
    nodes = next(iter(compiled._programs.values())).nodes
    operators = dict(Counter(type(node).__name__ for node in nodes).most_common())
    parity = {f"libseparable ({file.parity.instruction_set})": file.parity.difference}
    return Exported(
        path, "native", file.bytes, tuple(shape), sizes[0] if len(sizes) == 1 else sizes, None, operators,
        file.parity.images, file.parity.real, file.parity.largest, parity,
    )  # fmt: skip
