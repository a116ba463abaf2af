"""Reading images from where people keep them: one function a source, each giving raw pixels and labels."""

from __future__ import annotations

import glob
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from torch_separable.errors import SeparableError
from torch_separable.extras import optional
from torch_separable.progress import progress_bar

_HELD_OUT_DIGITS = 450
_DIGITS_SIZE = (32, 32)


@dataclass(frozen=True, eq=False)
class Raw:
    """Pixels as they were read: images (N, C, H, W), uint8 or float32; labels (N,) int64 or ``None``; class names."""

    images: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]


def read_digits(split: str, size: tuple[int, int] | None) -> Raw:
    """scikit-learn's handwritten digits (UCI, 8x8, 17 grey levels), enlarged; see ``load_data``."""
    datasets = optional("sklearn.datasets", "demo")
    selection = optional("sklearn.model_selection", "demo")
    if split not in ("train", "test"):
        raise SeparableError(f"split={split!r}: digits has the splits train and test")
    digits = datasets.load_digits()
    parts = selection.train_test_split(
        np.arange(len(digits.target)), test_size=_HELD_OUT_DIGITS, stratify=digits.target, random_state=0
    )
    chosen = np.sort(parts[split == "test"])
    images = torch.from_numpy(digits.images[chosen]).float().unsqueeze(1) / 16
    images = F.interpolate(images, size=size or _DIGITS_SIZE, mode="bilinear", align_corners=False)
    labels = torch.from_numpy(digits.target[chosen].astype(np.int64))
    return Raw(images.clamp_(0, 1), labels, tuple(map(str, digits.target_names)))


def read_npz(place: str, split: str, size: tuple[int, int] | None) -> Raw:
    """A NumPy archive, or a folder with one for each split; see ``load_data``."""
    path = Path(place).expanduser()
    if path.is_dir():
        folder, path = path, path / f"{split}.npz"
        if not path.is_file():
            found = sorted(p.name for p in folder.glob("*.npz"))
            raise SeparableError(f"no {split}.npz in {folder}: it has {', '.join(found) or 'no .npz file'}")
    if not path.is_file():
        raise SeparableError(f"no images at {path}: no such file or folder")
    arrays = _npz_arrays(path)
    if "images" not in arrays:
        raise SeparableError(f"{path} has no array `images`: it has {', '.join(sorted(arrays)) or 'none'}")
    images = _npz_images(arrays["images"], path)
    labels = _npz_labels(arrays.get("labels"), path)
    classes: tuple[str, ...] = ()
    if labels is not None:
        names = arrays.get("classes")
        if names is not None and (names.ndim != 1 or names.dtype.kind not in "US"):
            raise SeparableError(f"{path}: `classes` is {names.dtype} of shape {names.shape}: must be a list of names")
        classes = tuple(map(str, names.astype(str))) if names is not None else _numbered(labels)
    return Raw(_cover(images, size), labels, classes)


