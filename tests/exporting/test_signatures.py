"""Networks are exported whatever the signature of their forward, for the batch sizes that they accept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from torch_separable import export
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.exporting.capture import Ready
from torch_separable.exporting.comparison import compare_outputs

IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def base() -> nn.Sequential:
    pooled = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*pooled, nn.Linear(32, 5)).eval()


class Star(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = base()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.inner(*args, **kwargs)  # type: ignore[no-any-return]


class Optional(Star):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, train: bool = False) -> Tensor:  # type: ignore[override]
        return self.inner(x)  # type: ignore[no-any-return]


class FixedBatch(nn.Module):
    """Views its features as those of a number of images that does not depend on the input."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.features, self.head = base()[:4], base()[5]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).view(self.batch, -1))  # type: ignore[no-any-return]


class FlattenAll(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 14 * 14, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.head(torch.flatten(torch.relu(self.conv(x)))))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "wrap",
    [Star, Optional, lambda: AveragedModel(base()), lambda: nn.DataParallel(base()), lambda: torch.compile(base())],
    ids=["*args", "optional arguments", "AveragedModel", "DataParallel", "torch.compile"],
)
@pytest.mark.parametrize("batch", [None, 4])
def test_wrapper_is_exported(tmp_path: Path, wrap: Any, batch: int | None) -> None:
    network = wrap().eval()
    made = export(network, tmp_path / "a.pt2", images=IMAGES, batch=batch)
    assert made.parity["torch.export"] < 1e-4
    loaded = torch.export.load(tmp_path / "a.pt2").module()
    assert loaded(IMAGES[:4]).shape == (4, 5)


@pytest.mark.parametrize(("network", "batch"), [(FixedBatch(4), 4), (FixedBatch(1), 1), (FlattenAll(), 1)])
def test_network_of_a_fixed_batch_is_exported_for_it_and_says_which(
    tmp_path: Path, network: nn.Module, batch: int
) -> None:
    with pytest.raises(SeparableError, match=rf"does not take .* It accepts batches of {batch}: .*batch"):
        export(network, tmp_path / "a.pt2", images=IMAGES)
    assert export(network, tmp_path / "a.pt2", images=IMAGES, batch=batch).batch == batch


def test_wrong_shape_gets_no_advice_about_the_batch(tmp_path: Path) -> None:
    with pytest.raises(SeparableError, match=r"\(2, 1, 16, 16\)") as refused:
        export(base(), tmp_path / "a.pt2", input_shape=(1, 16, 16))
    assert "batch" not in str(refused.value)


def test_network_of_a_fixed_image_size_is_not_exported_for_a_dynamic_one(tmp_path: Path) -> None:
    fixed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 5))
    with pytest.raises(SeparableError, match=r"fixed size.*dynamic_size"):
        export(fixed, tmp_path / "a.pt2", images=IMAGES, dynamic_size=True)
    with pytest.raises(SeparableValueError, match="dynamic_size"):
        export(fixed, tmp_path / "a.pte", images=IMAGES, dynamic_size=True)


class Heads(nn.Module):
    """Two outputs for each image, in the container that ``pack`` makes."""

    def __init__(self, pack: Any) -> None:
        super().__init__()
        self.features, self.head, self.box = base()[:5], nn.Linear(32, 5), nn.Linear(32, 4)
        self.pack = pack

    def forward(self, x: Tensor) -> Any:
        features = self.features(x)
        return self.pack(self.head(features), 1000 * self.box(features))


CONTAINERS = {
    "tuple": (lambda a, b: (a, b), ("output_0", "output_1")),
    "list": (lambda a, b: [a, b], ("output_0", "output_1")),
    "mapping": (lambda a, b: {"cls": a, "more": {"box": b}}, ("cls", "more_box")),
}


@pytest.mark.parametrize(
    ("container", "suffix", "batch"), [("tuple", "onnx", None), ("list", "pt2", None), ("mapping", "onnx", 4)]
)
def test_all_tensors_of_an_output_are_exported(tmp_path: Path, container: str, suffix: str, batch: int | None) -> None:
    pack, names = CONTAINERS[container]
    network, path = Heads(pack).eval(), tmp_path / f"a.{suffix}"
    made = export(network, path, images=IMAGES, batch=batch)
    assert made.outputs == names
    assert ", ".join(names) in str(made)
    with torch.no_grad():
        expected = (network.head(network.features(IMAGES[:4])), 1000 * network.box(network.features(IMAGES[:4])))
    if suffix == "pt2":
        found = torch.export.load(path).module()(IMAGES[:4])
    else:
        session = pytest.importorskip("onnxruntime").InferenceSession(path)
        assert tuple(output.name for output in session.get_outputs()) == names
        found = [torch.from_numpy(output) for output in session.run(None, {"images": IMAGES[:4].numpy()})]
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_each_output_is_compared_at_its_own_scale() -> None:
    ready = Ready(lambda x: (x, 1000 * x), ("small", "large"))  # type: ignore[arg-type]
    found = compare_outputs("a runtime", lambda x: (x + 0.05, 1000 * x + 0.05), ready, [IMAGES])
    assert [each.exceeds(1e-4) for each in found] == [True, False]
    assert "output small differs" in found[0].describe("a runtime", 1e-4)


def test_output_without_a_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(SeparableError, match="returns dict, which holds no tensor"):
        export(Heads(lambda a, b: {"shape": a.shape}).eval(), tmp_path / "a.pt2", images=IMAGES)
