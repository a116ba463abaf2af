"""ExecuTorch: a ``.pte`` file for phones and boards, its layers handed to XNNPACK."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from torch_separable._system.extras import optional
from torch_separable.errors import SeparableError


def to_executorch(program: ExportedProgram) -> tuple[bytes, dict[str, int]]:
    """Return the file of a captured network, and how many parts of it XNNPACK, and operators ExecuTorch, runs.

    Raises:
        SeparableError: ExecuTorch lacks an operator.
        MissingExtraError: executorch is not installed (extra ``executorch``).
    """
    exir = optional("executorch.exir", "executorch")
    xnnpack = optional("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
    try:
        with warnings.catch_warnings(action="ignore"):
            lowered = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
            graph: Any = lowered.exported_program().graph
            written = lowered.to_executorch()
    except Exception as error:
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SeparableError(f"the network cannot be written for ExecuTorch: {line}. Try --to onnx") from error
    names = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    delegated = sum("executorch_call_delegate" in name for name in names)
    others = sum("executorch_call_delegate" not in name and "getitem" not in name for name in names)
    return bytes(written.buffer), {"XNNPACK": delegated, "others": others}


def runtimes(content: bytes) -> dict[str, Callable[[Tensor], Tensor]]:
    """Open the file in ExecuTorch's Python runtime."""
    runtime = optional("executorch.runtime", "executorch")
    # The program reads from these bytes for as long as it lives.
    program = runtime.Runtime.get().load_program(content)
    method = program.load_method("forward")

    def run(images: Tensor) -> Tensor:
        outputs: list[Tensor] = method.execute([images.contiguous()])
        return outputs[0].clone()

    return {"ExecuTorch": run}
