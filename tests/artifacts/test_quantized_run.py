"""A quantized network comes back from its folder with the same bits; a damaged folder is refused in one sentence."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import torch_separable as ts
from torch_separable.data import Preparation
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.quantization import Quantized, QuantizedNetwork
from torch_separable.runtime.graph.ir import Convolution

NAMES = ["README.md", "config.json", "model.safetensors", "network.json", "results.json"]


class Branches(nn.Module):
    """Depthwise, dense and linear layers, a sum, a concatenation, a table and sizes that follow the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.depthwise = nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.project = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(16 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu6(self.project(F.relu(self.depthwise(x))) + x)
        z = F.max_pool2d(torch.cat([x, y], 1), 2)
        return self.head(z.reshape(z.shape[0], -1))


def images(count: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def quantized() -> Quantized:
    torch.manual_seed(0)
    return ts.quantize(Branches().eval(), images(), exclude=["project"])


@pytest.fixture(scope="module")
def saved(quantized: Quantized, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ts.save(quantized, tmp_path_factory.mktemp("saved") / "network")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "network")
    return tmp_path / "network"


def test_it_comes_back_with_the_same_bits(quantized: Quantized, saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == NAMES
    again = ts.load(saved)
    assert isinstance(again, QuantizedNetwork)
    assert again.input_shape == (3, 16, 16)
    for count in (1, 5):
        x = images(count, seed=1)
        assert torch.equal(again(x), quantized.model(x))
        assert torch.equal(ts.compile(again, x)(x), ts.compile(quantized.model, x)(x))
    floats = [node for node in again.program(images(1)).nodes if isinstance(node, Convolution)]
    assert [node.weight.shape for node in floats] == [(8, 8, 1, 1)], "the excluded layer is not in float32"


def test_it_can_be_saved_again_and_pickled(quantized: Quantized, saved: Path, tmp_path: Path) -> None:
    x = images(2, seed=1)
    again = ts.load(ts.save(ts.load(saved), tmp_path / "again"))
    assert torch.equal(again(x), quantized.model(x))
    assert (tmp_path / "again" / "network.json").read_bytes() == (saved / "network.json").read_bytes()
    for one in (quantized.model, again):
        assert torch.equal(pickle.loads(pickle.dumps(one))(x), quantized.model(x))


def test_the_folder_holds_report_preparation_and_card(quantized: Quantized, tmp_path: Path) -> None:
    made = Preparation(image_size=(16, 16), channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    folder = ts.save(quantized, tmp_path, preparation=made, results={"accuracy": 0.5})
    results = json.loads((folder / "results.json").read_text())
    assert results["quantization"] == json.loads(json.dumps(quantized.report.to_dict()))
    assert "| layers in int8 | 3; 1 stay in float32 |" in (folder / "README.md").read_text()
    assert "| accuracy | 0.5 |" in (folder / "README.md").read_text()
    assert ts.artifacts.run_directory.read_preparation(folder) == made


def test_a_folder_changes_between_a_converted_and_a_quantized_network(quantized: Quantized, tmp_path: Path) -> None:
    converted = ts.models.resnet20(num_classes=3).eval()
    x = images(2)
    ts.save(converted, tmp_path)
    ts.save(quantized, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == NAMES
    assert torch.equal(ts.load(tmp_path)(x), quantized.model(x))
    ts.save(converted, tmp_path)
    assert not (tmp_path / "network.json").exists()
    assert torch.equal(ts.load(tmp_path)(x), converted(x))


def test_arguments_of_other_networks_are_refused(quantized: Quantized, tmp_path: Path) -> None:
    with pytest.raises(SeparableValueError, match="network is given, but a quantized network is stored as it is"):
        ts.save(quantized, tmp_path, network="resnet20")
    with pytest.raises(SeparableError, match="results cannot be written as JSON"):
        ts.save(quantized, tmp_path, results={"accuracy": float("nan")})


def test_the_network_of_another_command_is_not_sought_in_it(saved: Path) -> None:
    with pytest.raises(SeparableError, match="holds a quantized network, which cannot be converted or trained"):
        ts.artifacts.run_directory.read_network(saved)


def edited(change: Callable[[Any], Any], name: str = "network.json") -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        document = json.loads((folder / name).read_text())
        change(document)
        (folder / name).write_text(json.dumps(document))

    return damage


def calls(document: Any, target: str) -> Any:
    return next(node for node in document["nodes"] if node.get("target") == target)


QUANTIZE = "quantized_decomposed.quantize_per_tensor.default"
CONV = "aten.conv2d.default"


def with_tensor(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a file to read": (edited(lambda d: calls(d, CONV).update(target="aten.from_file.default")), "not permitted"),
    "python": (edited(lambda d: calls(d, CONV).update(target="os.system")), "not permitted"),
    "an operator in place": (edited(lambda d: calls(d, CONV).update(target="aten.relu_.default")), "not permitted"),
    "an attribute": (edited(lambda d: calls(d, CONV).update(target="aten.conv2d.__class__")), "not permitted"),
    "a method": (edited(lambda d: calls(d, CONV).update(op="call_method")), "not a kind of operator"),
    "no list": (edited(lambda d: d.update(nodes=3)), "is damaged"),
    "unknown value": (edited(lambda d: calls(d, QUANTIZE)["args"].__setitem__(0, {"node": "nowhere"})), "is damaged"),
    "scale 0": (edited(lambda d: calls(d, QUANTIZE)["args"].__setitem__(1, 0.0)), "that uint8 cannot have"),
    "scale infinite": (edited(lambda d: calls(d, QUANTIZE)["args"].__setitem__(1, {"float": "inf"})), "cannot have"),
    "zero point": (edited(lambda d: calls(d, QUANTIZE)["args"].__setitem__(2, 256)), "that uint8 cannot have"),
    "stride": (edited(lambda d: calls(d, CONV)["args"].__setitem__(3, "abc")), "not an argument of any operator"),
    "operands": (edited(lambda d: calls(d, CONV)["args"].__setitem__(1, 3)), "does not run on an image"),
    "name": (edited(lambda d: d["nodes"][0].update(name="x = 1; y")), "not the name of one operator"),
    "huge": (edited(lambda d: d.update(input_shape=[3, 9**5, 9**5]), "config.json"), "exceeds any memory"),
    "no shape": (edited(lambda d: d.update(input_shape=[3, 9.5, 9]), "config.json"), "must be the shape of an image"),
    "version": (edited(lambda d: d.update(version=2)), "version 2: this release reads version 1"),
    "config's version": (edited(lambda d: d.update(version="x"), "config.json"), "reads version 1: quantize again"),
    "no operators": (lambda folder: (folder / "network.json").unlink(), "network.json does not exist"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors does not exist"),
    "weight missing": (with_tensor(lambda t: t.pop("int8_conv2d_weight")), "'int8_conv2d_weight' is missing"),
    "weight too many": (with_tensor(lambda t: t.update(extra=torch.zeros(2))), "does not name"),
    "weight of a shape": (with_tensor(lambda t: t.update(int8_conv2d_weight=torch.zeros(8, 2, 3, 3))), "does not run"),
    "scales negative": (with_tensor(lambda t: t["int8_conv2d_scales"].neg_()), "a scale that is not above 0"),
    "bias infinite": (with_tensor(lambda t: t["int8_linear_bias"].fill_(torch.inf)), "NaN or infinity"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folders_are_refused(name: str, folder: Path) -> None:
    damage, reason = DAMAGE[name]
    damage(folder)
    with pytest.raises(SeparableError, match=reason) as caught:
        ts.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["network.json", "config.json", "model.safetensors"])
def test_truncated_and_scrambled_files_are_refused_or_compute_something(name: str, folder: Path) -> None:
    whole, chance = (folder / name).read_bytes(), random.Random(0)
    refused = 0
    for turn in range(60):
        content = bytearray(whole)
        if turn % 2:
            content = content[: chance.randrange(len(whole))]
        else:
            for _ in range(3):
                content[chance.randrange(len(whole))] = chance.randrange(256)
        (folder / name).write_bytes(content)
        message = ""
        try:
            ts.load(folder)
        except SeparableError as error:
            message = str(error)
            refused += 1
        assert "\n" not in message
    assert refused >= 30, "every truncated file should be refused"
