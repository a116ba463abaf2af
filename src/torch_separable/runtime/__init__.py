"""The runtime: networks run with fused kernels, so that fewer multiply-accumulates are fewer milliseconds."""

from torch_separable.runtime.engine import CompiledModel, compile
from torch_separable.runtime.memory import MemoryUse
from torch_separable.runtime.modules import FusedModules, fuse_modules
from torch_separable.runtime.native.instruction_sets import instruction_sets
from torch_separable.runtime.native.library import available
from torch_separable.runtime.profiling.breakdown import Breakdown, NodeTime
from torch_separable.runtime.profiling.roofline import Peak
from torch_separable.runtime.saving.network_file import Details, FilePlan, NetworkFile, Parity
from torch_separable.runtime.submodules import CompiledSubmodules, compile_submodules
from torch_separable.runtime.verification import Verification

__all__ = [
    "Breakdown",
    "CompiledModel",
    "CompiledSubmodules",
    "Details",
    "FilePlan",
    "FusedModules",
    "MemoryUse",
    "NetworkFile",
    "NodeTime",
    "Parity",
    "Peak",
    "Verification",
    "available",
    "compile",
    "compile_submodules",
    "fuse_modules",
    "instruction_sets",
]
