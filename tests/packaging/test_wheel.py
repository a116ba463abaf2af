"""What the built wheel holds, and what it leaves out."""

from __future__ import annotations

import configparser
import email
import importlib
import re
import shutil
import zipfile
from email.message import Message
from pathlib import Path

import pytest

import torch_separable

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
COMPILERS = ("c++", "g++", "clang++")


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(path))


def test_the_package_is_whole_and_nothing_else_is_in_it(names: set[str]) -> None:
    ours = {
        path.relative_to(SOURCE).as_posix()
        for package in SOURCE.glob("torch_separable*/")
        for path in package.rglob("*")
        if path.is_file()
        and not {"__pycache__", "torch_separable.egg-info"} & set(path.parts)
        and path.suffix not in (".so", ".dylib")
    }
    packed = {name for name in names if not re.match(r"torch_separable-[^/]+\.dist-info/", name)}
    libraries = {name for name in packed if name.endswith((".so", ".dylib"))}
    assert packed - libraries == ours
    assert "torch_separable/py.typed" in ours


def test_there_is_no_data_in_it(wheel: Path, names: set[str]) -> None:
    data = (".npz", ".npy", ".pth", ".pt", ".pt2", ".pte", ".onnx", ".safetensors", ".h5", ".png", ".jpg", ".webp")
    assert [name for name in names if name.endswith(data) or "test" in Path(name).parts[0]] == []
    assert wheel.stat().st_size < 6 * 2**20  # kernels of eight instruction sets, float32, bfloat16 and int8


def test_the_kernel_library_is_in_it(wheel: Path, names: set[str]) -> None:
    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("no C++ compiler: the wheel is pure Python")
    libraries = [name for name in names if name.endswith((".so", ".dylib"))]
    assert len(libraries) == 1
    assert libraries[0].startswith("torch_separable/runtime/native/libtorch_separable.")
    # It knows no Python: one wheel for every version of it, but for one kind of machine.
    assert wheel.name.split("-")[2:4] == ["py3", "none"]
    assert not wheel.name.endswith("-any.whl")


def test_metadata_name_the_version_the_licence_and_the_command(wheel: Path, names: set[str], metadata: Message) -> None:
    assert metadata["Version"] == torch_separable.__version__
    assert metadata["License-Expression"] == "MIT"
    (licence,) = (name for name in names if name.endswith("/licenses/LICENSE"))
    (points,) = (name for name in names if name.endswith("/entry_points.txt"))
    commands = configparser.ConfigParser()
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
        commands.read_string(archive.read(points).decode())
    module, _, function = commands["console_scripts"]["separable"].partition(":")
    assert f"{module.replace('.', '/')}.py" in names or f"{module.replace('.', '/')}/__init__.py" in names
    assert callable(getattr(importlib.import_module(module), function))


def test_one_place_names_the_version() -> None:
    places = [
        path.relative_to(ROOT).as_posix()
        for folder in ("src", "native", "docs", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".toml", ".txt", ".md", ".cpp", ".h")
        and torch_separable.__version__ in path.read_text(encoding="utf-8", errors="replace")
    ]
    assert places == ["src/torch_separable/_version.py"]
    for name in ("pyproject.toml", "README.md"):
        assert torch_separable.__version__ not in (ROOT / name).read_text(encoding="utf-8")
