"""Under ``make sanitize`` the sanitizers really watch: a kernel that is given too little memory is stopped.

That build has AVX-512 and AMX on every processor, in emulation, so that their loops are watched as well.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

watched = pytest.mark.skipif("libasan" not in os.environ.get("LD_PRELOAD", ""), reason="make sanitize runs it")

CODE = """
import torch
from torch_separable.runtime.native.bindings import run
from torch_separable.runtime.native.instruction_sets import instruction_sets
from torch_separable.runtime.graph.ir import Convolution, Program, Window
from torch_separable.runtime.planning.schedule import schedule

dtype = torch.{dtype}
kernels = instruction_sets(dtype)["{isa}"]
node = Convolution("y", "x", "y", torch.randn(32, 64, 1, 1), torch.zeros(32), Window())
shapes = dict(x=(1, 64, 4, 4), y=(1, 32, 4, 4))
plan = schedule(Program("x", (node,), shapes, dict(), frozenset(), ("y",), None), kernels, 1)
x, (step,) = torch.randn(1, 64, 4, 4), plan.steps
step.operations[0].external.strides[:] = x.stride()
{fault}
run(step.operations, workspace, x.data_ptr(), 1)
print("done")
"""
FAULTS = {
    "none": "workspace = torch.zeros(plan.size, dtype=dtype)",
    "workspace": "workspace = torch.zeros(plan.size // 2, dtype=dtype)",
    "weights": "workspace = torch.zeros(plan.size, dtype=dtype); half = torch.zeros(32 * 32, dtype=dtype); "
    "step.operations[1].convolution.weights = half.data_ptr()",
}


@watched
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("isa", "dtype"), [("baseline", "float32"), ("avx2", "bfloat16"), ("amx", "bfloat16")])
def test_reading_or_writing_outside_a_buffer_is_caught(isa: str, dtype: str, fault: str) -> None:
    code = CODE.format(isa=isa, dtype=dtype, fault=FAULTS[fault])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if "KeyError" in done.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert ("heap-buffer-overflow" in done.stderr) == (fault != "none"), done.stderr
    assert ("done" in done.stdout) == (fault == "none")