def _npz_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays that are read of an archive; the others by name alone, for the message."""
    if not zipfile.is_zipfile(path):
        raise SeparableError(f"{path} is not a whole .npz archive: save one by np.savez(path, images=..., labels=...)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            wanted = ("images", "labels", "classes")
            return {name: archive[name] if name in wanted else np.empty(0) for name in archive.files}
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise SeparableError(
                f"{path} holds Python objects, which reading would execute: refused. Save plain arrays "
                "(images of one size, labels as integers, classes as strings)"
            ) from error
        raise SeparableError(f"{path} holds an array that NumPy cannot read: {error}") from error
    except MemoryError as error:
        raise SeparableError(f"{path} says that it holds more than this machine's memory: {error}") from error
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise SeparableError(f"{path} is not a whole .npz archive: {error}") from error


def _npz_images(images: NDArray[Any], path: Path) -> Tensor:
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise SeparableError(
            f"{path}: `images` has shape {images.shape}: must be (N, H, W, C), (N, C, H, W) or (N, H, W)"
        )
    if images.shape[1] == images.shape[3]:
        raise SeparableError(
            f"{path}: `images` of shape {images.shape} may be (N, H, W, C) or (N, C, H, W): the channels are "
            "taken to be the smaller of the second and the last axis, and these are equal"
        )
    if images.shape[3] < images.shape[1]:
        images = images.transpose(0, 3, 1, 2)
    if images.dtype.kind == "f":
        images = images.astype(np.float32, copy=False)
    elif images.dtype != np.uint8:
        raise SeparableError(f"{path}: `images` is {images.dtype}: must be uint8 (0..255), or float in 0..1")
    return torch.from_numpy(np.ascontiguousarray(images))


def _npz_labels(labels: NDArray[Any] | None, path: Path) -> Tensor | None:
    if labels is None:
        return None
    if labels.dtype.kind not in "iu":
        raise SeparableError(f"{path}: `labels` is {labels.dtype}: must be integers, the number of each image's class")
    return torch.from_numpy(labels.astype(np.int64))


def read_folder(place: str, split: str, size: tuple[int, int] | None, *, skip_broken: bool) -> Raw:
    """An image folder, through the ``imagefolder`` builder of ``datasets``; see ``load_data``."""
    datasets = optional("datasets", "train")
    root = Path(place).expanduser()
    if not root.is_dir():
        raise SeparableError(f"no image folder at {root}: no such folder")
    splits = _subfolders(root)
    if split not in splits:
        raise SeparableError(f"no folder {split} in {root}: it has {', '.join(splits) or 'no folder'}")
    folder = root / split
    # The classes are numbered by the training split's folders, so that a split without some class agrees with it.
    classes = _subfolders(root / "train") if "train" in splits else _subfolders(folder)
    unknown = sorted(set(_subfolders(folder)) - set(classes))
    if unknown:
        raise SeparableError(f"{folder} has the class {unknown[0]}, which {root / 'train'} has not")
    with _reading(datasets, str(folder)):
        table = datasets.load_dataset(
            "imagefolder",
            data_files={split: f"{glob.escape(str(folder))}/**"},
            split=split,
            drop_labels=not _subfolders(folder),
        )
    return _from_table(datasets, table, str(folder), size, skip_broken=skip_broken, classes=tuple(classes))


def read_hub(place: str, split: str, size: tuple[int, int] | None, *, skip_broken: bool) -> Raw:
    """A data set by its name on the Hugging Face hub or by its path on disk; see ``load_data``."""
    datasets = optional("datasets", "train")
    saved = Path(place).expanduser()
    with _reading(datasets, f"hf:{place}"):
        if (saved / "dataset_dict.json").is_file() or (saved / "state.json").is_file():
            table = datasets.load_from_disk(str(saved))
            if isinstance(table, datasets.DatasetDict):
                if split not in table:
                    raise SeparableError(f"no split {split} in {saved}: it has {', '.join(table)}")
                table = table[split]
        else:
            table = datasets.load_dataset(str(saved) if saved.is_dir() else place, split=split)
    return _from_table(datasets, table, f"hf:{place}", size, skip_broken=skip_broken)


@contextmanager
def _reading(datasets: Any, place: str) -> Iterator[None]:
    """Turn what ``datasets`` raises about ``place`` into one line."""
    try:
        yield
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise SeparableError(f"`datasets` cannot read {place}: {first}") from error


def _from_table(
    datasets: Any,
    table: Any,
    place: str,
    size: tuple[int, int] | None,
    *,
    skip_broken: bool,
    classes: tuple[str, ...] | None = None,
) -> Raw:
    """Decode the image column of a ``datasets.Dataset``; ``classes`` renumbers its labels by name."""
    image_column = next((name for name, kind in table.features.items() if isinstance(kind, datasets.Image)), None)
    if image_column is None:
        raise SeparableError(f"{place} has no column of images: its columns are {', '.join(table.features) or 'none'}")
    label_column = _label_column(datasets, table)
    encoded = table.cast_column(image_column, datasets.Image(decode=False))
    pictures, kept = _decode(encoded[image_column], place, size, skip_broken=skip_broken)
    images = _stack(pictures, place)
    if label_column is None:
        return Raw(images, None, ())
    kind = table.features[label_column]
    labels = torch.tensor(table[label_column], dtype=torch.int64)[kept]
    names = tuple(kind.names) if isinstance(kind, datasets.ClassLabel) else _numbered(labels)
    if classes is not None:
        number = {name: index for index, name in enumerate(classes)}
        labels, names = torch.tensor([number[names[label]] for label in labels.tolist()]), classes
    if bool((labels == -1).all()):  # how the hub marks test splits whose labels are kept secret
        return Raw(images, None, ())
    return Raw(images, labels, names)


def _label_column(datasets: Any, table: Any) -> str | None:
    for name, kind in table.features.items():
        if isinstance(kind, datasets.ClassLabel):
            return str(name)
    for name in ("label", "labels"):
        kind = table.features.get(name)
        if isinstance(kind, datasets.Value) and "int" in kind.dtype:
            return name
    return None


def _decode(
    encoded: Sequence[dict[str, Any]], place: str, size: tuple[int, int] | None, *, skip_broken: bool
) -> tuple[list[NDArray[np.uint8]], list[int]]:
    """Pixels (H, W) or (H, W, 3) of each image that can be decoded, and the numbers of those."""
    pictures: list[NDArray[np.uint8]] = []
    kept: list[int] = []
    broken: list[str] = []
    pillow = optional("PIL.Image", "train")
    operations = optional("PIL.ImageOps", "train")
    with progress_bar(f"decoding {place}", len(encoded), shown=True) as advance:
        for index, entry in enumerate(encoded):
            advance()
            name = entry["path"] or f"image {index}"
            try:
                with pillow.open(BytesIO(entry["bytes"]) if entry["bytes"] is not None else entry["path"]) as picture:
                    if picture.mode.startswith(("I", "F")):
                        raise ValueError(f"its pixels are {picture.mode}, more than 8 bits")
                    plain = picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")
            except Exception as error:  # whatever a decoder stumbles over: OSError, NotImplementedError, ...
                if not skip_broken:
                    raise SeparableError(
                        f"{name} in {place} cannot be decoded: {error}; repair or remove it, or load with broken='skip'"
                    ) from error
                broken.append(str(name))
                continue
            if size is not None and plain.size != size[::-1]:
                plain = operations.fit(plain, size[::-1], pillow.Resampling.BILINEAR)
            pictures.append(np.asarray(plain))
            kept.append(index)
    if broken:
        warnings.warn(f"{len(broken)} broken images of {place} skipped: {_some(broken)}", stacklevel=5)
    return pictures, kept


def _stack(pictures: list[NDArray[np.uint8]], place: str) -> Tensor:
    """Pictures of one size as a tensor (N, C, H, W); grey ones among coloured ones become coloured."""
    if not pictures:
        raise SeparableError(f"{place} is empty: there is no image to read")
    sizes = {picture.shape[:2] for picture in pictures}
    if len(sizes) > 1:
        shown = _some([f"{height}x{width}" for height, width in sorted(sizes)])
        raise SeparableError(f"images of {place} differ in size ({shown}): give image_size to bring them to one")
    height, width = next(iter(sizes))
    channels = 3 if any(picture.ndim == 3 for picture in pictures) else 1
    images = torch.empty(len(pictures), channels, height, width, dtype=torch.uint8)
    for image, picture in zip(images, pictures, strict=True):
        pixels = torch.from_numpy(picture.reshape(height, width, -1).copy())
        image.copy_(pixels.permute(2, 0, 1).expand(channels, -1, -1))
    return images


def _cover(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Scale images (N, C, H, W) until they cover ``size``, then crop the centre; uint8 stays uint8."""
    if size is None or images.shape[-2:] == size or images.numel() == 0:
        return images
    height, width = images.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    scaled = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    parts = [
        F.interpolate(part, scaled, mode="bilinear", antialias=True, align_corners=False)[
            ..., top : top + size[0], left : left + size[1]
        ]
        for part in torch.split(images, 1024)
    ]
    return torch.cat(parts)


def _subfolders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _numbered(labels: Tensor) -> tuple[str, ...]:
    return tuple(map(str, range(int(labels.max()) + 1))) if labels.numel() else ()


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
