"""Quantized networks as QDQ ONNX: ONNX Runtime and OpenVINO compute the same integers, to within one quantum."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - registers the operators that a .pt2 file names

import torch_separable as ts
from torch_separable import export
from torch_separable.errors import SeparableError
from torch_separable.exporting.qdq import with_integer_biases
from torch_separable.exporting.to_onnx import IN_FLOAT32
from torch_separable.quantization import Quantized
from torch_separable.runtime.graph.ir import Node
from torch_separable.runtime.graph.reference import run_program

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


class Mixed(nn.Module):
    """Dense, grouped, depthwise and linear layers, a residual, an excitation, tables, pooling and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.grouped = nn.Conv2d(8, 16, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.excite = nn.Conv2d(16, 16, 1)
        self.project = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.hardswish(self.depthwise(F.relu(self.grouped(x))))
        y = self.project(y * F.hardsigmoid(self.excite(y.mean((2, 3), keepdim=True)))) + x
        return self.head(torch.cat([F.max_pool2d(y, 3, 2, 1), F.avg_pool2d(x, 2)], 1).mean((2, 3)))


def images(count: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def quantized() -> Quantized:
    torch.manual_seed(0)
    model = Mixed()
    with torch.no_grad():
        model.train()(images(64))
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return ts.quantize(model.eval(), images())


@pytest.fixture(scope="module")
def content(quantized: Quantized, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("exported") / "network.onnx"
    with warnings.catch_warnings(action="ignore"):  # OpenVINO's kernels saturate on processors without VNNI
        made = export(quantized.model, path, images=images(16, seed=1))
    assert {"QuantizeLinear", "DequantizeLinear", "Conv", "Gemm"} <= made.operators.keys()
    assert made.parity["ONNX Runtime"] <= 0.01 * made.largest
    assert made.parity[IN_FLOAT32] <= 0.01 * made.largest
    return path.read_bytes()


def session(content: bytes) -> Any:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def test_every_value_is_that_of_our_kernels_to_within_one_quantum(quantized: Quantized, content: bytes) -> None:
    x = images(16, seed=1)
    ours: dict[str, Tensor] = {}

    def observe(node: Node, value: Any) -> None:
        ours[node.output] = value

    run_program(quantized.model.program(x), x, observe)
    model = onnx.load_from_string(content)
    names = [n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear" and n.output[0] in ours]
    assert len(names) >= 10
    assert any(ours[name].float().std() > 20 for name in names), "values should use their range"
    for name in names:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None))
    values = session(model.SerializeToString()).run(names, {"images": x.numpy()})
    for name, theirs in zip(names, values, strict=True):
        difference = np.abs(theirs.astype(int) - ours[name].numpy().reshape(theirs.shape).astype(int))
        # Ties that float32 rounds in another direction; layers behind such a value then differ by as little.
        assert difference.max() <= 1, name
        assert (difference > 0).mean() < 1e-3, name


def test_weights_are_s8_per_channel_and_biases_int32(quantized: Quantized, content: bytes) -> None:
    graph = onnx.load_from_string(content).graph
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    state = quantized.model.captured.state_dict()
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == len(quantized.report.layers)
    for layer in layers:
        x, weight, bias = (makers[name] for name in layer.input)
        assert [node.op_type for node in (x, weight, bias)] == ["DequantizeLinear"] * 3
        stored, scales, zero_points = (constants[name] for name in weight.input)
        name = weight.input[0].removeprefix("captured.").removesuffix("_weight")
        assert stored.dtype == np.int8
        assert np.array_equal(stored, state[f"{name}_weight"].numpy())
        assert np.array_equal(scales, state[f"{name}_scales"].numpy())
        assert not zero_points.any()
        multiples, steps, _ = (constants[name] for name in bias.input)
        assert multiples.dtype == np.int32
        assert np.allclose(multiples * steps, state[f"{name}_bias"].numpy(), rtol=1e-6, atol=0)
        assert np.allclose(steps, scales * constants[x.input[1]], rtol=1e-6)


def test_any_batch_runs(quantized: Quantized, content: bytes) -> None:
    run = session(content)
    for count in (1, 5):
        x = images(count, seed=2)
        got = torch.from_numpy(run.run(None, {"images": x.numpy()})[0])
        torch.testing.assert_close(got, quantized.model(x), rtol=0, atol=0.02)


def test_onnx_runtime_fuses_integer_kernels(content: bytes, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") >= 3


def test_pt2_files_hold_the_same_network(quantized: Quantized, tmp_path: Path) -> None:
    path = tmp_path / "network.pt2"
    made = export(quantized.model, path, images=images(8, seed=1))
    assert made.operators["quantized_decomposed.dequantize_per_channel.default"] == len(quantized.report.layers)
    x = images(4, seed=1)
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        got = torch.export.load(path).module()(x)
        assert torch.equal(got, quantized.model.captured(x))


def test_executorch_is_refused(quantized: Quantized, tmp_path: Path) -> None:
    with pytest.raises(SeparableError, match="int8 activations, and this network has uint8 ones"):
        export(quantized.model, tmp_path / "network.pte")
    assert not list(tmp_path.glob("*.pte"))


def test_a_bias_between_the_steps_of_the_sums_stays_float32(content: bytes) -> None:
    model = onnx.load_from_string(content)
    makers = {node.output[0]: node for node in model.graph.node}
    layer = next(node for node in model.graph.node if node.op_type == "Conv")
    steps = next(each for each in model.graph.initializer if each.name == makers[layer.input[2]].input[1])
    half = 0.5 * onnx.numpy_helper.to_array(steps)
    model.graph.initializer.append(onnx.numpy_helper.from_array(half.astype(np.float32), "half"))
    layer.input[2] = "half"
    again = next(node for node in with_integer_biases(model).graph.node if node.op_type == "Conv")
    assert again.input[2] == "half"
