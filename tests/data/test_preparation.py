"""The preparation that a saved network keeps, and the splits of a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from torch_separable.data import IMAGENET_MEAN, IMAGENET_STD, ImageData, Preparation, find_test_split, split_names
from torch_separable.errors import SeparableError

OWN = Preparation((32, 24), 3, IMAGENET_MEAN, IMAGENET_STD, ("cat", "dog"))


def data(classes: tuple[str, ...], channels: int = 3) -> ImageData:
    return ImageData("made", "test", torch.rand(2, channels, 32, 24), torch.tensor([0, 1]), classes)


def test_preparation_round_trips_through_json() -> None:
    assert Preparation.from_dict(OWN.to_dict(), "a folder") == OWN
    assert OWN.to_dict()["channel_order"] == "RGB"


def test_options_that_agree_with_the_preparation_are_accepted() -> None:
    expected = {"image_size": (32, 24), "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    assert OWN.settings("runs/half") == expected
    assert OWN.settings("runs/half", mean=IMAGENET_MEAN) == expected


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"mean": (0.5, 0.5, 0.5)}, "--mean 0.5,0.5,0.5"),
        ({"std": ()}, "--std"),
        ({"image_size": 24}, "--image-size 24,24"),
    ],
)
def test_options_that_contradict_the_preparation_are_refused(given: dict[str, Any], option: str) -> None:
    with pytest.raises(SeparableError, match=f"{option} .*contradicts runs/half"):
        OWN.settings("runs/half", **given)


def test_images_with_other_channels_or_classes_are_refused() -> None:
    OWN.check(data(("cat", "dog")), "runs/half")
    OWN.check(data(("0", "1")), "runs/half")
    with pytest.raises(SeparableError, match="class 0 of made is 'dog', but 'cat' in runs/half"):
        OWN.check(data(("dog", "cat")), "runs/half")
    with pytest.raises(SeparableError, match="class 2 of made is 'emu', but absent in runs/half"):
        OWN.check(data(("cat", "dog", "emu")), "runs/half")
    with pytest.raises(SeparableError, match="made have 1 channels"):
        OWN.check(data(("cat", "dog"), channels=1), "runs/half")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", [32]),
        ("image_size", [0, 3]),
        ("channels", True),
        ("crop", "random"),
        ("channel_order", "BGR"),
        ("mean", [0.5]),
        ("std", [float("nan")] * 3),
        ("mean", "imagenet"),
        ("classes", [1]),
    ],
)
def test_invalid_preparation_is_named(name: str, value: Any) -> None:
    with pytest.raises(SeparableError, match=rf"config\.json: preparation\.{name}"):
        Preparation.from_dict({**OWN.to_dict(), name: value}, "config.json")


def test_splits_are_those_of_the_source(tmp_path: Path) -> None:
    for name in ("train", "val"):
        np.savez(tmp_path / f"{name}.npz", images=np.zeros((1, 8, 8, 3), np.uint8))
        (tmp_path / "folder" / name).mkdir(parents=True)
    assert split_names(f"npz:{tmp_path}") == ("train", "val")
    assert split_names(f"npz:{tmp_path / 'train.npz'}") == ()
    assert split_names(f"folder:{tmp_path / 'folder'}") == ("train", "val")
    assert find_test_split(f"folder:{tmp_path / 'folder'}", "train") == "val"
    assert find_test_split("digits", "test") is None


def test_splits_of_a_data_set_on_disk_are_listed(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"label": [0, 1]})
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "both")
    table.save_to_disk(tmp_path / "one")
    assert find_test_split(f"hf:{tmp_path / 'both'}", "train") == "test"
    assert find_test_split(f"hf:{tmp_path / 'one'}", "train") is None
