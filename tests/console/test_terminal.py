"""Colours on a terminal alone."""

from __future__ import annotations

import pytest
from rich.text import Text

from torch_separable._console.terminal import show

LONG = Text("kept ").append("x" * 300, "green")


def test_styles_are_omitted_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    show(LONG)
    assert capsys.readouterr().out == f"{LONG.plain}\n"


def test_terminal_gets_colours_unless_no_color_is_set(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    show(LONG)
    coloured = capsys.readouterr().out
    assert "\x1b[32m" + "x" * 300 in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    show(LONG)
    assert "\x1b[32m" not in capsys.readouterr().out
