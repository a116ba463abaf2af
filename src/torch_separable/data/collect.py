"""Collect images that people have (a DataLoader, a data set, a list of PIL images) into an `ImageData`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from torch_separable._system.reading import read_each
from torch_separable.data.image_data import ImageData
from torch_separable.errors import SeparableValueError


def collect_images(
    source: Any,
    *,
    transform: Callable[[Any], Any] | None = None,
    classes: Sequence[str] = (),
    name: str = "images",
    split: str = "given",
    most: int | None = None,
) -> ImageData:
    """Read images, with labels if there are any, into memory.

    Images that are already normalised are mapped to 0..1, and ``mean`` and ``std`` of the result invert this map, so
    that the network sees the same values up to rounding.

    Args:
        source: a ``DataLoader``, a data set, or a sequence. Its elements are images or (image, label) pairs. An image
            is a tensor (C, H, W), a PIL image, or an array (H, W) or (H, W, C); a loader yields batches (N, C, H, W).
        transform: function that is applied to every image of a data set or a sequence, such as a torchvision transform.
        classes: names of the classes; by default those of the data set, or the numbers of the labels.
        name: name of the data, for messages.
        split: name of the split.
        most: largest number of images to read; all by default.

    Raises:
        SeparableError: the source raised an exception, such as one from a worker of the loader.
        SeparableValueError: there is no image, an element is not an image, or sizes differ.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> images, labels = torch.randn(10, 3, 8, 8), torch.arange(10) % 2
        >>> data = collect_images(DataLoader(TensorDataset(images, labels), batch_size=4))
        >>> data
        ImageData('images', 'given': 10 x 3x8x8 float32, 2 classes)
        >>> torch.allclose(data.take(slice(0, 10))[0], images, atol=1e-6)
        True
    """
    if isinstance(source, ImageData):
        return source
    items = _batched(source, name) if isinstance(source, DataLoader) else _elements(source, name)
    found: list[Tensor] = []
    labels: list[int] = []
    for image, label in islice(items, most):
        changed = image if transform is None or isinstance(source, DataLoader) else transform(image)
        found.append(_tensor(changed, len(found), name))
        if found[-1].shape != found[0].shape:
            raise SeparableValueError(
                f"image {len(found) - 1} of {name} has shape {tuple(found[-1].shape)}, the first has "
                f"{tuple(found[0].shape)}: give a transform that resizes and crops them to one size"
            )
        if label is not None:
            labels.append(int(label))
    if not found:
        raise SeparableValueError(f"{name} has no image")
    if labels and len(labels) != len(found):
        raise SeparableValueError(f"{name} has {len(found)} images, but only {len(labels)} of them have labels")
    images, mean, std = _in_unit_range(torch.stack(found))
    if not labels:
        return ImageData(name, split, images, mean=mean, std=std)
    own = getattr(getattr(source, "dataset", source), "classes", ())
    names = tuple(map(str, classes or own)) or tuple(map(str, range(max(labels) + 1)))
    return ImageData(name, split, images, torch.tensor(labels), names, mean, std)


def _batched(loader: Iterable[Any], name: str) -> Iterator[tuple[Any, Any]]:
    for batch in read_each(loader, f"batch {{}} of {name}"):
        images, labels = _pair(batch)
        if not isinstance(images, Tensor) or images.ndim != 4:
            raise SeparableValueError(f"{name} yields {_kind(images)}: expected batches of images (N, C, H, W)")
        yield from zip(images, [None] * len(images) if labels is None else labels, strict=True)


def _elements(source: Any, name: str) -> Iterator[tuple[Any, Any]]:
    if isinstance(source, str) or not (isinstance(source, Dataset | Iterable) or hasattr(source, "__getitem__")):
        raise SeparableValueError(
            f"{name} is a {type(source).__name__}: expected an ImageData, a DataLoader, a data set, or a sequence of "
            "images"
        )
    indices = range(len(source)) if hasattr(source, "__len__") and hasattr(source, "__getitem__") else None
    elements = source if indices is None else (source[i] for i in indices)
    yield from map(_pair, read_each(elements, f"image {{}} of {name}"))


def _pair(element: Any) -> tuple[Any, Any]:
    if isinstance(element, tuple | list) and len(element) == 2:
        return element[0], element[1]
    if isinstance(element, tuple | list) and len(element) == 1:
        return element[0], None
    return element, None


def _tensor(image: Any, index: int, name: str) -> Tensor:
    """Return an image as uint8 or float32 (C, H, W)."""
    if isinstance(image, Tensor):
        if image.ndim == 3 and (image.is_floating_point() or image.dtype == torch.uint8):
            return image if image.dtype == torch.uint8 else image.detach().to("cpu", torch.float32)
        raise SeparableValueError(f"image {index} of {name} is {_kind(image)}: expected (C, H, W), uint8 or float")
    if hasattr(image, "convert") and hasattr(image, "mode"):  # a PIL image
        image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    pixels = np.asarray(image)
    if pixels.dtype == np.uint8 and pixels.ndim in (2, 3):
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    raise SeparableValueError(
        f"image {index} of {name} is a {type(image).__name__}: expected a tensor (C, H, W), a PIL image, or an "
        "array of uint8"
    )


def _in_unit_range(images: Tensor) -> tuple[Tensor, tuple[float, ...], tuple[float, ...]]:
    """Map images to 0..1 if they are outside, and return the mean and std that invert the map."""
    if images.dtype == torch.uint8 or not images.isfinite().all():  # ImageData reports the image that is not finite
        return images, (), ()
    low, high = float(images.min()), float(images.max())
    if low >= 0 and high <= 1:
        return images, (), ()
    span = (high - low) or 1.0
    unit = ((images - low) / span).clamp_(0, 1)
    channels = images.shape[1]
    return unit, (-low / span,) * channels, (1 / span,) * channels


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
