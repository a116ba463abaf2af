"""The splits of a data source, to find images that a network was not trained on."""

from __future__ import annotations

import json
from pathlib import Path

from torch_separable._system.extras import optional
from torch_separable.errors import SeparableError

_TEST_SPLITS = ("test", "validation", "val", "valid")


def split_names(spec: str) -> tuple[str, ...]:
    """Return the names of the splits of a source as given to `load_data`; empty if it has one unnamed split.

    Raises:
        SeparableError: the source does not exist or cannot be read.

    Example:
        >>> split_names("digits")
        ('test', 'train')
    """
    kind, _, place = spec.partition(":")
    path = Path(place).expanduser()
    if kind == "digits":
        return ("test", "train")
    if kind == "npz":
        return tuple(sorted(file.stem for file in path.glob("*.npz"))) if path.is_dir() else ()
    if kind == "folder":
        return tuple(sorted(p.name for p in path.iterdir() if p.is_dir() and p.name[0] != ".")) if path.is_dir() else ()
    if kind == "hf":
        return _hub_splits(path, place)
    return ()


def find_test_split(spec: str, train: str) -> str | None:
    """Return the split to measure accuracy on: test or validation, if the source has one besides ``train``.

    Example:
        >>> find_test_split("digits", "train"), find_test_split("npz:all.npz", "train")
        ('test', None)
    """
    names = split_names(spec)
    return next((name for name in _TEST_SPLITS if name in names and name != train), None)


def _hub_splits(path: Path, place: str) -> tuple[str, ...]:
    if (path / "dataset_dict.json").is_file():
        try:
            return tuple(sorted(json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SeparableError(f"{path / 'dataset_dict.json'} does not list the splits: {error}") from error
    if (path / "state.json").is_file():
        return ()
    datasets = optional("datasets", "train")
    try:
        return tuple(sorted(datasets.get_dataset_split_names(str(path) if path.is_dir() else place)))
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise SeparableError(f"`datasets` cannot list the splits of hf:{place}: {first}") from error
