from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from torch_separable.data import IMAGENET_MEAN, IMAGENET_STD, ImageData, load_data
from torch_separable.errors import SeparableError


def coloured(count: int = 12, **changes: Any) -> ImageData:
    settings: dict[str, Any] = {
        "images": torch.randint(256, (count, 3, 4, 5), dtype=torch.uint8),
        "labels": torch.arange(count) % 3,
        "classes": ("a", "b", "c"),
    }
    return ImageData("made", "train", **{**settings, **changes})


def test_normalisation_follows_the_definition() -> None:
    data = coloured(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    images, labels = data.take(slice(0, 5))
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    torch.testing.assert_close(images, (data.images[:5].float() / 255 - mean) / std)
    assert images.dtype == torch.float32
    assert labels.tolist() == [0, 1, 2, 0, 1]


def test_float_and_uint8_images_are_normalised_alike() -> None:
    bytes_ = coloured(mean=(0.5,) * 3, std=(0.2,) * 3)
    floats = coloured(images=bytes_.images.float() / 255, mean=(0.5,) * 3, std=(0.2,) * 3)
    torch.testing.assert_close(bytes_.take(slice(None))[0], floats.take(slice(None))[0])


@pytest.mark.parametrize("made", [np.array, torch.tensor, lambda values: [np.float32(value) for value in values]])
def test_mean_and_std_may_come_as_arrays(made: Callable[[list[float]], Any]) -> None:
    values = [0.5, 0.25, 0.125]
    data = coloured(mean=made(values), std=made(values))
    plain = coloured(images=data.images, mean=tuple(values), std=tuple(values))
    assert torch.equal(data.take(slice(0, 2))[0], plain.take(slice(0, 2))[0])
    assert json.loads(json.dumps(data.describe()))["mean"] == values
    loaded = load_data("digits", "test", mean=made(values[:1]), std=made(values[:1]))
    assert json.loads(json.dumps(loaded.describe()))["std"] == values[:1]
    assert all(type(value) is float for value in (*data.mean, *data.std, *loaded.mean, *loaded.std))


def test_without_mean_and_std_images_lie_between_0_and_1() -> None:
    data = coloured()
    torch.testing.assert_close(data.take(slice(None))[0], data.images.float() / 255)


def test_dataset_gives_items_singly_and_in_batches() -> None:
    data = coloured(mean=(0.1,) * 3)
    image, label = data.dataset[4]
    torch.testing.assert_close(image, data.take(slice(4, 5))[0][0])
    assert label == 1
    last, _ = data.dataset[-1]
    torch.testing.assert_close(last, data.take(slice(11, 12))[0][0])
    with pytest.raises(IndexError):
        data.dataset[12]
    loaded = list(DataLoader(data.dataset, batch_size=5))
    assert [len(images) for images, _ in loaded] == [5, 5, 2]
    torch.testing.assert_close(torch.cat([images for images, _ in loaded]), data.take(slice(None))[0])
    assert torch.cat([labels for _, labels in loaded]).equal(torch.arange(12) % 3)


def test_unlabelled_images_carry_minus_one() -> None:
    data = coloured(labels=None, classes=())
    assert not data.labelled
    assert data.dataset[0][1] == -1
    assert data.take(slice(0, 3))[1].tolist() == [-1] * 3


def test_sample_is_distinct_and_determined_by_the_seed() -> None:
    data = coloured(images=torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1))
    first, again, other = data.sample(8), data.sample(8), data.sample(8, seed=1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.unique()) == 8
    for count in (0, 13):
        with pytest.raises(SeparableError, match=f"count={count}"):
            data.sample(count)


def test_subset_keeps_images_with_their_labels() -> None:
    data = coloured()
    part = data.subset([5, 0, 7])
    assert torch.equal(part.images, data.images[[5, 0, 7]])
    assert part.labels is not None
    assert part.labels.tolist() == [2, 0, 1]
    ranged = data.subset(range(3, 9))
    assert torch.equal(ranged.images, data.images[3:9])
    assert ranged.images.data_ptr() == data.images[3:].data_ptr()
    assert torch.equal(data.subset(range(0, 12, 5)).images, data.images[::5])
    for wrong in ([], [12], [-1]):
        with pytest.raises(SeparableError, match="ind"):
            data.subset(wrong)


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_yield_every_image_once(shuffle: bool) -> None:
    data = coloured(images=torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1))
    seen = [images for images, _ in data.batches(5, shuffle=shuffle, seed=3)]
    assert [len(images) for images in seen] == [5, 5, 2]
    values = (torch.cat(seen).flatten() * 255).round().long().tolist()
    assert sorted(values) == list(range(12))
    assert (values == list(range(12))) is not shuffle


def spoilt(value: float) -> Tensor:
    images = torch.full((3, 1, 2, 2), 0.5)
    images[1, 0, 0, 0] = value
    return images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(4, 3, 8)}, r"shape \(4, 3, 8\): must be \(N, C, H, W\)"),
        ({"images": torch.zeros(0, 3, 8, 8), "labels": None}, r"has no image: .*\(0, 3, 8, 8\)"),
        ({"images": torch.zeros(3, 1, 2, 2, dtype=torch.float64)}, "float64"),
        ({"images": spoilt(float("nan"))}, "image 1 of made"),
        ({"images": spoilt(float("inf"))}, "image 1 of made"),
        ({"images": spoilt(3.5)}, "0 to 3.5|0.5 to 3.5"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, r"must be torch.int64 of shape \(12,\)"),
        ({"labels": torch.zeros(12)}, "float32"),
        ({"labels": torch.full((12,), 3)}, "label 3 of image 0 .* 3 classes"),
        ({"labels": torch.full((12,), -1)}, "label -1 of image 0"),
        ({"mean": 0.5}, "mean=0.5: must be numbers, one for each channel"),
        ({"std": "imagenet"}, "std='imagenet': must be numbers, one for each channel"),
        ({"mean": (0.5,)}, r"mean=\(0.5,\) has 1 entries; .* 3 channels"),
        ({"std": (0.5, 0.0, 0.5)}, "std=.* above 0"),
    ],
)
def test_invalid_contents_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SeparableError, match=message):
        coloured(**changes)


def test_digits_are_split_evenly_and_the_same_every_time() -> None:
    train, test = load_data("digits"), load_data("digits", "test")
    assert (len(train), len(test)) == (1347, 450)
    assert test.labels is not None
    assert test.labels.bincount().tolist() == [45, 46, 44, 46, 45, 46, 45, 45, 43, 45]
    assert torch.equal(test.images, load_data("digits", "test").images)
    together = torch.cat([train.images, test.images]).flatten(1)
    assert len(together.unique(dim=0)) == 1797
    assert 0 <= float(train.images.min()) < float(train.images.max()) <= 1
    assert load_data("digits", image_size=16).image_shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cifar", "'cifar': must be one of digits"),
        ("digits:x", "'digits:x'"),
        ("npz:", "'npz:'.* npz:PATH"),
        ("hf", "'hf'.* hf:NAME"),
        ("", "''"),
    ],
)
def test_unknown_sources_are_refused(spec: str, message: str) -> None:
    with pytest.raises(SeparableError, match=message):
        load_data(spec)


def test_arguments_of_loading_are_checked() -> None:
    with pytest.raises(SeparableError, match="split='valid'"):
        load_data("digits", "valid")
    with pytest.raises(SeparableError, match="image_size=0"):
        load_data("digits", image_size=0)
    with pytest.raises(SeparableError, match="broken='ignore'"):
        load_data("digits", broken="ignore")  # type: ignore[arg-type]
