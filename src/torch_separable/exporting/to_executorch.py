"""Write ExecuTorch's ``.pte`` files for mobile and embedded devices, with layers delegated to XNNPACK."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from torch_separable._system.extras import optional
from torch_separable._system.quiet import quiet
from torch_separable.errors import SeparableError


def to_executorch(program: ExportedProgram) -> tuple[bytes, dict[str, int]]:
    """Return the content of the file, and the number of XNNPACK delegates and of other operators.

    Raises:
        SeparableError: ExecuTorch cannot lower the network.
        MissingExtraError: executorch is not installed (extra ``executorch``).
    """
    with quiet():  # importing it warns, too
        exir = optional("executorch.exir", "executorch")
        xnnpack = optional("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
    try:
        with quiet():
            lowered = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
            graph: Any = lowered.exported_program().graph
            written = lowered.to_executorch()
    except Exception as error:
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SeparableError(f"ExecuTorch cannot lower the network: {line}") from error
    names = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    delegated = sum("executorch_call_delegate" in name for name in names)
    others = sum("executorch_call_delegate" not in name and "getitem" not in name for name in names)
    return bytes(written.buffer), {"XNNPACK": delegated, "others": others}


def runtimes(content: bytes) -> dict[str, Callable[[Tensor], tuple[Tensor, ...]]]:
    """Load the file into ExecuTorch's Python runtime."""
    with quiet():
        runtime = optional("executorch.runtime", "executorch")
        # The program does not copy `content`; `run` below keeps both alive.
        program = runtime.Runtime.get().load_program(content)
        method = program.load_method("forward")

    def run(images: Tensor) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = method.execute([images.contiguous()])
        return tuple(output.clone() for output in outputs)

    return {"ExecuTorch": run}
