"""`load` runs no code of a folder, and refuses a config or file that is damaged or asks for too much."""

from __future__ import annotations

import contextlib
import resource
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

from saving_cases import edited
from torch_separable import SeparableError, load, save
from torch_separable.models import mobilenet_v1, resnet20
from torch_separable.models.registry import Network


def test_module_that_is_not_allowed_is_not_imported(tmp_path: Path, own_module: str) -> None:
    save(__import__(own_module).build(), tmp_path / "n", network=f"{own_module}:build")
    del sys.modules[own_module]
    for allow in ((), "own_module", ("own_network", f"{own_module}:Net", f"{own_module}.below", "os")):
        with pytest.raises(SeparableError, match=rf'allow=\("{own_module}",\)'):
            load(tmp_path / "n", allow=allow)
        assert own_module not in sys.modules


MALICIOUS = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
def build():
    pathlib.Path(__file__).with_name("ran").touch()
"""


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
def test_only_functions_of_allowed_modules_are_called(
    tmp_path: Path, own_module: str, model: str, message: str
) -> None:
    folder = edited(save(resnet20(), tmp_path / "n"), model=model, arguments={"path": "made"})
    with pytest.raises(SeparableError, match=message) as refused:
        load(folder, allow=own_module)
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


def test_huge_number_of_blocks_is_stopped_early(tmp_path: Path) -> None:
    network = Network("torch_separable.models:CifarResNet", {"blocks": 1})
    folder = edited(save(network.build(), tmp_path / "n"), arguments={"blocks": 2**31})
    start = time.monotonic()
    with pytest.raises(SeparableError, match=r"much larger than its weights"):
        load(folder)
    assert time.monotonic() - start < 10


@contextlib.contextmanager
def one_more_gigabyte() -> Iterator[None]:
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
def test_huge_network_allocates_no_memory(tmp_path: Path, arguments: dict[str, Any]) -> None:
    folder = edited(save(mobilenet_v1(0.25, num_classes=3), tmp_path), model="mobilenet_v1", arguments=arguments)
    with one_more_gigabyte(), pytest.raises(SeparableError):
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
    damaged = bytearray(before)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place : place + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=5))
    try:
        path.write_bytes(damaged)
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
