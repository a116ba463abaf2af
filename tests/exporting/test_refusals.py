"""What cannot be exported is told in one line; a file that was there stays; the network is never changed."""

from __future__ import annotations

import contextlib
import copy
import resource
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_separable import MissingExtraError, SeparableError, export, load, save
from torch_separable.exporting import exporter, to_executorch, to_onnx
from torch_separable.models import CifarResNet


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, -1)


class Stubborn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Any:
        return x.numpy() * 2


class Wrapped(nn.Module):
    """Returns an object with logits, as ``transformers`` does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small()

    def forward(self, x: Tensor) -> Any:
        return SimpleNamespace(logits=self.net(x))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("a.tflite", {}, r"a\.tflite .*\.onnx, \.pt2, \.pte"),
        ("a.onnx", {"to": "tflite"}, "to='tflite': must be one of onnx, pt2, executorch"),
        ("a.onnx", {"to": "pt2"}, r"a\.onnx .*onnx.* to='pt2'"),
        ("a.onnx", {"images": [torch.zeros(3, 9, 9)]}, r"images are a list: expected a tensor \(N, C, H, W\)"),
        ("a.onnx", {"input_shape": None}, "give input_shape"),
        ("a.onnx", {"input_shape": (3, 0, 8)}, r"input_shape=\(3, 0, 8\): must be positive whole numbers"),
        ("a.onnx", {"input_shape": (1, 8, 8)}, r"does not take images of shape \(2, 1, 8, 8\)"),
        ("a.onnx", {"images": torch.zeros(2, 1, 8, 8)}, r"images have shape \(2, 1, 8, 8\): expected \(N, 3, 8, 8\)"),
        ("a.onnx", {"images": torch.zeros(0, 3, 8, 8)}, "N at least 1"),
        ("a.onnx", {"batch": 0}, "batch=0: must be a whole number"),
        ("a.onnx", {"opset": 9}, "opset=9: .*must be one of 18 to"),
        ("a.pt2", {"opset": 18}, "opset=18: .*ONNX"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SeparableError, match=message):
        export(small(), tmp_path / name, **{"input_shape": (3, 8, 8), **arguments})
    assert not list(tmp_path.iterdir())


def test_folder_as_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SeparableError, match=r"is a folder.*model\.onnx"):
        export(small(), tmp_path, to="onnx", input_shape=(3, 8, 8))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branching(), r"^Branching cannot be exported: torch.export says .*forward may not branch"),
        (FixedBatch(), r"^FixedBatch can be exported only for batches of a fixed size: .*\. Give batch=N"),
        (Stubborn(), r"^Stubborn returns ndarray, which holds no tensor"),
    ],
)
def test_error_of_an_unexportable_network_is_one_line(tmp_path: Path, model: nn.Module, message: str) -> None:
    (tmp_path / "a.onnx").write_text("before")
    with pytest.raises(SeparableError, match=message) as refused:
        export(model, tmp_path / "a.onnx", input_shape=(3, 8, 8))
    assert len(str(refused.value).splitlines()) == 1
    assert (tmp_path / "a.onnx").read_text() == "before"


def test_network_for_a_fixed_batch_is_exported_for_it(tmp_path: Path) -> None:
    made = export(FixedBatch(), tmp_path / "a.pt2", input_shape=(3, 8, 8), batch=2, images=torch.randn(5, 3, 8, 8))
    assert (made.batch, made.images, made.largest > 1) == (2, 5, True)


def test_logits_are_found_in_what_the_network_returns(tmp_path: Path) -> None:
    assert export(Wrapped(), tmp_path / "a.onnx", input_shape=(3, 8, 8)).parity["ONNX Runtime"] < 1e-4


def test_omitted_outputs_are_named(tmp_path: Path) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.net(x), "features": x}

    with pytest.warns(UserWarning, match="Both returns features besides its logits"):
        export(Both().eval(), tmp_path / "a.pt2", input_shape=(3, 9, 9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_network_is_not_changed(tmp_path: Path, dtype: torch.dtype) -> None:
    model = small().to(dtype).train()
    before = copy.deepcopy(model.state_dict())
    export(model, tmp_path / "a.pt2", input_shape=(3, 8, 8))
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(
        torch.equal(before[name], tensor) and before[name].dtype == tensor.dtype for name, tensor in after.items()
    )


def test_saved_network_knows_the_shape_of_its_images(tmp_path: Path) -> None:
    model = load(save(CifarResNet(1), tmp_path / "n", input_shape=(3, 16, 16)))
    assert export(model, tmp_path / "a.pt2").input_shape == (3, 16, 16)


@pytest.mark.parametrize(("name", "runner"), [("a.onnx", "to_onnx"), ("a.pt2", "to_pt2")])
def test_file_with_other_outputs_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, runner: str
) -> None:
    module = getattr(exporter, runner)
    runtimes = module.runtimes

    def slightly_off(content: bytes, **settings: bool) -> Any:
        found = runtimes(content, **settings)
        return {key: lambda images, run=run: (run(images)[0] + 2e-4,) for key, run in found.items()}

    monkeypatch.setattr(module, "runtimes", slightly_off)
    with pytest.raises(SeparableError, match=r"a\..* is not written: .* 2\.0e-04"):
        export(small(), tmp_path / name, input_shape=(3, 8, 8))
    assert not list(tmp_path.iterdir())


def test_nan_outputs_are_refused(tmp_path: Path) -> None:
    model = small()
    nn.init.constant_(model[0].weight, torch.nan)  # type: ignore[index, arg-type]
    with pytest.raises(SeparableError, match="by nan"):
        export(model, tmp_path / "a.pt2", input_shape=(3, 8, 8))
    assert not list(tmp_path.iterdir())


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_leaves_the_existing_file(tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_text("before")
    with files_of_at_most(1000), pytest.raises(SeparableError, match=r"cannot write .*a\.pt2"):
        export(small(), tmp_path / "a.pt2", input_shape=(3, 8, 8))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


@pytest.mark.parametrize(
    ("name", "module", "missing", "extra"),
    [
        ("a.onnx", to_onnx, "onnxscript", "export"),
        ("a.onnx", to_onnx, "onnxruntime", "export"),
        ("a.pte", to_executorch, "executorch.exir", "executorch"),
    ],
)
def test_missing_package_is_named_with_the_extra_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: Any, missing: str, extra: str
) -> None:
    optional = module.optional
    absent = f"no_such_{missing}"
    monkeypatch.setattr(module, "optional", lambda wanted, by: optional(absent if wanted == missing else wanted, by))
    with pytest.raises(
        MissingExtraError, match=rf"no_such_\w+ is not installed: pip install 'torch-separable\[{extra}\]'"
    ):
        export(small(), tmp_path / name, input_shape=(3, 8, 8))
    assert not list(tmp_path.iterdir())
