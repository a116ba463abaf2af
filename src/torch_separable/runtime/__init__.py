"""The runtime: networks run with fused kernels, so that fewer multiply-accumulates are fewer milliseconds."""

from torch_separable.runtime.engine import CompiledModel, Verification, compile
from torch_separable.runtime.modules import FusedModules, fuse_modules
from torch_separable.runtime.native.bindings import available, instruction_sets
from torch_separable.runtime.profiling.breakdown import Breakdown, NodeTime
from torch_separable.runtime.profiling.roofline import Peak

__all__ = [
    "Breakdown",
    "CompiledModel",
    "FusedModules",
    "NodeTime",
    "Peak",
    "Verification",
    "available",
    "compile",
    "fuse_modules",
    "instruction_sets",
]
