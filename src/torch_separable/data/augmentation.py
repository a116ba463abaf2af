"""Random augmentation of image batches, reproducible from (seed, step, position in the batch).

An image's augmentation depends on nothing else. A resumed run therefore sees the same images as an uninterrupted one,
and two processes with half a batch each see the same images as one process.

Cropping, flipping and erasing are implemented here by indexing and keep uint8 images as uint8: they take half the time
of kornia's, which convert to float. Colour changes are kornia's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torch_separable._system.extras import optional

_CROP_SHARE = 8  # padding is 1/8 of the size: 4 pixels for 32, the usual choice for CIFAR (arXiv 1512.03385)
_ERASE_AREA = (0.02, 0.33)
_ERASE_ASPECT = (0.3, 3.3)
_COLOR_STRENGTH = 0.4
_MIXUP_ALPHA = 1.0  # uniform shares, used for CIFAR-10 (arXiv 1710.09412) and for distillation (arXiv 2106.05237)


def derive_seed(*parts: int) -> int:
    """Combine non-negative integers into one 64-bit seed; different inputs give independent streams.

    Example:
        >>> derive_seed(0, 1) != derive_seed(1, 0)
        True
    """
    # SeedSequence gives (1,) and (1, 0) the same state; the length distinguishes them.
    return int(np.random.SeedSequence((len(parts), *parts)).generate_state(1, np.uint64)[0])


@dataclass(frozen=True)
class Augmentation:
    """A sequence of random augmentations.

    Attributes:
        names: the augmentations in order: ``crop`` (pad by an eighth, crop at a random offset), ``flip`` (mirror half
            of the images left to right), ``color`` (brightness, contrast and saturation times 0.6..1.4), ``erase`` (a
            grey rectangle in half of the images, arXiv 1708.04896), ``mixup`` (see ``mixing``).
        seed: random seed.

    Example:
        >>> import torch
        >>> images, everywhere = torch.rand(6, 3, 8, 8), torch.arange(6)
        >>> augment = Augmentation(("crop", "flip"), seed=0)
        >>> whole = augment(images, step=5, positions=everywhere, batch_size=6)
        >>> half = augment(images[3:], step=5, positions=everywhere[3:], batch_size=6)
        >>> torch.equal(whole[3:], half)
        True
    """

    names: tuple[str, ...]
    seed: int

    def __call__(self, images: Tensor, step: int, positions: Tensor, batch_size: int) -> Tensor:
        """Augment raw images (n, C, H, W), uint8 or float in 0..1.

        Args:
            images: the images at ``positions`` of the batch.
            step: index of the batch since the start of the run.
            positions: index of each image in its batch, (n,), int64.
            batch_size: number of images in the whole batch.

        Returns:
            Images of the same shape and range, uint8 or float32.
        """
        for order, name in enumerate(self.names):
            if name != "mixup":
                draw = _Draw(torch.Generator().manual_seed(derive_seed(self.seed, step, order)), positions, batch_size)
                images = _CHANGES[name](images, draw)
        return images

    def mixing(self, step: int, positions: Tensor, batch_size: int) -> tuple[Tensor, Tensor] | None:
        """Draw the pairs and shares of ``mixup`` (arXiv 1710.09412); ``None`` if it is not in ``names``.

        Returns:
            The position of each image's partner in the batch, and the image's own share in the mixture, both (n,).
        """
        if "mixup" not in self.names:
            return None
        draw = np.random.default_rng(derive_seed(self.seed, step, self.names.index("mixup")))
        share = torch.from_numpy(draw.beta(_MIXUP_ALPHA, _MIXUP_ALPHA, batch_size)).float()
        share = torch.maximum(share, 1 - share)
        return (positions + 1) % batch_size, share[positions]


@dataclass(frozen=True)
class _Draw:
    """Draws random numbers for the whole batch and returns those of the images at ``positions``, (n, 1)."""

    generator: torch.Generator
    positions: Tensor
    batch_size: int

    def uniform(self, least: float = 0.0, most: float = 1.0) -> Tensor:
        drawn = torch.rand(self.batch_size, 1, generator=self.generator)[self.positions]
        return least + (most - least) * drawn

    def whole(self, most: int) -> Tensor:
        """Draw an integer in 0..most."""
        return torch.randint(most + 1, (self.batch_size, 1), generator=self.generator)[self.positions]


def _crop(images: Tensor, draw: _Draw) -> Tensor:
    height, width = images.shape[-2:]
    vertical, horizontal = max(1, height // _CROP_SHARE), max(1, width // _CROP_SHARE)
    padded = F.pad(images, (horizontal, horizontal, vertical, vertical))
    rows = torch.arange(height) + draw.whole(2 * vertical)
    columns = torch.arange(width) + draw.whole(2 * horizontal)
    return _columns(_rows(padded, rows), columns)


def _flip(images: Tensor, draw: _Draw) -> Tensor:
    columns = torch.arange(images.shape[-1])
    return _columns(images, torch.where(draw.uniform() < 0.5, columns.flip(0), columns))


def _rows(images: Tensor, rows: Tensor) -> Tensor:
    """Select rows (n, H') of each image (n, C, H, W)."""
    n, channels, _, width = images.shape
    return images.gather(2, rows.to(images.device).view(n, 1, -1, 1).expand(-1, channels, -1, width))


def _columns(images: Tensor, columns: Tensor) -> Tensor:
    """Select columns (n, W') of each image (n, C, H, W)."""
    n, channels, height, _ = images.shape
    return images.gather(3, columns.to(images.device).view(n, 1, 1, -1).expand(-1, channels, height, -1))


def _color(images: Tensor, draw: _Draw) -> Tensor:
    enhance = optional("kornia.enhance", "train")
    if images.dtype == torch.uint8:
        images = images.float() / 255
    changes = [enhance.adjust_brightness_accumulative, enhance.adjust_contrast_with_mean_subtraction]
    if images.shape[1] == 3:
        changes.append(enhance.adjust_saturation)
    for change in changes:
        factor = draw.uniform(1 - _COLOR_STRENGTH, 1 + _COLOR_STRENGTH).squeeze(1)
        images = change(images, factor.to(images.device)).clamp(0, 1)
    return images


def _erase(images: Tensor, draw: _Draw) -> Tensor:
    height, width = images.shape[-2:]
    area = draw.uniform(*_ERASE_AREA) * height * width
    aspect = draw.uniform(*np.log(_ERASE_ASPECT)).exp()
    tall = (area * aspect).sqrt().round().clamp(1, height)
    wide = (area / aspect).sqrt().round().clamp(1, width)
    top = (draw.uniform() * (height - tall + 1)).floor()
    left = (draw.uniform() * (width - wide + 1)).floor()
    rows, columns = torch.arange(height), torch.arange(width)
    inside_rows = (rows >= top) & (rows < top + tall) & (draw.uniform() < 0.5)
    inside_columns = (columns >= left) & (columns < left + wide)
    hole = (inside_rows[:, None, :, None] & inside_columns[:, None, None, :]).to(images.device)
    grey = 128 if images.dtype == torch.uint8 else 0.5
    return images.masked_fill(hole, grey)


_CHANGES: dict[str, Callable[[Tensor, _Draw], Tensor]] = {
    "crop": _crop,
    "flip": _flip,
    "color": _color,
    "erase": _erase,
}
AUGMENTATIONS = (*_CHANGES, "mixup")
