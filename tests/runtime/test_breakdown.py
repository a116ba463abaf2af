"""What explain counts of each operation follows from its shape; times and shares are those of the same machine."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import torch_separable as ts
from torch_separable.runtime import Breakdown, NodeTime, Peak, compile

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def breakdown() -> Breakdown:
    nodes = (
        NodeTime("input", "", "import", 0.1, 0, 2_000),
        NodeTime("conv2d", f"blocks.{'very' * 9}.{SCRIPT}", "separable", 0.4, 2_000_000, 100_000),
        NodeTime("softmax", "head", "PyTorch: aten.softmax.int (no kernel for this operator)", 0.5, 0, 0),
    )
    return Breakdown(nodes, 0.8, 1, Peak("avx2", 1, gflops=10.0, cache=5.0, memory=1.0))


def test_rates_are_operations_over_time_and_bytes(breakdown: Breakdown) -> None:
    node = breakdown.nodes[1]
    assert (node.gflops, node.intensity, breakdown.share_of_peak(node)) == pytest.approx((5.0, 20.0, 0.5))
    assert breakdown.share_of_roof(node) == pytest.approx(0.5)
    scarce = NodeTime("fc", "", "pointwise", 0.4, 400_000, 400_000)  # 1 GFLOP/s of the 5 that 5 GB/s allow
    assert breakdown.share_of_roof(scarce) == pytest.approx(0.2)
    assert breakdown.gflops == pytest.approx(2.5)  # two millions in 0.8 ms
    assert breakdown.nodes[2].intensity == 0.0


def test_kernel_names_are_not_cut_by_wide_numbers() -> None:
    wide = NodeTime("conv2d", "blocks.10.conv_pw", "separable", 12.345, 6_000_000_000_000, 123_456_789)
    text = str(Breakdown((wide,), 12.345, 1, Peak("avx512bf16", 1, gflops=486_000.0, cache=5e3, memory=1e3)))
    assert max(map(len, text.splitlines())) <= 80
    assert "separable" in text


def test_text_fits_a_terminal_and_says_what_runs_each_node(breakdown: Breakdown) -> None:
    text = str(breakdown)
    assert max(map(len, text.splitlines())) <= 80
    assert f"{SCRIPT[-8:]} " in text  # names are cut at the front, where they are alike
    assert "no kernel for" in " ".join(text.split())
    assert "25 % of the measured peak of 10 (avx2, float32, 1 thread)." in " ".join(text.split())


def test_document_and_notebook(breakdown: Breakdown) -> None:
    document = json.loads(json.dumps(breakdown.to_dict()))
    assert document["nodes"][1]["intensity"] == 20.0
    assert document["peak"]["gflops"] == 10.0
    html = breakdown._repr_html_()
    assert SCRIPT not in html
    assert "&lt;script&gt;" in html


def test_flops_and_bytes_of_operations() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 20, 3, stride=2, padding=1),
        ts.nn.DepthwiseSeparableConv2d(20, 24, 3, padding=1, act_layer=nn.ReLU),
        nn.Conv2d(24, 10, 1),
    )
    explained = compile(model.eval(), torch.randn(2, 3, 16, 16)).explain(rounds=2)
    found = {node.layer: (node.kind, node.flops, node.bytes) for node in explained.nodes}
    n, pixels = 2, 64
    floats = {
        "0": n * 3 * 256 + n * 20 * pixels + 20 * 27 + 20,
        "1.conv_pw": n * (20 + 24) * pixels + 20 * 10 + 24 * 21,
        "2": n * (24 + 10) * pixels + 10 * 25,
    }
    assert found == {
        "": ("import", 0, 2 * 4 * n * 3 * 256),
        "0": ("dense", 2 * n * pixels * 20 * 27, 4 * floats["0"]),
        "1.conv_pw": ("separable", 2 * n * pixels * 20 * (9 + 24), 4 * floats["1.conv_pw"]),
        "2": ("pointwise", 2 * n * pixels * 24 * 10, 4 * floats["2"]),
    }
    macs = ts.analyze(model, torch.zeros(2, 3, 16, 16)).macs
    assert sum(node.flops for node in explained.nodes) == 2 * macs
    assert explained.batch == 2
    assert all(node.milliseconds > 0 for node in explained.nodes)
