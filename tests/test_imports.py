"""Dependencies between packages point one way: docs/architecture.md draws the arrows that are allowed here."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import torch_separable

ROOT = Path(torch_separable.__file__).parent
NAME = ROOT.name

# Every package of torch_separable, and the packages that it may import. ``errors`` and ``_version`` serve all.
PACKAGES: dict[str, set[str]] = {
    "_system": set(),
    "_console": set(),
    "_network": {"_system"},
    "nn": set(),
    "cost": {"_console"},
    "explanation": {"_console", "_system", "cost"},
    "models": {"nn"},
    "importing": {"_network", "models", "nn"},
    "data": {"_console", "_system"},
    "runtime": {"_console", "_network", "_system", "nn"},
    "conversion": {"_console", "_network", "_system", "cost", "nn", "runtime"},
    "exporting": {"_console", "_network", "_system", "conversion", "models", "runtime"},
    "quantization": {"_console", "_network", "conversion", "exporting", "runtime"},
    "mixed_precision": {"_console", "_network", "_system", "conversion", "quantization", "runtime"},
    "distillation": {"_console", "_network", "_system", "data", "nn"},
    "artifacts": {"_network", "_system", "conversion", "cost", "data", "models", "nn", "quantization"},
    "bench": {"_console", "_network", "_system", "cost", "exporting", "runtime"},
    "pareto": {
        *("_console", "_network", "_system", "bench", "conversion", "cost", "exporting", "mixed_precision"),
        *("quantization", "runtime"),
    },
    "report": {"_system", "artifacts", "conversion"},
    "cli": {
        *("_console", "_network", "_system", "artifacts", "bench", "conversion", "cost", "data", "distillation"),
        *("explanation", "exporting", "importing", "mixed_precision", "models", "pareto", "quantization", "report"),
        "runtime",
    },
}
SHARED = {"errors", "_version"}


def modules_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported_by(path: Path) -> set[str]:
    """Full names of what a file imports of this package, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path} imports relatively: name the package in full"
            one_by_one = node.module == NAME
            names |= {f"{NAME}.{alias.name}" for alias in node.names} if one_by_one else {node.module}
    return {name for name in names if name.startswith(f"{NAME}.")}


def packages_imported_by(package: str) -> set[str]:
    found = {name.split(".")[1] for path in modules_of(package) for name in imported_by(path)}
    return found - SHARED - {package}


def test_every_package_has_its_arrows_stated() -> None:
    on_disk = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert on_disk == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    assert packages_imported_by(package) <= PACKAGES[package]


def test_no_arrow_is_stated_that_nobody_uses() -> None:
    assert {package: packages_imported_by(package) for package in PACKAGES} == PACKAGES


def test_packages_form_no_cycle() -> None:
    order = list(TopologicalSorter({package: packages_imported_by(package) for package in PACKAGES}).static_order())
    assert order.index("runtime") < order.index("conversion")


def test_no_file_imports_the_package_as_a_whole() -> None:
    """``from torch_separable import convert`` would import everything, and hide the arrow."""
    loose = {
        (path.relative_to(ROOT).as_posix(), name)
        for package in PACKAGES
        for path in modules_of(package)
        for name in imported_by(path)
        if name.split(".")[1] not in PACKAGES and name.split(".")[1] not in SHARED
    }
    assert not loose


def test_no_function_shadows_a_module() -> None:
    """A package that exports a function of the same name as one of its modules hides the module."""
    for init in ROOT.rglob("__init__.py"):
        modules = {path.stem for path in init.parent.iterdir()}
        tree = ast.parse(init.read_text(encoding="utf-8"))
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != NAME]
        exported = {alias.asname or alias.name for node in imports for alias in node.names}
        assert not exported & modules, init
