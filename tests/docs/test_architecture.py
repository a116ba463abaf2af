"""The maps of the code state the imports that tests/test_imports.py allows, and name files and folders that exist."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import torch_separable

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES: dict[str, set[str]] = runpy.run_path(str(ROOT / "tests" / "test_imports.py"))["PACKAGES"]


def test_the_table_states_the_allowed_imports() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) ?\|$", PAGE, re.MULTILINE)
    stated = {package: set(re.findall(r"`(\w+)`", imports)) for package, imports in rows}
    assert dict(rows)["cli"].strip() == "all but `nn`"
    stated["cli"] = PACKAGES.keys() - {"cli", "nn"}
    assert stated == PACKAGES


def test_the_files_that_it_names_exist() -> None:
    package = Path(torch_separable.__file__).parent
    named = set(re.findall(r"`([\w/]+\.py)`", PAGE))
    assert len(named) > 10
    files = [path.as_posix() for path in (*package.rglob("*.py"), *(ROOT / "tests").glob("*.py"))]
    assert [name for name in named if not any(file.endswith(f"/{name}") for file in files)] == []


def test_the_places_that_the_map_of_the_code_names_exist() -> None:
    table = (
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("| you want to add |")[2].partition("\n\n")[0]
    )
    named = set(re.findall(r"`(\w+/[\w./]*|\w+/\w+)`", table))
    assert len(named) > 30
    homes = (ROOT, Path(torch_separable.__file__).parent)
    assert [name for name in named if not any((home / name).exists() for home in homes)] == []
