"""benchmarks/runtime.py measures what is missing, and keeps it with the machine, the date and the commit."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from torch_separable.bench import Benchmark, Case, Timing
from torch_separable.runtime.native.instruction_sets import chosen_set

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "runtime.py"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_runtime", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.syspath_prepend(SCRIPT.parent)  # as Python does for a script
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmarks_runtime", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "runtime.json")
    return module


def test_only_what_is_missing_is_measured(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def timed(model: nn.Module, images: torch.Tensor, **given: Any) -> Benchmark:
        asked.append((given["name"], given["engines"]))
        timings = tuple(
            Timing(engine, "float32", milliseconds, (milliseconds, milliseconds), 3, 0.0)
            for engine, milliseconds in (("separable", 2.0), ("openvino", 3.0), ("eager", 9.0))
        )
        return Benchmark(given["name"], (3, 224, 224), 100, 2, (Case(1, 1, 100, timings, None),))

    monkeypatch.setattr(script, "benchmark", timed)
    arguments = ["measure", "--networks", "mobilenet_v2-1.0-224"]
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            script.main(arguments)
        assert end.value.code == 0
    assert [name for name, _ in asked] == ["mobilenet_v2-1.0-224"]
    assert "onnxruntime" in asked[0][1]
    assert "inductor" not in asked[0][1]
    ((key, kept),) = json.loads(script.RESULTS.read_text()).items()
    assert key == f"mobilenet_v2-1.0-224, {kept['machine']['processor']}, {chosen_set().name}"
    assert kept["machine"]["torch"] == torch.__version__
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", kept["provenance"]["date"])
    assert re.fullmatch(r"[0-9a-f]{7,}(-dirty)?|unknown", kept["provenance"]["commit"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["1", "1", "float32", "2", "3", "OpenVINO", "1.50"] in rows


def test_every_network_of_the_list_can_be_built(script: ModuleType) -> None:
    for name, entry in script.NETWORKS.items():
        if entry.make is script.converted:
            continue  # takes seconds; tests/conversion has it
        network = entry.make().eval()
        with torch.no_grad():
            assert network(torch.zeros(1, 3, entry.size, entry.size)).dim() == 2, name
