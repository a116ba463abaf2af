"""In-memory image data with optional labels, for calibration, training and evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from torch_separable.data import readers
from torch_separable.errors import SeparableError, SeparableValueError

if TYPE_CHECKING:
    from torch_separable.data.readers import Raw

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
UNLABELLED = -1

_SPECS = "digits, npz:PATH, folder:PATH, hf:NAME"


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images of one size in memory, with the normalisation that the network expects.

    Pixels keep their type (uint8 if they were read as uint8) and are normalised on access, so that 50,000 CIFAR images
    take 150 MB.

    Attributes:
        name: the source of the images, as given to ``load_data``.
        split: name of the split.
        images: raw pixels (N, C, H, W), uint8, or float32 in 0..1.
        labels: class index of each image (N,), int64; ``None`` if unlabelled.
        classes: names of the classes.
        mean: value subtracted from each channel of images in 0..1; empty for none.
        std: value that each channel is then divided by; empty for none.

    Raises:
        SeparableValueError: a shape, type or range differs from the above, a pixel is NaN, there is no image, or a
            label is outside the classes.

    Example:
        >>> import torch
        >>> data = ImageData("noise", "train", torch.rand(10, 3, 8, 8), torch.arange(10) % 2, ("cat", "dog"))
        >>> data
        ImageData('noise', 'train': 10 x 3x8x8 float32, 2 classes)
        >>> len(data), data.image_shape, data.sample(4).shape
        (10, (3, 8, 8), torch.Size([4, 3, 8, 8]))
        >>> image, label = data.dataset[3]
        >>> data.classes[label]
        'dog'
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_images(self)
        _check_labels(self)
        channels = self.images.shape[1]
        for field in ("mean", "std"):
            values = _numbers(field, getattr(self, field))
            object.__setattr__(self, field, values)
            if values and len(values) != channels:
                raise SeparableValueError(
                    f"{field}={values} has {len(values)} entries; the images of {self.name} have {channels} channels: "
                    "give one entry for each channel"
                )
        if not all(map(math.isfinite, self.mean)):
            raise SeparableValueError(f"mean={self.mean}: every entry must be finite")
        if not all(0 < value < math.inf for value in self.std):
            raise SeparableValueError(f"std={self.std}: every entry must be finite and above 0")

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        channels, height, width = self.image_shape
        kind = str(self.images.dtype).removeprefix("torch.")
        known = f"{len(self.classes)} classes" if self.labelled else "no labels"
        return f"ImageData({self.name!r}, {self.split!r}: {len(self):,} x {channels}x{height}x{width} {kind}, {known})"

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""
        return self.labels is not None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def dataset(self) -> Dataset[tuple[Tensor, int]]:
        """The images as a PyTorch dataset of (normalised float32 image (C, H, W), label or -1)."""
        return _ImageDataset(self)

    def describe(self) -> dict[str, object]:
        """Return what identifies these images, as JSON types."""
        return {
            "name": self.name,
            "split": self.split,
            "images": len(self),
            "shape": list(self.image_shape),
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def normalise(self, images: Tensor) -> Tensor:
        """Convert raw pixels (n, C, H, W), uint8 or float in 0..1, to the network's normalised float32 input."""
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        images = images.to(torch.float32)
        if not self.mean and not self.std:
            return images / scale if scale != 1.0 else images
        channels = images.shape[1]
        mean = torch.tensor(self.mean or (0.0,) * channels, device=images.device) * scale
        std = torch.tensor(self.std or (1.0,) * channels, device=images.device) * scale
        return (images - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)

    def take(self, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return the normalised images (n, C, H, W) and labels (n,) at ``indices``; labels are -1 if unlabelled."""
        images = self.normalise(self.images[indices])
        if self.labels is None:
            return images, torch.full((len(images),), UNLABELLED)
        return images, self.labels[indices]

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Draw ``count`` distinct normalised images (count, C, H, W); equal seeds give equal images.

        Raises:
            SeparableValueError: ``count`` is below 1 or above the number of images.
        """
        if not 1 <= count <= len(self):
            raise SeparableValueError(
                f"count={count}: must be between 1 and the {len(self)} images of {self.name} ({self.split})"
            )
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.take(order[:count])[0]

    def subset(self, indices: Sequence[int] | range | Tensor) -> ImageData:
        """Return the images at ``indices``, in that order; a ``range`` of step 1 shares memory with this data.

        Raises:
            SeparableValueError: ``indices`` is empty, or an index is outside 0..len-1.
        """
        if len(indices) == 0:
            raise SeparableValueError(f"indices is empty: a subset of {self.name} needs at least one image")
        wanted = torch.as_tensor(indices)
        least, most = int(wanted.min()), int(wanted.max())
        if least < 0 or most >= len(self):
            raise SeparableValueError(
                f"indices {least}..{most} are out of range: {self.name} ({self.split}) has images 0..{len(self) - 1}"
            )
        if isinstance(indices, range) and indices.step == 1:
            chosen: Tensor | slice = slice(indices.start, indices.stop)
        else:
            chosen = wanted
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, images=self.images[chosen], labels=labels)

    def batches(self, batch_size: int, *, shuffle: bool = False, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (normalised images (n, C, H, W), labels (n,)); the last batch may be smaller.

        Args:
            batch_size: images in a batch.
            shuffle: whether to shuffle the images.
            seed: random seed of the order.
        """
        if batch_size < 1:
            raise SeparableValueError(f"batch_size={batch_size}: must be at least 1")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)) if shuffle else None
        for start in range(0, len(self), batch_size):
            here = slice(start, start + batch_size)
            yield self.take(here if order is None else order[here])


class _ImageDataset(Dataset[tuple[Tensor, int]]):
    """``ImageData`` as a ``torch.utils.data.Dataset``; ``__getitems__`` lets a DataLoader fetch a batch at once."""

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index}: {self.data.name} has {len(self)} images")
        return self.__getitems__([index % len(self)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        images, labels = self.data.take(torch.as_tensor(indices))
        return list(zip(images, labels.tolist(), strict=True))


def load_data(
    spec: str,
    split: str = "train",
    *,
    image_size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    broken: Literal["refuse", "skip"] = "refuse",
    progress: bool = True,
) -> ImageData:
    """Load images from a source given as a short specification.

    The whole split is decoded into memory: 3 KB per image at 32x32 pixels, 150 KB at 224x224.

    Args:
        spec: one of

            - ``digits``: scikit-learn's 1,797 scans of handwritten digits, enlarged to 32x32, one channel, 0..1. The
              split ``test`` has 450 of them, stratified by class, ``train`` the others;
            - ``npz:PATH``: a NumPy archive with ``images`` (uint8, or float in 0..1; (N, H, W, C), (N, C, H, W) or
              (N, H, W)) and optionally ``labels`` (N,) and ``classes``, used for every split; or a folder with one
              archive per split, named ``train.npz``, ``test.npz``, ...;
            - ``folder:PATH``: an image folder, ``PATH/split/CLASS/image.png``, or ``PATH/split/image.png`` without
              labels. Subfolders of a class belong to the class, and links are followed. Names that begin with a dot
              and files whose extension Pillow does not know are skipped. As in torchvision, the EXIF orientation is
              not applied;
            - ``hf:NAME``: a data set of the Hugging Face hub, or the path of one on disk, read by ``datasets``. Labels
              come from the column ``label`` or ``labels``, or else from the first ``ClassLabel`` column. A single
              ``Dataset`` saved to disk is used for every split.
        split: name of the split, such as ``train`` or ``test``.
        image_size: (height, width), or one number for both: images are resized to cover it and then centre-cropped.
            Required if the images differ in size.
        mean: value subtracted from each channel of images in 0..1, such as ``IMAGENET_MEAN``; none by default.
        std: value that each channel is then divided by, such as ``IMAGENET_STD``; none by default.
        broken: what to do with an image that cannot be decoded: ``refuse`` raises an error that names it, ``skip``
            skips it with a warning.
        progress: whether to show progress bars on a terminal.

    Raises:
        SeparableError: the specification, a file or its contents cannot be used; the message says which and why.
        MissingExtraError: the source needs a package that is not installed.

    Example:
        >>> train, test = load_data("digits"), load_data("digits", "test")
        >>> len(train), len(test), train.image_shape
        (1347, 450, (1, 32, 32))
    """
    kind, _, place = spec.partition(":")
    size = _pair(image_size)
    if broken not in ("refuse", "skip"):
        raise SeparableValueError(f"broken={broken!r}: must be 'refuse' or 'skip'")
    if kind in ("npz", "folder", "hf") and not place:
        raise SeparableValueError(f"data {spec!r} has no path: write {kind}:{'NAME' if kind == 'hf' else 'PATH'}")
    raw: Raw
    match kind:
        case "digits" if not place:
            raw = readers.read_digits(split, size)
        case "npz":
            raw = readers.read_npz(place, split, size)
        case "folder":
            raw = readers.read_folder(place, split, size, skip_broken=broken == "skip", progress=progress)
        case "hf":
            raw = readers.read_hub(place, split, size, skip_broken=broken == "skip", progress=progress)
        case _:
            raise SeparableValueError(f"data {spec!r}: must be one of {_SPECS}")
    return ImageData(spec, split, raw.images, raw.labels, raw.classes, _numbers("mean", mean), _numbers("std", std))


def _numbers(field: str, values: Sequence[float] | None) -> tuple[float, ...]:
    """Convert to plain floats, so that the values can be written as JSON."""
    try:
        return () if values is None else tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise SeparableValueError(f"{field}={values!r}: must be numbers, one for each channel") from error


def _pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise SeparableValueError(f"image_size={size}: give one number, or height and width, each at least 1")
    return pair


def _check_images(data: ImageData) -> None:
    images, name = data.images, data.name
    if images.ndim != 4:
        raise SeparableValueError(f"images of {name} have shape {tuple(images.shape)}: must be (N, C, H, W)")
    if images.numel() == 0:
        raise SeparableError(f"{name} ({data.split}) has no image: its images have shape {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return
    if images.dtype != torch.float32:
        raise SeparableValueError(f"images of {name} are {images.dtype}: must be torch.uint8, or torch.float32 in 0..1")
    least, most = (float(value) for value in images.aminmax())  # NaN anywhere makes both NaN
    if not torch.isfinite(torch.tensor([least, most])).all():
        first = int((~images.flatten(1).isfinite().all(1)).nonzero()[0])
        raise SeparableValueError(
            f"image {first} of {name} ({data.split}) has NaN or infinite pixels: repair or remove it"
        )
    if least < 0 or most > 1:
        raise SeparableValueError(
            f"float images of {name} range from {least:.4g} to {most:.4g}: must lie in 0..1. Give raw pixels, and the "
            "normalisation as mean and std"
        )


def _check_labels(data: ImageData) -> None:
    labels = data.labels
    if labels is None:
        return
    if labels.shape != (len(data.images),) or labels.dtype != torch.int64:
        raise SeparableValueError(
            f"labels of {data.name} are {labels.dtype} of shape {tuple(labels.shape)}: must be torch.int64 of shape "
            f"({len(data.images)},), one per image"
        )
    wrong = ((labels < 0) | (labels >= len(data.classes))).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise SeparableValueError(
            f"label {int(labels[first])} of image {first} of {data.name} ({data.split}) is out of range: "
            f"must be in 0..{len(data.classes) - 1}, the {len(data.classes)} classes"
        )
