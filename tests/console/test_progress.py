from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from rich.progress import Task, TaskID

from torch_separable._console import progress
from torch_separable._console.progress import progress_bar


def shown_text(capsys: pytest.CaptureFixture[str], *, shown: bool = True) -> str:
    with progress_bar("training", 3, shown=shown) as advance:
        for step in range(3):
            advance(f"loss {step}")
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_nothing_is_written_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_PATIENCE_S", -1.0)
    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    assert shown_text(capsys) == ""


def test_bar_appears_on_a_terminal_after_two_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert shown_text(capsys) == "", "quick work needs no bar"
    monkeypatch.setattr(progress, "_PATIENCE_S", -1.0)
    assert shown_text(capsys, shown=False) == ""
    text = shown_text(capsys)
    assert "training" in text
    assert "3/3" in text
    assert "loss 2" in text


def test_bar_does_not_redirect_standard_output_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "_PATIENCE_S", -1.0)
    with (tmp_path / "lines").open("w+") as file, contextlib.redirect_stdout(file):
        with progress_bar("training", 2, shown=True) as advance:
            for epoch in range(2):
                advance()
                print(f"epoch {epoch}")
        file.seek(0)
        assert file.read() == "epoch 0\nepoch 1\n"


@pytest.mark.parametrize(
    ("speed", "said"), [(None, ""), (1234.0, "1,234/s"), (10.4, "10/s"), (2.5, "2.5/s"), (0.25, "4.0 s each")]
)
def test_rate_is_per_second_or_in_seconds_per_step(speed: float | None, said: str) -> None:
    task = Task(TaskID(0), "t", 10, 3, _get_time=lambda: 0.0)
    task.finished_speed = speed
    assert progress._Rate().render(task).plain == said
