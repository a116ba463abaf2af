"""Write ``.pt2`` files, PyTorch's format for captured networks, which load without this package."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor
from torch.export import ExportedProgram

from torch_separable.exporting.comparison import runner


def to_pt2(program: ExportedProgram) -> bytes:
    """Return the content of the file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.export.save(program, buffer)
    return buffer.getvalue()


def operators(program: ExportedProgram) -> dict[str, int]:
    """Return the number of graph nodes by operator."""
    calls = (node for node in program.graph.nodes if node.op == "call_function")
    return dict(Counter(str(node.target) for node in calls).most_common())


def runtimes(content: bytes) -> dict[str, Callable[[Tensor], tuple[Tensor, ...]]]:
    """Load the file with ``torch.export.load``."""
    with warnings.catch_warnings(action="ignore"):
        module = torch.export.load(io.BytesIO(content)).module()
    return {"torch.export": runner(module)}
