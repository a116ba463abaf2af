"""Messages: errors as JSON, empty paths, control characters, narrow terminals, one rule for a missing budget."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_separable as ts
from torch_separable._system.quiet import quiet
from torch_separable.bench import Benchmark, Case, Timing
from torch_separable.cli.main import main
from torch_separable.conversion import Budget
from torch_separable.models import resnet20

SMALL = "networks_for_cli:small"
CONVERT = f"convert {SMALL} --weights small.safetensors --data digits"
COMMANDS = (
    "demo",
    "summary",
    "explain",
    "convert",
    "quantize",
    "distill",
    "evaluate",
    "bench",
    "frontier",
    "tune",
    "report",
    "export",
)


@pytest.mark.parametrize(
    ("command", "code", "named"),
    [
        (f"summary {SMALL} --input 1,0,3 --json", 2, "--input 1,0,3"),
        (f"summary {SMALL} --json", 2, "--input"),
        (f"summary {SMALL} --depth x --json", 2, "--depth"),
        (f"tune {SMALL} --input 3,3 --json", 2, "--input 3,3"),
    ],
)
def test_errors_are_json_if_json_is_asked_for(
    separable: Callable[..., Any], command: str, code: int, named: str
) -> None:
    outcome = separable(*shlex.split(command))
    assert outcome.code == code
    assert named in json.loads(outcome.out)["error"]
    assert outcome.err


def test_internal_errors_are_json_too(separable: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("torch_separable.cost.summary", faulty)
    outcome = separable("summary", SMALL, "--input", "1,32,32", "--json")
    assert outcome.code == 1
    assert "ZeroDivisionError" in json.loads(outcome.out)["error"]


def test_budget_is_required_on_the_command_line_as_in_python(separable: Callable[..., Any], place: Path) -> None:
    outcome = separable(*shlex.split(f"{CONVERT} -o unbudgeted"))
    assert outcome.code == 2
    assert "--budget, --rank and --plan are all missing" in outcome.err
    assert not (place / "unbudgeted").exists()
    with pytest.raises(ts.SeparableError, match="budget"):
        ts.convert(resnet20().eval(), torch.rand(8, 3, 32, 32))


@pytest.mark.parametrize("command", [f"{CONVERT} --rank 1 -o ''", "demo -o ''", "report converted --output ' '"])
def test_empty_output_is_refused(separable: Callable[..., Any], command: str) -> None:
    outcome = separable(*shlex.split(command))
    assert outcome.code == 2
    assert "empty" in outcome.err


def test_control_characters_of_names_are_escaped(separable: Callable[..., Any]) -> None:
    outcome = separable("evaluate", "\x1b[31mred", "--data", "digits")
    assert outcome.code == 2
    assert "\x1b" not in outcome.err
    timing = Timing("separable", "float32", 1.0, (1.0, 1.0), 3, 0.0)
    table = str(Benchmark("\x1b[2Jclear", (3, 8, 8), 10, 1, (Case(1, 1, 10, (timing,), None),)))
    assert "\x1b" not in table


def test_shape_of_another_length_is_named(separable: Callable[..., Any]) -> None:
    outcome = separable("tune", SMALL, "--input", "1,3,32,32")
    assert "--input 1,3,32,32: has 4 numbers" in outcome.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_complete_at_60_columns(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "argv", ["separable", command, "--help"])
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        main()
    assert "…" not in out.getvalue()
    assert "**" not in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 60


def test_bench_table_drops_columns_at_60_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    timings = tuple(
        Timing(engine, "float32", 123.4, (121.0, 129.0), 3, 1e-7)
        for engine in ("separable", "channels_last", "onnxruntime")
    )
    done = Benchmark("network", (3, 8, 8), 10, 1, (Case(1, 1, 10**9, timings, None),))
    for columns in (60, 40):
        monkeypatch.setenv("COLUMNS", str(columns))
        text = str(replace(done, network="n"))
        assert max(map(len, text.splitlines())) <= columns
        assert "…" not in text
        assert "PyTorch channels_last" in text
        assert " 123" in text


def test_dir_and_repr_are_short() -> None:
    assert set(dir(ts)) == set(ts.__all__)
    converted = ts.convert(resnet20().eval(), torch.rand(16, 3, 32, 32), budget=Budget(macs=0.5), method="svd")
    assert repr(converted).startswith("Conversion(CifarResNet: ")
    assert len(repr(converted)) < 100


def test_third_party_messages_are_suppressed(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet():
        subprocess.run([sys.executable, "-c", "import sys; print('flood', file=sys.stderr)"], check=True)
    print("shown", file=sys.stderr)
    assert capfd.readouterr().err == "shown\n"


@pytest.mark.slow
def test_export_for_executorch_prints_nothing_of_the_tools(place: Path) -> None:
    pytest.importorskip("executorch")
    ended = subprocess.run(
        [*(sys.executable, "-m", "torch_separable", "export", "converted", "--model", SMALL), "--to", "executorch"],
        cwd=place, capture_output=True, check=True,
    )  # fmt: skip
    assert ended.stderr == b""


def test_integer_inputs_are_counted_with_dtype(separable: Callable[..., Any]) -> None:
    counted = separable("summary", "networks_for_cli:words", "--input", "7", "--dtype", "int64", "--json")
    assert json.loads(counted.out)["macs"] == 7 * 4 * 3
    refused = separable("summary", "networks_for_cli:words", "--input", "7", "--dtype", "word")
    assert refused.code == 2
    assert "--dtype word" in refused.err


def test_all_networks_of_a_family_are_proposed(separable: Callable[..., Any]) -> None:
    outcome = separable("summary", "resnet", "--input", "3,32,32")
    assert "did you mean resnet18, resnet34, resnet50, resnet20, resnet32, resnet44 or resnet56?" in outcome.err


def test_budget_that_the_dense_network_meets_is_named(separable: Callable[..., Any]) -> None:
    outcome = separable(*shlex.split(f"{CONVERT} --budget macs=1 --images 64 -o met"))
    assert outcome.code == 0
    assert (
        "separable: warning: the dense network already meets Budget(macs=1.0): no layer is converted\n" in outcome.err
    )
    assert "0 converted, 2 kept dense" in outcome.out


def test_place_that_cannot_be_written_is_not_called_busy(separable: Callable[..., Any]) -> None:
    outcome = separable("export", "converted", "--model", SMALL, "--to", "pt2", "-o", "/proc/x.pt2")
    assert outcome.code == 2
    assert "cannot write into /proc" in outcome.err


@pytest.mark.parametrize("order", ["depthwise_first", "pointwise_first"])
def test_explain_says_what_of_grouped_layers_it_does_not_show(order: Any) -> None:
    layer = ts.nn.DepthwiseSeparableConv2d(4, 8, 3, groups=2, padding=1, order=order)
    with pytest.raises(ts.SeparableError, match="groups=1"):
        ts.explain(layer, (3, 3))
    with pytest.raises(ts.SeparableError, match="pointwise convolution of an explained layer has one group"):
        ts.explain(in_channels=4, out_channels=8, kernel_size=3, groups=2, order=order, input_shape=(3, 3))
