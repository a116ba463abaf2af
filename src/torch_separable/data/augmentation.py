"""Random changes to a batch of images, drawn from (seed, step) for the whole batch at once.

What happens to an image is decided by the seed, the step and the image's position in the batch, by nothing else. So a
resumed run sees the images of an uninterrupted one, and two processes with half a batch each those of a single process.

Cropping, flipping and erasing move or blank pixels and are plain indexing, on uint8 where the images are uint8: half
the time of kornia's, which go through float. Colours are kornia's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torch_separable._system.extras import optional

_CROP_SHARE = 8  # a 32-pixel image is padded by 4 and cropped back, as CIFAR's usually are (arXiv 1512.03385)
_ERASE_AREA = (0.02, 0.33)
_ERASE_ASPECT = (0.3, 3.3)
_COLOR_STRENGTH = 0.4
_MIXUP_ALPHA = 1.0  # any mixture alike: as for CIFAR-10 (arXiv 1710.09412), and for distillation (arXiv 2106.05237)


def derive_seed(*parts: int) -> int:
    """One 64-bit seed from several non-negative numbers; different numbers give independent streams.

    Example:
        >>> derive_seed(0, 1) != derive_seed(1, 0)
        True
    """
    # The length keeps (1,) and (1, 0) apart, which SeedSequence does not.
    return int(np.random.SeedSequence((len(parts), *parts)).generate_state(1, np.uint64)[0])


@dataclass(frozen=True)
class Augmentation:
    """Random changes to images, by name and in order.

    Attributes:
        names: of ``crop`` (pad by an eighth, crop back anywhere), ``flip`` (mirror left to right, half of the images),
            ``color`` (brightness, contrast, saturation x 0.6..1.4), ``erase`` (a grey rectangle on half of the images,
            arXiv 1708.04896), ``mixup`` (see ``mixing``).
        seed: of everything drawn.

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
        """Change raw images (n, C, H, W), uint8 or float in 0..1.

        Args:
            images: the images at ``positions`` of the batch.
            step: number of the batch since the beginning of the run.
            positions: place of each image in its batch (n,), int64.
            batch_size: images in the whole batch.

        Returns:
            Images of the same shape and range, uint8 or float32.
        """
        for order, name in enumerate(self.names):
            if name != "mixup":
                draw = _Draw(torch.Generator().manual_seed(derive_seed(self.seed, step, order)), positions, batch_size)
                images = _CHANGES[name](images, draw)
        return images

    def mixing(self, step: int, positions: Tensor, batch_size: int) -> tuple[Tensor, Tensor] | None:
        """What ``mixup`` (arXiv 1710.09412) mixes: ``None`` if it is not asked for.

        Returns:
            The position in the batch of each image's partner, and each image's own share in the mixture, (n,) both.
        """
        if "mixup" not in self.names:
            return None
        draw = np.random.default_rng(derive_seed(self.seed, step, self.names.index("mixup")))
        share = torch.from_numpy(draw.beta(_MIXUP_ALPHA, _MIXUP_ALPHA, batch_size)).float()
        share = torch.maximum(share, 1 - share)
        return (positions + 1) % batch_size, share[positions]


@dataclass(frozen=True)
class _Draw:
    """Random numbers for the whole batch, of which the images at ``positions`` take theirs, shaped (n, 1)."""

    generator: torch.Generator
    positions: Tensor
    batch_size: int

    def uniform(self, least: float = 0.0, most: float = 1.0) -> Tensor:
        drawn = torch.rand(self.batch_size, 1, generator=self.generator)[self.positions]
        return least + (most - least) * drawn

    def whole(self, most: int) -> Tensor:
        """A whole number in 0..most."""
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
    """The rows (n, H') of each image (n, C, H, W)."""
    n, channels, _, width = images.shape
    return images.gather(2, rows.to(images.device).view(n, 1, -1, 1).expand(-1, channels, -1, width))


def _columns(images: Tensor, columns: Tensor) -> Tensor:
    """The columns (n, W') of each image (n, C, H, W)."""
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
