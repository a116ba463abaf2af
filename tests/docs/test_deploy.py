"""The guide to deploying: its code and its commands run, and it names the files that exist."""

from __future__ import annotations

import doctest
import re
import shlex
import sys
from pathlib import Path

import pytest

from torch_separable import save
from torch_separable.cli.main import main
from torch_separable.models import CifarResNet
from torch_separable.runtime import instruction_sets

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (separable export .*)$", PAGE, re.MULTILINE)


def test_the_code_prints_what_the_guide_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    test = doctest.DocTestParser().get_doctest(code, {}, "deploy.md", "deploy.md", 0)
    complaints: list[str] = []
    result = doctest.DocTestRunner().run(test, out=complaints.append)
    assert result.attempted >= 6
    assert result.failed == 0, "".join(complaints)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    save(CifarResNet(1, num_classes=10, in_channels=1), "runs/demo", input_shape=(1, 32, 32))
    here = next(name for name in instruction_sets() if name in ("avx2", "baseline"))
    monkeypatch.setattr(sys, "argv", shlex.split(command.replace("avx2,baseline", here)))
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert len(list(tmp_path.rglob("*.tsn"))) == 1


def test_the_examples_that_it_names_are_all(tmp_path: Path) -> None:
    named = set(re.findall(r"^\| `([\w.]+)` \|", PAGE, re.MULTILINE))
    assert named == {path.name for path in (ROOT / "examples" / "native").iterdir() if path.is_file()}
    assert len(COMMANDS) == 2
