"""The runtime: networks run with fused kernels, so that fewer multiply-accumulates are fewer milliseconds."""

from torch_separable.runtime.engine import CompiledModel, NodeTime, Verification, compile
from torch_separable.runtime.library import available, instruction_sets

__all__ = ["CompiledModel", "NodeTime", "Verification", "available", "compile", "instruction_sets"]
