from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torch_separable.data.augmentation import AUGMENTATIONS, Augmentation, derive_seed

CHANGES = [name for name in AUGMENTATIONS if name != "mixup"]


def augmented(images: Tensor, *names: str, step: int = 0, seed: int = 0) -> Tensor:
    return Augmentation(names, seed)(images, step, torch.arange(len(images)), len(images))


def noise(count: int = 32, size: int = 16) -> Tensor:
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8)


@pytest.mark.parametrize("name", CHANGES)
@given(cut=st.integers(1, 31), seed=st.integers(0, 2**40), step=st.integers(0, 10**6))
def test_augmentation_depends_only_on_seed_step_and_position(name: str, cut: int, seed: int, step: int) -> None:
    augment, images, places = Augmentation((name,), seed), noise(size=8), torch.arange(32)
    whole = augment(images, step, places, 32)
    parts = [augment(images[part], step, places[part], 32) for part in (slice(0, cut), slice(cut, 32))]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("name", CHANGES)
def test_steps_and_seeds_change_the_augmentation(name: str) -> None:
    images = noise()
    first = augmented(images, name)
    assert torch.equal(first, augmented(images, name))
    assert not torch.equal(first, augmented(images, name, step=1))
    assert not torch.equal(first, augmented(images, name, seed=1))
    assert first.shape == images.shape


@pytest.mark.parametrize("name", CHANGES)
def test_uint8_and_float_images_are_augmented_alike(name: str) -> None:
    images = noise()
    of_bytes, of_floats = augmented(images, name), augmented(images.float() / 255, name)
    if of_bytes.dtype == torch.uint8:
        of_bytes = of_bytes.float() / 255
    torch.testing.assert_close(of_bytes, of_floats, atol=0.5 / 255 + 1e-6, rtol=0)
    assert 0 <= float(of_floats.min()) <= float(of_floats.max()) <= 1


def test_crops_are_windows_of_the_padded_image() -> None:
    images = noise(count=200)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    seen = set()
    for before, after in zip(padded, augmented(images, "crop"), strict=True):
        places = [(y, x) for y in range(5) for x in range(5) if before[:, y : y + 16, x : x + 16].equal(after)]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 25, "every window occurs"


def test_about_half_of_the_images_are_mirrored() -> None:
    images = noise(count=400, size=4)
    mirrored = 0
    for before, after in zip(images, augmented(images, "flip"), strict=True):
        if after.equal(before.flip(-1)):
            mirrored += 1
        else:
            assert after.equal(before)
    assert 160 < mirrored < 240


def test_erasing_blanks_one_rectangle_in_about_half_of_the_images() -> None:
    images = torch.zeros(400, 3, 32, 32)
    holes = augmented(images, "erase")[:, 0] == 0.5
    area = holes.flatten(1).sum(1)
    assert 160 < int((area > 0).sum()) < 240
    for hole in holes[area > 0]:
        rows, columns = hole.any(1).sum(), hole.any(0).sum()
        assert int(hole.sum()) == int(rows * columns)
        assert 0.01 < float(hole.float().mean()) < 0.36


def test_colours_keep_grey_images_grey_and_work_on_one_channel() -> None:
    grey = torch.rand(16, 1, 8, 8)
    changed = augmented(grey.expand(-1, 3, -1, -1), "color")
    torch.testing.assert_close(changed[:, :1].expand_as(changed), changed)
    assert augmented(grey, "color").shape == grey.shape
    assert not torch.equal(augmented(grey, "color"), grey)


def test_mixing_pairs_each_image_with_its_neighbour() -> None:
    augment = Augmentation(("mixup",), 0)
    mixing = augment.mixing(3, torch.arange(6), 6)
    assert mixing is not None
    partners, share = mixing
    assert partners.tolist() == [1, 2, 3, 4, 5, 0]
    assert bool(((share >= 0.5) & (share <= 1)).all())
    half = augment.mixing(3, torch.arange(3, 6), 6)
    assert half is not None
    assert torch.equal(half[1], share[3:])
    assert Augmentation(("crop",), 0).mixing(3, torch.arange(6), 6) is None
    images = noise(6)
    assert torch.equal(augmented(images, "mixup"), images), "mixing is left to whoever has the partners"


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=4).map(tuple), min_size=2, max_size=8, unique=True))
def test_seeds_of_different_numbers_differ(parts: list[tuple[int, ...]]) -> None:
    assert len({derive_seed(*part) for part in parts}) == len(parts)
