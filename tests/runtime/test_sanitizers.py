"""Under ``make sanitize`` the sanitizers really watch: a kernel that is given too little memory is stopped."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

watched = pytest.mark.skipif("libasan" not in os.environ.get("LD_PRELOAD", ""), reason="make sanitize runs it")

CODE = """
import torch
from torch_separable.runtime.library import instruction_sets, run
from torch_separable.runtime.program import Convolution, Program, Window
from torch_separable.runtime.schedule import schedule

kernels = instruction_sets()["{isa}"]
node = Convolution("y", "x", "y", torch.randn(32, 64, 1, 1), torch.zeros(32), Window())
shapes = dict(x=(1, 64, 4, 4), y=(1, 32, 4, 4))
plan = schedule(Program("x", (node,), shapes, dict(), frozenset(), ("y",), None), kernels, 1)
x, (step,) = torch.randn(1, 64, 4, 4), plan.steps
step.operations[0].external_strides[:] = x.stride()
{fault}
run(kernels, step.operations, workspace, x.data_ptr(), 1)
print("done")
"""
FAULTS = {
    "none": "workspace = torch.zeros(plan.size)",
    "workspace": "workspace = torch.zeros(plan.size // 2)",
    "weights": "workspace = torch.zeros(plan.size); half = torch.zeros(32 * 32); "
    "step.operations[1].weights = half.data_ptr()",
}


@watched
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_reading_or_writing_outside_a_buffer_is_caught(isa: str, fault: str) -> None:
    code = CODE.format(isa=isa, fault=FAULTS[fault])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if "KeyError" in done.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert ("heap-buffer-overflow" in done.stderr) == (fault != "none"), done.stderr
    assert ("done" in done.stdout) == (fault == "none")
