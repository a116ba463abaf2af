"""Two runs into one folder: the second is refused in words; a dead one holds nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from torch_separable._system.locking import sole_writer
from torch_separable.artifacts.save_load import save
from torch_separable.errors import SeparableError
from torch_separable.exporting import export
from torch_separable.models import CifarResNet

HOLDER = """
import sys, time
from torch_separable._system.locking import sole_writer
with sole_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def refusal(folder: Path) -> str:
    with pytest.raises(SeparableError) as caught, sole_writer(folder):
        pass
    return str(caught.value)


def test_second_writer_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    folder = tmp_path / "a run, läuft"
    with held(folder) as process:
        assert refusal(folder) == (
            f"another process is writing into {folder}: wait until it has ended, or choose another folder"
        )
        assert "another process" in refusal(tmp_path / "elsewhere" / ".." / folder.name)
        with sole_writer(tmp_path / "elsewhere"):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (folder / ".torch-separable.lock").exists()
        with sole_writer(folder):
            pass
        assert not list(folder.iterdir())
    assert list(tmp_path.iterdir()) == [folder]


def test_temporary_files_of_a_dead_writer_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".model.safetensors.a1b2c3d4.part").write_text("half")
    (tmp_path / ".hidden.part").touch()
    (tmp_path / "plan.json").touch()
    with sole_writer(tmp_path):
        names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".hidden.part", ".torch-separable.lock", "plan.json"]
    assert not (tmp_path / ".torch-separable.lock").exists()


def test_only_the_given_files_leftovers_are_removed(tmp_path: Path) -> None:
    for name in (".model.pt2.a1b2c3d4.part", ".movie.mp4.a1b2c3d4.part"):
        (tmp_path / name).write_text("half")
    export(CifarResNet(1), tmp_path / "model.pt2", input_shape=(3, 16, 16))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".movie.mp4.a1b2c3d4.part", "model.pt2"]


def test_lock_is_reentrant_within_a_thread_only(tmp_path: Path) -> None:
    messages: list[str] = []
    with sole_writer(tmp_path):
        with sole_writer(tmp_path, wait=1):
            pass
        assert (tmp_path / ".torch-separable.lock").exists()
        thread = threading.Thread(target=lambda: messages.append(refusal(tmp_path)))
        thread.start()
        thread.join()
    assert "another process is writing" in messages[0]
    assert not list(tmp_path.iterdir())


def test_unused_folders_are_removed(tmp_path: Path) -> None:
    with sole_writer(tmp_path / "a" / "b"):
        pass
    assert not list(tmp_path.iterdir())
    with sole_writer(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "kept").touch()
    assert (tmp_path / "a" / "b" / "kept").exists()


def test_only_the_first_process_of_a_launch_holds_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with sole_writer(tmp_path):
            pass
        for first in ("0", ""):
            monkeypatch.setenv("RANK", first)
            assert "another process" in refusal(tmp_path)


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refusal(tmp_path / "file" / "run")
    assert message == f"cannot write into {tmp_path / 'file' / 'run'}: Not a directory. Choose another folder"


def test_saving_waits_for_another_writer_and_then_writes(tmp_path: Path) -> None:
    folder = tmp_path / "network"
    with held(folder) as process:
        thread = threading.Thread(target=save, args=(CifarResNet(1), folder))
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        process.kill()
        thread.join(20)
        assert not thread.is_alive()
    assert (folder / "model.safetensors").exists()
    assert not list(folder.glob(".*"))
