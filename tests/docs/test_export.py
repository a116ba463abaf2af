"""The guide to saving and exporting: its code runs, and so does every command in it that it is about."""

from __future__ import annotations

import doctest
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

from torch_separable import save
from torch_separable.cli.main import main
from torch_separable.models import CifarResNet

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "export.md"
COMMANDS = re.findall(r"^    (separable export .*)$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_code_runs_and_prints_what_the_guide_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    test = doctest.DocTestParser().get_doctest(code, {}, GUIDE.name, str(GUIDE), 0)
    complaints: list[str] = []
    result = doctest.DocTestRunner().run(test, out=complaints.append)
    assert result.attempted >= 9
    assert result.failed == 0, "".join(complaints)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    needed = {"onnx": "onnxruntime", "executorch": "executorch"}.get(re.findall(r"--to (\w+)", command)[0])
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    monkeypatch.chdir(tmp_path)
    save(CifarResNet(1, num_classes=10, in_channels=1), "runs/demo", input_shape=(1, 32, 32))
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert len(list(tmp_path.rglob("*.onnx")) + list(tmp_path.rglob("*.pt*"))) == 1


def test_there_are_commands_to_run() -> None:
    assert len(COMMANDS) == 4
