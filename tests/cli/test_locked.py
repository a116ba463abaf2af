"""Two commands into one folder: the second ends with one line, and the first goes on."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from torch_separable._system.locking import sole_writer


@pytest.fixture
def taken(place: Path) -> Iterator[Path]:
    """A folder that another thread of this process writes into: as another process, it is not the command's."""
    begun, ended = threading.Event(), threading.Event()

    def hold() -> None:
        with sole_writer(place / "taken"):
            begun.set()
            ended.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait()
    yield place / "taken"
    ended.set()
    thread.join()


@pytest.mark.parametrize(
    "command",
    [
        "convert networks_for_cli:small --weights small.safetensors --data digits --images 16 --rank 1 -o taken",
        "distill converted --model networks_for_cli:small --teacher small.safetensors --data digits -o taken",
        "demo -o taken",
    ],
)
def test_second_command_into_a_folder_is_refused_in_one_line(
    separable: Callable[..., Any], taken: Path, command: str
) -> None:
    outcome = separable(*shlex.split(command))
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert line == (
        "separable: error: another process is writing into taken: wait until it has ended, or choose another folder"
    )
    assert [path.name for path in taken.iterdir()] == [".torch-separable.lock"]


def test_folder_is_free_again_after_a_command(separable: Callable[..., Any], place: Path) -> None:
    command = "convert networks_for_cli:small --weights small.safetensors --data digits --images 16 --rank 1 -o freed"
    assert separable(*shlex.split(command)).code == 0
    assert not list((place / "freed").glob(".*"))
    assert separable(*shlex.split(f"{command} --order both --force")).code == 2
    assert separable(*shlex.split(f"{command} --force")).code == 0
