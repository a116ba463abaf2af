"""Calibration images: which forms are accepted, how they are checked and how they are cut into batches."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_separable._system.reading import read_each
from torch_separable.errors import SeparableError, SeparableValueError

Batch = Tensor | Mapping[str, Tensor]
Images = Tensor | Mapping[str, Tensor] | Iterable[Batch]

FEWEST_IMAGES = 8
HELD_OUT = 4  # one image of so many is held out
# A batch has 64 images of up to 80x80 pixels, and fewer of larger images (8 at least). The allocator reuses activations
# of some tens of megabytes; it returns larger ones to the system, and then each batch pays for the page faults.
_BATCH, _SMALLEST_BATCH, _BATCH_PIXELS = 64, 8, 64 * 80 * 80
_LARGEST_VALUE = 32  # normalised pixels stay well below


def split_batches(images: Images) -> tuple[Batch, ...]:
    """Check calibration images and cut them into batches.

    Args:
        images: a tensor (N, C, H, W), a mapping of such tensors, or an iterable of batches of either, such as a
            ``DataLoader``; labels beside the images are ignored.

    Returns:
        The batches; empty batches of an iterable are dropped.

    Raises:
        SeparableError: there are fewer than 8 images, they are all equal, one contains NaN or infinity, or the iterable
            raised an exception.
        SeparableValueError: something other than floating-point images was given.
    """
    batches = _as_batches(images)
    count = sum(_check_batch(i, batch) for i, batch in enumerate(batches))
    if count < FEWEST_IMAGES:
        raise SeparableError(
            f"{count} calibration images: at least {FEWEST_IMAGES} are needed, and 256 to 1,024 recommended"
        )
    if _are_identical(batches):
        raise SeparableError(
            f"all {count} calibration images are identical, so nothing can be fitted to them. Check how they are loaded"
        )
    return batches


def hold_out(batches: Sequence[Batch]) -> tuple[tuple[Batch, ...], tuple[Batch, ...]]:
    """Split batches into those to fit to and those held out: the last quarter of each batch, without copies.

    Example:
        >>> fitted, held_out = hold_out([torch.zeros(8, 3, 4, 4), torch.zeros(2, 3, 4, 4)])
        >>> [len(batch) for batch in fitted], [len(batch) for batch in held_out]
        ([6, 2], [2])
    """
    fitted: list[Batch] = []
    held_out: list[Batch] = []
    seen = held = 0
    for batch in batches:
        seen += images_in(batch)
        last = seen // HELD_OUT - held  # over all batches so far, as a batch may have less than four images
        held += last
        first = images_in(batch) - last
        for part, images in ((fitted, slice(0, first)), (held_out, slice(first, None))):
            sliced = {n: v[images] for n, v in batch.items()} if isinstance(batch, Mapping) else batch[images]
            if images_in(sliced):
                part.append(sliced)
    return tuple(fitted), tuple(held_out)


def images_in(batch: Batch) -> int:
    """Return how many images a batch contains."""
    return len(next(iter(batch.values()))) if isinstance(batch, Mapping) else len(batch)


def first_images(batch: Batch, count: int) -> Batch:
    """Return the first ``count`` images of a batch."""
    return {name: value[:count] for name, value in batch.items()} if isinstance(batch, Mapping) else batch[:count]


def with_layout(layout: torch.memory_format, batch: Batch) -> Batch:
    """Return a batch whose images (N, C, H, W) have the given memory format."""

    def convert_one(value: Tensor) -> Tensor:
        is_image = value.dim() == 4 and value.is_floating_point()
        return value.contiguous(memory_format=layout) if is_image else value

    if isinstance(batch, Mapping):
        return {name: convert_one(value) for name, value in batch.items()}
    return convert_one(batch)


def tensors_of(batch: Batch) -> list[Tensor]:
    """Return the tensors of a batch."""
    return list(batch.values()) if isinstance(batch, Mapping) else [batch]


def _as_batches(images: Images) -> tuple[Batch, ...]:
    if isinstance(images, Tensor):
        if images.dim() < 3:
            raise SeparableValueError(f"images have shape {tuple(images.shape)}: expected (N, C, H, W)")
        if not len(images):
            return ()
        size = max(_SMALLEST_BATCH, min(_BATCH, _BATCH_PIXELS // max(1, images[0, 0].numel())))
        return tuple(images.split(size))
    if isinstance(images, Mapping):
        return tuple(_split_mapping(images))
    if isinstance(images, Iterable):
        named = read_each(images, "batch {} of the calibration images")
        return tuple(batch for batch in map(_without_labels, named) if not _is_empty(batch))
    raise SeparableValueError(f"images are a {type(images).__name__}: expected a tensor or an iterable of batches")


def _without_labels(batch: Any) -> Any:
    """Return the images of a pair (images, labels), which the DataLoader of a labelled data set yields."""
    if isinstance(batch, tuple | list) and len(batch) in (1, 2):
        images, *labels = batch
        labelled = all(isinstance(label, Tensor) and label.dim() <= 1 for label in labels)
        if isinstance(images, Tensor) and images.dim() == 4 and labelled:
            return images
    return batch


def _split_mapping(images: Mapping[str, Tensor]) -> Iterator[Batch]:
    whole = all(isinstance(value, Tensor) and value.dim() > 0 for value in images.values())
    count = len(next(iter(images.values()))) if images and whole else 0
    if not count:
        yield images  # `_check_batch` says what is wrong with it
    for first in range(0, count, _BATCH):
        yield {name: value[first : first + _BATCH] for name, value in images.items()}


def _is_empty(batch: object) -> bool:
    tensors = list(batch.values()) if isinstance(batch, Mapping) else [batch]
    return all(isinstance(tensor, Tensor) and tensor.dim() > 0 and not len(tensor) for tensor in tensors)


def _check_batch(index: int, batch: Batch) -> int:
    """Return how many images a batch contains, or raise an error that says why it cannot be used."""
    where = f"batch {index} of the calibration images"
    tensors = tensors_of(batch)
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise SeparableValueError(
            f"{where} is a {type(batch).__name__}: expected a tensor (N, C, H, W) or a mapping of tensors, "
            "without labels"
        )
    counts = {len(tensor) if tensor.dim() else None for tensor in tensors}
    if len(counts) > 1 or None in counts:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise SeparableValueError(
            f"{where} contains tensors of shapes {shapes}: the first dimension of each must count the images"
        )
    images = [tensor for tensor in tensors if tensor.is_floating_point()]
    if not images:
        raise SeparableValueError(
            f"{where} has dtype {tensors[0].dtype}: expected floating point, scaled and normalised as in training"
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in images):
        raise SeparableError(f"{where} contains NaN or infinity: remove these images")
    largest = max((float(tensor.abs().max()) for tensor in images if tensor.numel()), default=0.0)
    if index == 0 and largest > _LARGEST_VALUE:
        warnings.warn(
            f"calibration images contain values up to {largest:.0f}; normalised images stay below {_LARGEST_VALUE}. "
            "The network must see them as in training, or the fit is to the wrong inputs",
            stacklevel=5,
        )
    return len(images[0])


def _are_identical(batches: Sequence[Batch]) -> bool:
    def images_of(batch: Batch) -> list[Tensor]:
        if isinstance(batch, Tensor):
            return [batch]
        return [value for value in batch.values() if value.is_floating_point()]

    first = [tensor[:1] for tensor in images_of(batches[0])]
    return all(
        tensor.shape[1:] == one.shape[1:] and torch.equal(tensor, one.expand_as(tensor))
        for batch in batches
        for tensor, one in zip(images_of(batch), first, strict=True)
    )
