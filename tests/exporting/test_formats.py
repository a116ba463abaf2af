"""What is exported runs elsewhere with the network's own outputs, on real images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torch_separable as ts
from torch_separable import convert, export
from torch_separable._network.weights_file import load_weights
from torch_separable.data import IMAGENET_MEAN, IMAGENET_STD
from torch_separable.errors import SeparableError
from torch_separable.models import mobilenet_v1, resnet20
from torch_separable.nn import DepthwiseSeparableConv2d

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


def expected(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(images)


def run_onnx(path: Path, images: torch.Tensor) -> torch.Tensor:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def run_openvino(path: Path, images: torch.Tensor) -> torch.Tensor:
    ov = pytest.importorskip("openvino")
    compiled = ov.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(compiled(images.numpy())[0])


def test_onnx_agrees_on_real_digits_in_batches_of_any_size(tmp_path: Path, digits: Any) -> None:
    path = tmp_path / "Zahlen 数字.onnx"
    made = export(digits.conversion, path, images=digits.images)
    assert set(made.parity) == {"ONNX Runtime", "OpenVINO"}
    assert max(made.parity.values()) < 1e-4
    assert (made.images, made.real, made.opset, made.batch) == (64, True, 18, None)
    assert made.bytes == path.stat().st_size
    for count in (1, 3, 64):
        images = digits.images[:count]
        for run in (run_onnx, run_openvino):
            torch.testing.assert_close(run(path, images), expected(digits.model, images), rtol=0, atol=1e-4)


def test_onnx_and_pt2_of_a_cifar_checkpoint_agree_on_its_test_images(tmp_path: Path, shared_data: Path) -> None:
    dense = resnet20()
    load_weights(dense, shared_data / "resnet20-12fca82f.th")
    sheet = next((shared_data / "cifar10").glob("test_*.webp"), None)
    if sheet is None:
        pytest.skip("no sheets of CIFAR-10")
    image = pytest.importorskip("PIL.Image")
    # Any 32x32 tiles of a sheet are pixels of real photographs, prepared as for training.
    pixels = np.asarray(image.open(sheet).convert("RGB"))[: 8 * 32, : 8 * 32].reshape(8, 32, 8, 32, 3)
    tiles = torch.from_numpy(pixels.swapaxes(1, 2).reshape(64, 32, 32, 3).copy()).permute(0, 3, 1, 2).float() / 255
    images = (tiles - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    conversion = convert(dense, images[:32], rank=3, method="svd")
    for name in ("a.onnx", "a.pt2"):
        made = export(conversion, tmp_path / name, images=images[32:])
        assert made.largest > 5, "logits of a network that knows what it sees"
        assert max(made.parity.values()) < 1e-4


def test_separable_layer_is_two_conv_nodes_and_nothing_more(tmp_path: Path) -> None:
    layer = DepthwiseSeparableConv2d(8, 16, 3, padding=1, norm_layer=nn.BatchNorm2d)
    nn.init.uniform_(layer.bn1.running_mean)
    made = export(layer, tmp_path / "layer.onnx", input_shape=(8, 12, 12))
    assert made.operators == {"Conv": 2}
    graph = onnx.load(tmp_path / "layer.onnx").graph
    assert [node.op_type for node in graph.node] == ["Conv", "Conv"]
    assert len(graph.initializer) == 4  # a kernel and a bias each
    groups = [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}["group"] for node in graph.node]
    assert groups == [8, 1]


@pytest.mark.parametrize("order", ["depthwise_first", "pointwise_first"])
def test_convolution_with_a_norm_is_two_conv_nodes_once_it_is_converted(tmp_path: Path, order: Any) -> None:
    dense = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
    conversion = convert(dense, torch.randn(8, 3, 12, 12), rank=2, order=order)
    made = export(conversion, tmp_path / "layer.onnx")
    assert made.operators == {"Conv": 2}
    assert made.input_shape == (3, 12, 12)


def test_file_that_openvino_cannot_load_is_written_with_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")).eval()
    with pytest.warns(UserWarning, match=r"OpenVINO .* the file"):
        file = export(model, tmp_path / "ring.onnx", input_shape=(3, 8, 8))
    assert list(file.parity) == ["ONNX Runtime"]


def test_a_network_that_changes_its_input_is_exported(tmp_path: Path) -> None:
    images = torch.randn(4, 3, 8, 8)
    before = images.clone()
    export(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3)), tmp_path / "net.pt2", images=images)
    assert torch.equal(images, before)


def test_mobilenet_is_conv_nodes_and_activations(tmp_path: Path) -> None:
    made = export(mobilenet_v1(0.25), tmp_path / "m.onnx", input_shape=(3, 64, 64))
    assert made.operators == {"Conv": 27, "Relu": 27, "ReduceMean": 1, "Gemm": 1}


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_file_has_the_requested_opset(tmp_path: Path, opset: int) -> None:
    layer = DepthwiseSeparableConv2d(3, 4, 3)
    export(layer, tmp_path / "a.onnx", input_shape=(3, 8, 8), opset=opset)
    model = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert model.producer_name == "torch-separable"
    (given,), (returned,) = model.graph.input, model.graph.output
    assert (given.name, returned.name) == ("images", "logits")
    sizes = [dimension.dim_param or dimension.dim_value for dimension in given.type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, 8, 8]


PT2 = """
import sys, torch
program = torch.export.load(sys.argv[1])
images = torch.load(sys.argv[2], weights_only=True)
torch.save([program.module()(images[:n]) for n in (1, 3, 64)], sys.argv[3])
assert not any(name.startswith("torch_separable") for name in sys.modules)
"""


def test_pt2_is_reloaded_in_a_new_process_that_knows_nothing_of_this_package(tmp_path: Path, digits: Any) -> None:
    made = export(digits.conversion, tmp_path / "é n.pt2", images=digits.images)
    assert made.parity["torch.export"] < 1e-4
    assert not [name for name in made.operators if "norm" in name]
    torch.save(digits.images, tmp_path / "images.pt")
    files = [str(tmp_path / name) for name in ("é n.pt2", "images.pt", "outputs.pt")]
    subprocess.run([sys.executable, "-c", PT2, *files], check=True)
    for count, output in zip((1, 3, 64), torch.load(tmp_path / "outputs.pt", weights_only=True), strict=True):
        torch.testing.assert_close(output, expected(digits.model, digits.images[:count]), rtol=0, atol=1e-4)


def test_pt2_of_a_fused_network_is_reloaded_in_a_new_process(tmp_path: Path) -> None:
    network, images = mobilenet_v1(0.25, num_classes=5).eval(), torch.randn(64, 3, 32, 32)
    outputs = expected(network, images)
    ts.runtime.fuse_modules(network)
    export(network, tmp_path / "fused.pt2", images=images[:2])
    torch.save(images, tmp_path / "images.pt")
    files = [str(tmp_path / name) for name in ("fused.pt2", "images.pt", "outputs.pt")]
    subprocess.run([sys.executable, "-c", PT2, *files], check=True)
    for count, output in zip((1, 3, 64), torch.load(tmp_path / "outputs.pt", weights_only=True), strict=True):
        torch.testing.assert_close(output, outputs[:count], rtol=1e-4, atol=1e-4)
    assert len(ts.runtime.fuse_modules(network).fused) == 0, "the network itself must stay fused"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fused.onnx", "fused.pte"])
def test_fused_network_is_exported_as_its_layers(tmp_path: Path, name: str) -> None:
    pytest.importorskip("executorch.runtime" if name.endswith(".pte") else "onnxruntime")
    network = nn.Sequential(DepthwiseSeparableConv2d(3, 8, 3, norm_layer=nn.BatchNorm2d, act_layer=nn.ReLU)).eval()
    ts.runtime.fuse_modules(network)
    made = export(network, tmp_path / name, input_shape=(3, 8, 8))
    assert sum(made.operators.values()) == (1 if name.endswith(".pte") else 4)


def test_operator_of_this_package_is_refused(tmp_path: Path) -> None:
    class Calling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            weights = torch.ones(3, 1, 3, 3), torch.zeros(3), torch.ones(4, 3, 1, 1), torch.zeros(4)
            linear = [0.0, -torch.inf, torch.inf]
            windows = [1, 1], [1, 1, 1, 1], [1, 1]
            return torch.ops.torch_separable.separable_conv2d(x, *weights, *windows, linear, linear, False)

    with pytest.raises(SeparableError, match=r"a\.pt2 is not written: .*separable_conv2d"):
        export(Calling(), tmp_path / "a.pt2", input_shape=(3, 8, 8))


@pytest.mark.parametrize("name", ["a.onnx", "a.pt2"])
def test_file_of_dynamic_size_takes_images_of_other_sizes(tmp_path: Path, name: str) -> None:
    network = mobilenet_v1(0.25, num_classes=5).eval()
    export(network, tmp_path / name, input_shape=(3, 64, 64), dynamic_size=True)
    for images in (torch.randn(1, 3, 96, 96), torch.randn(3, 3, 65, 33)):
        if name.endswith(".onnx"):
            session = ort.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])
            assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
            got = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        else:
            got = torch.export.load(tmp_path / name).module()(images)
        torch.testing.assert_close(got, expected(network, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("pool", "size"),
    [
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True), 4),
        (nn.AvgPool2d(4, 2, 0, ceil_mode=True), 9),
        (nn.AvgPool2d(2, 3, 1, ceil_mode=True, count_include_pad=False), 4),
        (nn.MaxPool2d(3, 2, ceil_mode=True), 8),
    ],
    ids=str,
)
def test_pooling_with_ceil_mode_is_written_if_onnx_runtime_agrees(
    tmp_path: Path, pool: nn.Module, size: int, recwarn: pytest.WarningsRecorder
) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), pool, nn.Conv2d(8, 4, 1)).eval()
    made = export(network, tmp_path / "a.onnx", images=torch.randn(4, 3, size, size))
    assert made.parity["ONNX Runtime"] < 1e-4
    differing = [name for name, difference in made.parity.items() if difference > 1e-4]
    assert differing in ([], ["OpenVINO"])
    assert any("OpenVINO" in str(warning.message) for warning in recwarn) == bool(differing)


@pytest.mark.slow
def test_executorch_runs_the_whole_network_on_xnnpack(tmp_path: Path, digits: Any) -> None:
    runtime = pytest.importorskip("executorch.runtime")
    made = export(digits.conversion, tmp_path / "é n.pte", images=digits.images[:8])
    assert made.parity["ExecuTorch"] < 1e-3
    assert made.batch == 1
    assert made.operators["XNNPACK"] >= 1
    # What XNNPACK leaves are the shortcuts' slices and paddings, and nothing that multiplies.
    program = runtime.Runtime.get().load_program(tmp_path / "é n.pte")
    outputs = [program.load_method("forward").execute([image[None]])[0].clone() for image in digits.images[:8]]
    torch.testing.assert_close(torch.cat(outputs), expected(digits.model, digits.images[:8]), rtol=0, atol=1e-3)


@pytest.mark.slow
def test_executorch_takes_a_fixed_batch(tmp_path: Path) -> None:
    pytest.importorskip("executorch.runtime")
    layer = nn.Sequential(DepthwiseSeparableConv2d(3, 8, 3, norm_layer=nn.BatchNorm2d, act_layer=nn.ReLU))
    made = export(layer, tmp_path / "a.pte", input_shape=(3, 8, 8), batch=5)
    assert made.batch == 5
    assert made.operators == {"XNNPACK": 1, "others": 0}
