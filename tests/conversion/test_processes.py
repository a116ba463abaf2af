from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torch_separable.conversion import Plan

WORKER = Path(__file__).with_name("conversion_worker.py")


@pytest.mark.slow
def test_processes_with_shards_of_the_images_equal_one_process(tmp_path: Path) -> None:
    worker = runpy.run_path(str(WORKER))
    plan, model = worker["run"](worker["images"]().split([16, 32]))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(WORKER), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode()

    plans = [Plan.load(tmp_path / f"plan{rank}.json") for rank in (0, 1)]
    assert plans[0] == plans[1]
    assert [(x.name, x.order, x.rank) for x in plans[0].layers] == [(x.name, x.order, x.rank) for x in plan.layers]
    assert len(plans[0].converted) > 1
    weights = [torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1)]
    for name, tensor in model.state_dict().items():
        assert torch.equal(weights[0][name], weights[1][name]), name
        torch.testing.assert_close(weights[0][name], tensor, rtol=1e-2, atol=1e-3)
