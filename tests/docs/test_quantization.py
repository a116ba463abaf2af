"""docs/quantization.md: its code runs and prints what the page says, and its commands exist."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from torch_separable.cli.main import app
from torch_separable.conversion.calibration.images import FEWEST_IMAGES
from torch_separable.quantization.rounding import LARGEST

PAGE = Path(__file__).resolve().parents[2] / "docs" / "quantization.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_code_runs_and_prints_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
    test = doctest.DocTestParser().get_doctest(code, {}, PAGE.name, str(PAGE), 0)
    complaints: list[str] = []
    result = doctest.DocTestRunner().run(test, out=complaints.append)
    assert result.attempted >= 11
    assert result.failed == 0, "".join(complaints)


def test_the_commands_exist() -> None:
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    found = re.findall(r"^    separable (\w+)", TEXT, re.MULTILINE)
    assert len(found) == 3
    assert set(found) <= names


def test_the_constants_are_those_of_the_code() -> None:
    assert f"At least {FEWEST_IMAGES} images" in TEXT
    assert f"from −{LARGEST} to {LARGEST}" in TEXT
