"""docs/licences.md beside what the installed packages say of themselves."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in (ROOT / "docs" / "licences.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| `")
]
TABLE = {name.strip("`"): (needed_by, licence, says) for name, needed_by, licence, says in ROWS}
# What may be combined with MIT code without conditions on that code.
PERMISSIVE = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC",
    "MIT", "MIT-CMU", "PSF-2.0", "Zlib",
}  # fmt: skip


def direct_dependencies() -> dict[str, str]:
    """Each dependency that pyproject.toml names, and the extra (or "core") that first needs it."""
    found: dict[str, str] = {}
    for extra, requirements in (("core", PROJECT["dependencies"]), *PROJECT["optional-dependencies"].items()):
        for requirement in requirements:
            name = re.match(r"[\w.-]+", requirement)
            assert name is not None
            if name[0] != PROJECT["name"]:
                found.setdefault(name[0].lower(), extra)
    return found


def stated(metadata: Any, files: list[Any]) -> str:
    """What a distribution says of its licence: in its metadata, else in the first line of its licence file."""
    if metadata.get("License-Expression"):
        return str(metadata["License-Expression"])
    classifiers = [c for c in metadata.get_all("Classifier") or [] if c.startswith("License ::")]
    if classifiers:
        return str(classifiers[0].rpartition(" :: ")[2])
    text = metadata.get("License") or "UNKNOWN"
    if text != "UNKNOWN":
        return str(text.splitlines()[0])
    licence = [file for file in files if re.search(r"dist-info/(licenses/)?LICEN[CS]E[^/]*$", str(file))]
    return str(licence[0].read_text().splitlines()[0]) if licence else "nothing"


def test_every_direct_dependency_is_listed_with_who_needs_it() -> None:
    assert {name: needed_by for name, (needed_by, _, _) in TABLE.items()} == direct_dependencies()


@pytest.mark.parametrize("name", TABLE)
def test_the_table_quotes_what_the_package_says(name: str) -> None:
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    assert stated(distribution.metadata, list(distribution.files or [])) == TABLE[name][2]


def test_what_users_install_is_permissive() -> None:
    for name, (needed_by, licence, _) in TABLE.items():
        if needed_by != "test":
            assert set(licence.split(" AND ")) <= PERMISSIVE, name


def test_ours_is_the_licence_file() -> None:
    assert PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License\n")
