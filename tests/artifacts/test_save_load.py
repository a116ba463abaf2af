"""A network comes back from its folder as it was; a folder that is damaged or wants more than that is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import resource
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from torch_separable import Budget, Conversion, Plan, SeparableError, apply, convert, load, save
from torch_separable.artifacts import run_directory
from torch_separable.conversion import LayerPlan
from torch_separable.models import MobileNetV1, mobilenet_v1, resnet20
from torch_separable.models.registry import Network, built_by

WORKER = Path(__file__).with_name("saving_worker.py")
NAMES = ["README.md", "config.json", "model.safetensors", "plan.json", "results.json"]
OWN = """
from os import mkdir
from torch import nn
from torch_separable.models import CifarResNet

class Net(CifarResNet):
    def __init__(self, blocks=1, wide=False):
        super().__init__(blocks, 5, 3)
        self.wide = wide

def build(blocks=1, wide=False):
    return Net(blocks, wide)
"""


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def conversion() -> Conversion:
    torch.manual_seed(0)
    dense = resnet20(num_classes=7)
    for module in dense.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return convert(dense, images(8), budget=Budget(macs=0.4), method="svd")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of a user's own, importable and not yet imported."""
    (tmp_path / "importable").mkdir()
    (tmp_path / "importable" / "own_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path / "importable")
    yield "own_networks"
    sys.modules.pop("own_networks", None)


def same(one: nn.Module, other: nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(one.eval()(images()), other.eval()(images()))


@pytest.mark.parametrize("name", ["network", "Ünïcode 网络 and spaces", "new/folder/in it"])
def test_conversion_round_trips(tmp_path: Path, conversion: Conversion, name: str) -> None:
    folder = save(conversion, tmp_path / name)
    assert folder == tmp_path / name
    assert sorted(path.name for path in folder.iterdir()) == NAMES
    loaded = load(str(folder))
    assert not loaded.training
    assert same(loaded, conversion.model)
    assert Plan.load(folder / "plan.json") == conversion.plan
    assert built_by(loaded) == Network(
        "torch_separable.models:CifarResNet", {"blocks": 3, "num_classes": 7, "in_channels": 3}, (3, 32, 32)
    )


def test_plan_is_derived_from_the_network_if_it_is_not_given(tmp_path: Path, conversion: Conversion) -> None:
    save(conversion.model, tmp_path / "found", input_shape=(3, 32, 32))
    assert same(load(tmp_path / "found"), conversion.model)
    found = Plan.load(tmp_path / "found" / "plan.json")
    expected = {layer.name: (layer.order, layer.rank, layer.weight_shape) for layer in conversion.plan.layers}
    assert {layer.name: (layer.order, layer.rank, layer.weight_shape) for layer in found.layers} == expected
    assert (found.macs, found.parameters) == (conversion.plan.macs, conversion.plan.parameters)


@pytest.mark.parametrize("method", ["svd", "least_squares"])
def test_derived_plan_builds_the_existing_biases(tmp_path: Path, method: Any) -> None:
    dense = resnet20()
    layers = [LayerPlan("layer1.0.conv1", (16, 16, 3, 3), "pointwise_first", 2)]
    converted = apply(dense, Plan(method, tuple(layers)))
    save(converted, tmp_path)
    assert same(load(tmp_path), converted)


def test_loaded_network_is_saved_again_without_naming_its_function(tmp_path: Path, conversion: Conversion) -> None:
    first = save(conversion, tmp_path / "first")
    second = save(load(first), tmp_path / "second")
    assert same(load(second), conversion.model)
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_data_types_are_kept(tmp_path: Path, conversion: Conversion, dtype: torch.dtype) -> None:
    save(apply(load(save(conversion, tmp_path / "a")), Plan("svd", ())).to(dtype), tmp_path / "b")
    state = load(tmp_path / "b").state_dict()
    assert {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} == {dtype}


def test_a_loaded_network_of_another_type_is_counted_when_it_is_saved(tmp_path: Path, conversion: Conversion) -> None:
    save(conversion, tmp_path / "one")
    loaded = load(tmp_path / "one").to(torch.bfloat16)
    save(loaded, tmp_path / "two", input_shape=(3, 32, 32))
    assert Plan.load(tmp_path / "two" / run_directory.PLAN).macs == conversion.plan.macs


def test_totals_of_a_plan_that_was_edited_are_the_networks(tmp_path: Path, conversion: Conversion) -> None:
    layers = tuple(dataclasses.replace(layer, order=None, rank=0) for layer in conversion.plan.layers)
    edited = dataclasses.replace(conversion.plan, layers=layers)
    assert edited.macs[0] > edited.macs[1]
    save(apply(resnet20(num_classes=7), edited), tmp_path, plan=edited, input_shape=(3, 32, 32))
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.macs == (edited.macs[0], edited.macs[0])
    assert plan.parameters == (edited.parameters[0], edited.parameters[0])


def test_network_built_separable_is_saved(tmp_path: Path) -> None:
    network = mobilenet_v1(0.25, num_classes=4)
    assert same(load(save(network, tmp_path)), network)


@pytest.mark.parametrize("how", ["name", "function", "class", "Network"])
def test_own_network_is_built_by_its_function_where_the_caller_allows_it(tmp_path: Path, own: str, how: str) -> None:
    module = __import__(own)
    layer = LayerPlan("layer1.1.conv2", (16, 16, 3, 3), "depthwise_first", 2)
    converted = apply(module.build(blocks=2), Plan("svd", (layer,)))
    given: dict[str, Any] = {
        "name": {"network": f"{own}:build", "arguments": {"blocks": 2}},
        "function": {"network": module.build, "arguments": {"blocks": 2}},
        "class": {"network": module.Net, "arguments": {"blocks": 2}},
        "Network": {"network": Network(f"{own}:build", {"blocks": 2})},
    }[how]
    save(converted, tmp_path / "n", **given)
    for allow in ((own,), own, (f"{own}:build", f"{own}:Net")):
        assert same(load(tmp_path / "n", allow=allow), converted)


def test_module_that_is_not_allowed_is_not_imported(tmp_path: Path, own: str) -> None:
    save(__import__(own).build(), tmp_path / "n", network=f"{own}:build")
    del sys.modules[own]
    for allow in ((), "own", ("own_network", f"{own}:Net", f"{own}.below", "os")):
        with pytest.raises(SeparableError, match=rf'allow=\("{own}",\)'):
            load(tmp_path / "n", allow=allow)
        assert own not in sys.modules


MALICIOUS = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
def build():
    pathlib.Path(__file__).with_name("ran").touch()
"""


def edited(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_code_in_the_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(resnet20(), tmp_path / "n")
    for name in ("evil_in_folder.py", "sitecustomize.py", "__init__.py", "resnet20.py", "torch_separable.py"):
        (folder / name).write_text(MALICIOUS)
    monkeypatch.chdir(folder)
    edited(folder, model="evil_in_folder:build")
    with pytest.raises(SeparableError, match="evil_in_folder:build"):
        load(".", allow="torch_separable")
    edited(folder, model="resnet20", arguments={})
    load(".")
    assert not (folder / "ran").exists()
    assert "evil_in_folder" not in sys.modules


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("os:system", "importing it would run its code"),
        ("torch_separable.models:nn.Module", "importing it would run its code"),
        ("torch_separable.data.readers:read_npz", "importing it would run its code"),
        ("torch_separable._system.files:write_text", "expected package.module:function"),
        ("torch_separable.models.resnet:nn", "importing it would run its code"),
        ("torch_separable.models:__builtins__", "expected package.module:function"),
        ("own_networks:__builtins__", "expected package.module:function"),
        ("own_networks:build.__globals__", "expected package.module:function"),
        ("../own_networks:build", "expected package.module:function"),
        ("/tmp/own_networks.py:build", "expected package.module:function"),
        ("own_networks:build()", "expected package.module:function"),
        ("own_networks:", "expected package.module:function"),
        ("", "expected package.module:function"),
        ("x" * 10**6 + ".", "expected package.module:function"),
        ("resnet21", "there is no network resnet21: did you mean resnet"),
        (
            "own_networks:mkdir",
            r'which is defined in posix: if you trust it, pass allow=\("own_networks:mkdir"',
        ),
        ("own_networks:nn.Module", r'pass allow=\("own_networks:nn.Module",\)'),
        ("own_networks:nothing", "own_networks has no nothing"),
    ],
)
def test_only_functions_of_allowed_modules_are_called(tmp_path: Path, own: str, model: str, message: str) -> None:
    folder = edited(save(resnet20(), tmp_path / "n"), model=model, arguments={"path": "made"})
    with pytest.raises(SeparableError, match=message) as refused:
        load(folder, allow=own)
    assert len(str(refused.value)) < 1000
    assert not Path("made").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], '"arguments" must be a JSON object'),
        ({"__class__": 1}, "expected a name without a leading _"),
        ({"num classes": 1}, "expected a name"),
        ({"num_classes": 10**40}, "its magnitude exceeds"),
        ({"num_classes": float("inf")}, "it is not finite"),
        ({"num_classes": float("nan")}, "it is not finite"),
        ({"num_classes": "/etc/passwd"}, "it could be the path of a file"),
        ({"num_classes": "..\\secret"}, "it could be the path of a file"),
        ({"num_classes": "~root"}, "it could be the path of a file"),
        ({"num_classes": "a\x00b"}, "it could be the path of a file"),
        ({"num_classes": "x" * 300}, "it is longer than 200 characters"),
        ({"num_classes": [[[[[1]]]]]}, "nested more than 4 deep"),
        ({"num_classes": [0] * 2000}, "more than 1000 values"),
        ({"num_classes": {"a": {"b": "c/d"}}}, "it could be the path of a file"),
        ({"num_classes": {"c/d": 1}}, "it could be the path of a file"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"num_classes": "many"}, "num_classes='many'"),
        ({"classes": 3}, "cannot be built with classes=3"),
        ({"num_classes": 2**31}, "much larger than its weights|cannot be built"),
        ({"in_channels": 2**31 - 1}, "much larger than its weights|cannot be built"),
        ({"num_classes": 11}, "are not the weights of this network"),
    ],
)
def test_unsafe_arguments_are_refused(tmp_path: Path, arguments: Any, message: str) -> None:
    folder = edited(save(resnet20(), tmp_path / "n"), model="resnet20", arguments=arguments)
    with pytest.raises(SeparableError, match=message):
        load(folder)


def test_endless_network_is_stopped_early(tmp_path: Path) -> None:
    network = Network("torch_separable.models:CifarResNet", {"blocks": 1})
    folder = edited(save(network.build(), tmp_path / "n"), arguments={"blocks": 2**31})
    start = time.monotonic()
    with pytest.raises(SeparableError, match=r"much larger than its weights"):
        load(folder)
    assert time.monotonic() - start < 10


@contextlib.contextmanager
def memory_of_at_most_one_gigabyte_more() -> Iterator[None]:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc on this system")
@pytest.mark.parametrize(
    "arguments", [{"num_classes": 2**31}, {"in_channels": 2**24}, {"width_multiplier": 1e6}, {"width_multiplier": 100}]
)
def test_huge_network_costs_no_memory(tmp_path: Path, arguments: dict[str, Any]) -> None:
    folder = edited(save(mobilenet_v1(0.25, num_classes=3), tmp_path), model="mobilenet_v1", arguments=arguments)
    with memory_of_at_most_one_gigabyte_more(), pytest.raises(SeparableError):
        load(folder)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["version", "model", "arguments", "input_shape", "settings"]) | st.text(max_size=8)
MODELS = st.sampled_from(["resnet20", "torch_separable.models:CifarResNet", "os:system", "a.b:c"]) | VALUES
ARGUMENTS = st.dictionaries(st.sampled_from(["blocks", "num_classes", "in_channels"]) | st.text(max_size=8), VALUES)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(Network("torch_separable.models:CifarResNet", {"blocks": 1}).build(), tmp_path_factory.mktemp("small"))


@given(changes=st.dictionaries(KEYS, VALUES, max_size=4), model=MODELS, arguments=ARGUMENTS)
def test_any_config_is_loaded_or_refused(small: Path, changes: Any, model: Any, arguments: Any) -> None:
    before, modules = (small / "config.json").read_text(), set(sys.modules)
    try:
        edited(small, **{"model": model, "arguments": arguments, **changes})
        with contextlib.suppress(SeparableError):
            load(small)
    finally:
        (small / "config.json").write_text(before)
    assert not {"a", "a.b"} & (set(sys.modules) - modules)
    load(small)


@given(data=st.data())
def test_any_bytes_for_any_file_are_loaded_or_refused(small: Path, data: st.DataObject) -> None:
    path = small / data.draw(st.sampled_from(["config.json", "plan.json", "model.safetensors"]))
    before = path.read_bytes()
    spoilt = bytearray(before)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(spoilt) - 1))
        spoilt[place : place + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=5))
    try:
        path.write_bytes(spoilt)
        with contextlib.suppress(SeparableError):
            load(small)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "has version 2; this release reads version 1"),
        ({"version": True}, "has version True"),
        ({"input_shape": "3,32,32"}, '"input_shape" must be a list'),
        ({"input_shape": [3, -1, 32]}, r"input_shape=\(3, -1, 32\): expected positive whole numbers"),
        ({"input_shape": [3, 2**40]}, "expected positive whole numbers"),
        ({"input_shape": []}, "expected positive whole numbers"),
    ],
)
def test_invalid_config_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SeparableError, match=message):
        load(edited(save(resnet20(), tmp_path / "n"), **changes))


def test_missing_file_is_named(tmp_path: Path) -> None:
    for name, message in (
        ("config.json", r"has no config\.json"),
        ("plan.json", r"cannot read a plan from .*plan\.json"),
        ("model.safetensors", r"model\.safetensors does not exist"),
    ):
        folder = save(resnet20(), tmp_path / name)
        (folder / name).unlink()
        with pytest.raises(SeparableError, match=message):
            load(folder)
    with pytest.raises(SeparableError, match="is not a converted network"):
        load(tmp_path / "gone")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    folder = save(resnet20(), tmp_path / "n")
    save_file({"conv1.weight": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(SeparableError, match=r"much larger than its weights|are not the weights"):
        load(folder)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "network is missing: .* dense Sequential"),
        ({"network": lambda: None}, "cannot be imported by its name"),
        ({"network": "resnet20"}, r"resnet20\(\) and the plan do not build this network: 0.weight is of shape"),
        ({"network": "nowhere:f"}, "no module nowhere"),
        ({"network": "a b:f"}, "the network to save names the model 'a b:f'"),
        ({"network": "resnet20", "arguments": {"x": "/data/w.pth"}}, "could be the path"),
        ({"network": "resnet20", "arguments": {"x": nn.ReLU}}, "a type is neither a number nor a string"),
        ({"network": "resnet20", "results": {"accuracy": torch.zeros(1)}}, "results cannot be written as JSON"),
        ({"network": "resnet20", "settings": {"rate": float("nan")}}, "settings cannot be written as JSON"),
    ],
)
def test_network_that_could_not_be_loaded_is_not_saved(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(SeparableError, match=message):
        save(nn.Sequential(nn.Conv2d(3, 4, 3)), tmp_path / "n", **given)
    assert list(tmp_path.iterdir()) == []


def test_network_changed_after_it_was_built_is_not_saved(tmp_path: Path) -> None:
    network = resnet20()
    network.linear = nn.Linear(64, 100)
    with pytest.raises(SeparableError, match=r"linear.weight is of shape \(100, 64\) .*of shape \(10, 64\)"):
        save(network, tmp_path / "n")


def test_plan_of_another_conversion_is_not_saved_beside_the_network(tmp_path: Path, conversion: Conversion) -> None:
    other = Plan("svd", (LayerPlan("layer1.0.conv1", (16, 16, 3, 3), "depthwise_first", 5),))
    with pytest.raises(SeparableError, match="and the plan do not build this network"):
        save(conversion.model, tmp_path / "n", plan=other)


def test_subclass_of_a_built_in_network_is_not_saved_as_it(tmp_path: Path) -> None:
    class Other(MobileNetV1):
        pass

    assert built_by(MobileNetV1(0.25)) == Network("torch_separable.models:MobileNetV1", {"width_multiplier": 0.25})
    assert built_by(Other(0.25)) is None


def test_card_has_the_figures_and_no_licence(tmp_path: Path, conversion: Conversion) -> None:
    save(conversion, tmp_path, results={"accuracy": 0.917})
    card = (tmp_path / "README.md").read_text()
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert "library_name: torch-separable" in front
    assert not any(line.startswith("license") for line in front.splitlines())
    (dense, macs), (before, after) = conversion.plan.macs, conversion.plan.parameters
    assert f"| MACs | {dense:,} | {macs:,} | {dense / macs:.2f}x |" in body
    assert f"| parameters | {before:,} | {after:,} | {before / after:.2f}x |" in body
    assert f"{(tmp_path / 'model.safetensors').stat().st_size:,}" in body
    assert "| accuracy | | 0.917 | |" in body
    assert 'ts.load("path/of/this/folder")' in body


def test_card_of_a_user_network_names_allow_and_escapes_text(tmp_path: Path, own: str) -> None:
    title = "evil | # <script> [x](y)\n---\nlicense: mit"
    save(__import__(own).build(), tmp_path / "n", network=f"{own}:build", results={"title": title, "a|b\n": 1})
    card = (tmp_path / "n" / "README.md").read_text()
    assert f'ts.load("path/of/this/folder", allow=("{own}",))' in card
    assert r"# evil \| \# \<script\> \[x\](y) --- license: mit" in card
    assert "<script>" not in card
    assert r"| a\|b | | 1 | |" in card
    assert card.count("\n---\n") == 1


def test_edited_card_is_not_replaced(tmp_path: Path) -> None:
    save(resnet20(), tmp_path)
    card = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("mine")
    save(resnet20(), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    (tmp_path / "README.md").write_text(card.replace("# CifarResNet", "# Edited"))
    save(resnet20(), tmp_path)
    assert (tmp_path / "README.md").read_text() == card


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "distilled").mkdir()
    save(resnet20(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*NAMES, "notes.txt", "distilled"])


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100, 2000, 100_000])
def test_full_disk_keeps_the_previous_network(tmp_path: Path, size: int) -> None:
    first, second = resnet20(), resnet20()
    save(first, tmp_path)
    with files_of_at_most(size), pytest.raises(SeparableError, match=r"cannot write .*/(model|plan|config)\.\w+: "):
        save(second, tmp_path)
    assert same(load(tmp_path), first)
    assert sorted(path.name for path in tmp_path.iterdir()) == NAMES


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SeparableError, match=r"cannot write to the folder .*file.* is not a folder"):
        save(resnet20(), tmp_path / "file")


@pytest.mark.slow
def test_killed_save_leaves_a_complete_network_or_none(tmp_path: Path) -> None:
    network = runpy.run_path(str(WORKER))["network"]
    rng = random.Random(0)
    whole = 0
    for moment in range(5):
        folder = tmp_path / f"Ü {moment}"
        process = subprocess.Popen([sys.executable, str(WORKER), str(folder)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(1 + moment % 3):
            process.stdout.readline()
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.communicate()
        if (folder / run_directory.WEIGHTS).exists():
            bias = float(load(folder).linear.bias[0].detach())  # type: ignore[union-attr, operator, index]
            assert json.loads((folder / run_directory.RESULTS).read_text())["bias"] == bias
            whole += 1
        else:
            with pytest.raises(SeparableError, match="does not exist"):
                load(folder)
        save(network(3.0), folder)
        assert float(load(folder).linear.bias[0].detach()) == 3  # type: ignore[union-attr, operator, index]
    assert whole > 0


def test_reader_beside_a_writer_never_sees_files_of_two_networks(tmp_path: Path) -> None:
    """Stops the saving at each of its renamings, as a kill there would."""
    network = runpy.run_path(str(WORKER))["network"]
    save(network(1.0), tmp_path / "before", results={"bias": 1.0})
    replace, states = Path.replace, set()
    for stop in range(12):
        folder = tmp_path / f"stop {stop}"
        shutil.copytree(tmp_path / "before", folder)
        done = 0

        def stopping(self: Path, target: Path, stop: int = stop) -> Path:
            nonlocal done
            done += 1
            if done > stop:
                raise KeyboardInterrupt
            return replace(self, target)

        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(Path, "replace", stopping)
            save(network(2.0), folder, results={"bias": 2.0})
        if (folder / run_directory.WEIGHTS).exists():
            bias = float(load(folder).linear.bias[0].detach())  # type: ignore[union-attr, operator, index]
            assert json.loads((folder / run_directory.RESULTS).read_text())["bias"] == bias
            states.add(bias)
        else:
            states.add(0)
    assert states == {0, 2}


def test_config_names_the_function_of_the_network(tmp_path: Path) -> None:
    network = Network.of("resnet20", {"num_classes": 3}, (3, 32, 32))
    assert run_directory.read_network(save(network.build(), tmp_path)) == network
