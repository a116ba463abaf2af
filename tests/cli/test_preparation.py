"""A folder keeps the preparation of its images, and figures name the images that they were measured on."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torch_separable.data import load_data

SMALL = "networks_for_cli:small"
CONVERT = f"convert {SMALL} --weights small.safetensors --images 64 --rank 1 --quiet"
DISTILL = f"distill --model {SMALL} --teacher small.safetensors --epochs 1 --set batch_size=128 --quiet"


@pytest.fixture(scope="module")
def prepared(place: Path) -> Path:
    """Digits as an archive per split, with class names, and a network converted with a normalisation."""
    for split in ("train", "test"):
        data = load_data("digits", split)
        names = np.array([f"digit {i}" for i in range(10)])
        images, labels = data.images.numpy().transpose(0, 2, 3, 1)[:256], data.labels
        assert labels is not None
        (place / "named").mkdir(exist_ok=True)
        np.savez(place / "named" / f"{split}.npz", images=images, labels=labels.numpy()[:256], classes=names)
        np.savez(place / f"other-{split}.npz", images=images, labels=labels.numpy()[:256], classes=names[::-1])
    return place


def answer(separable: Callable[..., Any], command: str) -> dict[str, Any]:
    outcome = separable(*shlex.split(command))
    assert outcome.code == 0, outcome.err
    document: dict[str, Any] = json.loads(outcome.out)
    return document


def test_evaluate_uses_the_preparation_of_the_folder(separable: Callable[..., Any], prepared: Path) -> None:
    convert = f"{CONVERT} --data npz:named --mean 0.4 --std 0.3 --evaluate test -o normalised"
    assert separable(*shlex.split(convert)).code == 0
    kept = json.loads((prepared / "normalised" / "config.json").read_text())["preparation"]
    assert (kept["mean"], kept["std"], kept["image_size"], kept["channels"]) == ([0.4], [0.3], [32, 32], 1)
    assert kept["classes"][3] == "digit 3"
    reported = json.loads((prepared / "normalised" / "results.json").read_text())
    evaluate = f"evaluate normalised --model {SMALL} --data npz:named"
    found = answer(separable, f"{evaluate} --json")
    assert found["correct"] == reported["steps"][1]["correct"]
    assert reported["data"]["seen_by_teacher"] is False
    same = answer(separable, f"{evaluate} --mean 0.4 --json")
    assert same == found
    refused = separable(*shlex.split(f"{evaluate} --mean 0.5"))
    assert refused.code == 2
    assert "--mean 0.5 contradicts normalised" in refused.err
    refused = separable(*shlex.split(f"evaluate normalised --model {SMALL} --data npz:other-test.npz"))
    assert refused.code == 2
    assert "class 0 of npz:other-test.npz is 'digit 9', but 'digit 0' in normalised" in refused.err


def test_folders_of_earlier_releases_keep_their_normalisation(separable: Callable[..., Any], prepared: Path) -> None:
    convert = f"{CONVERT} --data npz:named --mean 0.4 --std 0.3 -o earlier"
    assert separable(*shlex.split(convert)).code == 0
    path = prepared / "earlier" / "config.json"
    config = json.loads(path.read_text())
    del config["preparation"]
    path.write_text(json.dumps(config))
    refused = separable(*shlex.split(f"evaluate earlier --model {SMALL} --data npz:named --std 1"))
    assert "--std 1 contradicts earlier" in refused.err


def test_distill_compares_on_the_test_split(separable: Callable[..., Any], prepared: Path) -> None:
    assert separable(*shlex.split(f"{DISTILL} converted --data digits -o on-test")).code == 0
    results = json.loads((prepared / "on-test" / "results.json").read_text())
    assert results["data"] == {"train": 1280, "test": 450, "split": "test", "seen_by_teacher": False}
    evaluate = f"evaluate on-test --model {SMALL} --data digits --json"
    assert answer(separable, evaluate)["correct"] == results["steps"][-1]["correct"]
    card = (prepared / "on-test" / "README.md").read_text()
    assert "measured on 450 images of the split test" in card
    assert json.loads((prepared / "on-test" / "config.json").read_text())["preparation"]["channels"] == 1


def test_images_that_the_teacher_may_have_seen_give_no_conclusion(
    separable: Callable[..., Any], prepared: Path
) -> None:
    outcome = separable(*shlex.split(f"{DISTILL} converted --data npz:named/train.npz --hold-out 0.5 -o on-seen"))
    assert outcome.code == 0, outcome.err
    text = " ".join(outcome.out.split())
    assert "accuracy was measured only on 128 images that the teacher may have seen" in text
    assert "points of accuracy" not in text
    assert "accuracy lost" not in text
    page = (prepared / "on-seen" / "index.html").read_text()
    assert "of 128 images that the teacher may have seen" in page
    assert "points of accuracy" not in page
    assert "may have been trained on" in (prepared / "on-seen" / "README.md").read_text()


def test_evaluate_on_the_training_split_is_labelled(separable: Callable[..., Any]) -> None:
    seen = separable(*shlex.split(f"evaluate {SMALL} --weights small.safetensors --data digits --split train"))
    assert "may have been trained on" in seen.out
    unseen = separable(*shlex.split(f"evaluate {SMALL} --weights small.safetensors --data digits"))
    assert "may have" not in unseen.out
