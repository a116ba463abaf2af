"""A folder as a user has one: networks of one's own, weights good and bad, images, a converted network."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import runpy
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from torch_separable._network.weights_file import save_weights
from torch_separable.cli.main import main

NETWORKS = Path(__file__).with_name("networks_for_cli.py")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def run_here(*arguments: str | Path, folder: Path) -> Outcome:
    """Run the command in this process, as ``separable ARGUMENTS`` typed in ``folder``."""
    out, err = io.StringIO(), io.StringIO()
    argv, path, columns = sys.argv, list(sys.path), os.environ.get("COLUMNS")
    sys.argv = ["separable", *map(str, arguments)]
    os.environ["COLUMNS"] = "80"
    code: object = None
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
        finally:
            sys.argv, sys.path[:] = argv, path
            os.environ.pop("COLUMNS")
            if columns is not None:
                os.environ["COLUMNS"] = columns
    assert isinstance(code, int | None)
    return Outcome(code or 0, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; tests write under names of their own."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copy(NETWORKS, folder)
    small = runpy.run_path(str(NETWORKS))["small"]
    model, random = small(), np.random.default_rng(0)
    save_weights(model, folder / "small.safetensors")
    save_weights(small(width=4), folder / "narrow.safetensors")
    torch.save({"state_dict": model.state_dict()}, folder / "small.pth")
    torch.save(model, folder / "whole.pth")
    (folder / "code.pth").write_bytes(pickle.dumps(print, protocol=2))
    (folder / "cut.safetensors").write_bytes((folder / "small.safetensors").read_bytes()[:-9])
    spoilt = model.state_dict()
    spoilt["3.weight"][0, 0, 0, 0] = torch.nan
    save_weights(spoilt, folder / "spoilt.safetensors")
    (folder / "syntax_for_cli.py").write_text("def small(:\n")
    (folder / "raising_for_cli.py").write_text("raise OSError('no GPU\\nin this machine')\n")
    (folder / "needing_for_cli.py").write_text("import no_such_package\n")

    images = random.random((40, 32, 32), dtype=np.float32)
    np.savez(folder / "unlabelled.npz", images=images)
    np.savez(folder / "coloured.npz", images=np.stack([images] * 3, axis=-1), labels=np.arange(40) % 10)
    images[3, 5, 5] = np.nan
    np.savez(folder / "spoilt.npz", images=images)

    made = run_here(
        "convert", "networks_for_cli:small", "--weights", "small.safetensors", "--data", "digits", "--images", "64",
        "--rank", "1", "-o", "converted", folder=folder,
    )  # fmt: skip
    assert made.code == 0, made.err
    shutil.copytree(folder / "converted", folder / "another")
    return folder


@pytest.fixture(scope="session")
def separable(place: Path) -> Callable[..., Outcome]:
    """Call with the arguments of the command."""
    return lambda *arguments: run_here(*arguments, folder=place)
