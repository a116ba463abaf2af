"""Readers of image data: one function per source, each returning raw pixels, labels and class names."""

from __future__ import annotations

import sys
import warnings
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
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

from torch_separable._console.progress import progress_bar
from torch_separable._system.extras import optional
from torch_separable.errors import SeparableError

_HELD_OUT_DIGITS = 450
_DIGITS_SIZE = (32, 32)
_MOST_CLASSES = 1_000_000


@dataclass(frozen=True, eq=False)
class Raw:
    """Raw image data: images (N, C, H, W), uint8 or float32; labels (N,), int64, or ``None``; class names."""

    images: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]


def read_digits(split: str, size: tuple[int, int] | None) -> Raw:
    """Read scikit-learn's handwritten digits (UCI, 8x8, 17 grey levels), enlarged; see ``load_data``."""
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
    """Read a NumPy archive, or a folder with one per split; see ``load_data``."""
    path = Path(place).expanduser()
    if path.is_dir():
        folder, path = path, path / f"{split}.npz"
        if not path.is_file():
            found = sorted(p.name for p in folder.glob("*.npz"))
            raise SeparableError(f"{folder} has no {split}.npz: it has {', '.join(found) or 'no .npz file'}")
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
            raise SeparableError(
                f"{path}: `classes` is {names.dtype} of shape {names.shape}: must be a one-dimensional array of strings"
            )
        classes = _numbered(labels, str(path)) if names is None else _npz_names(names, path)
    return Raw(_cover(images, size), labels, classes)


def _npz_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read images, labels and classes of an archive; other arrays are listed as empty, for error messages."""
    if not zipfile.is_zipfile(path):
        raise SeparableError(
            f"{path} is not a complete .npz archive: write one with np.savez(path, images=..., labels=...)"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            wanted = ("images", "labels", "classes")
            arrays = {name: archive[name] if name in wanted else np.empty(0) for name in archive.files}
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise SeparableError(
                f"{path} holds pickled Python objects, which could run code and are not loaded. Save plain arrays: "
                "images of one size, labels as integers, classes as strings"
            ) from error
        raise SeparableError(f"{path} holds an array that NumPy cannot read: {error}") from error
    except MemoryError as error:
        raise SeparableError(f"{path} declares arrays larger than this machine's memory: {error}") from error
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise SeparableError(f"{path} is not a complete .npz archive: {error}") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise SeparableError(
                f"{path}: `{name}` is not a NumPy array: write the archive with np.savez(path, images=..., labels=...)"
            )
    return arrays


def _npz_images(images: NDArray[Any], path: Path) -> Tensor:
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise SeparableError(
            f"{path}: `images` has shape {images.shape}: must be (N, H, W, C), (N, C, H, W) or (N, H, W)"
        )
    if images.shape[1] == images.shape[3]:
        raise SeparableError(
            f"{path}: `images` of shape {images.shape} is ambiguous: it may be (N, H, W, C) or (N, C, H, W). The "
            "channels are the smaller of the second and the last axis, and these are equal"
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
        raise SeparableError(f"{path}: `labels` is {labels.dtype}: must be integers, the class index of each image")
    return torch.from_numpy(labels.astype(np.int64))


def _npz_names(names: NDArray[Any], path: Path) -> tuple[str, ...]:
    try:
        return tuple(map(str, names.astype(str)))
    except UnicodeDecodeError as error:
        raise SeparableError(f"{path}: `classes` holds bytes that are not ASCII: save the names as strings") from error


def read_folder(
    place: str, split: str, size: tuple[int, int] | None, *, skip_broken: bool, progress: bool = True
) -> Raw:
    """Read an image folder, with one subfolder per class or none; see ``load_data``."""
    root = Path(place).expanduser()
    if not root.is_dir():
        raise SeparableError(f"{root} is not a folder: give an image folder, PATH/split/CLASS/image.png")
    folder = root / split
    try:
        paths, classes = _listed(root, split)
    except OSError as error:
        raise SeparableError(f"cannot read {error.filename or root}: {error.strerror or error}") from error
    entries = [{"path": str(path), "bytes": None} for path in paths]
    pictures, kept = _decode(entries, str(folder), size, skip_broken=skip_broken, progress=progress)
    images = _stack(pictures, str(folder))
    if not classes:
        return Raw(images, None, ())
    number = {name: index for index, name in enumerate(classes)}
    labels = [number[paths[index].relative_to(folder).parts[0]] for index in kept]
    return Raw(images, torch.tensor(labels), classes)


def _listed(root: Path, split: str) -> tuple[list[Path], tuple[str, ...]]:
    """Return the sorted images of a split and the class names, which are empty if there are no subfolders."""
    splits = _subfolders(root)
    if split not in splits:
        raise SeparableError(f"{root} has no folder {split}: it has {', '.join(splits) or 'no folder'}")
    folder = root / split
    own = _subfolders(folder)
    # Number the classes by the training split's folders, so that splits that lack a class use the same numbers.
    classes = _subfolders(root / "train") if own and "train" in splits else own
    unknown = sorted(set(own) - set(classes))
    if unknown:
        raise SeparableError(f"{folder} has the class {unknown[0]}, but {root / 'train'} does not")
    pillow = optional("PIL.Image", "train")
    pillow.init()
    suffixes = {suffix for suffix, form in pillow.registered_extensions().items() if _is_read(pillow, form)}
    paths = list(_files(folder, suffixes))
    stray = next((path for path in paths if path.parent == folder), None)
    if own and stray is not None:
        raise SeparableError(f"{stray} is not in a class folder: move it into one, or out of {folder}")
    return paths, tuple(classes)


def _is_read(pillow: Any, form: str) -> bool:
    """Whether Pillow decodes a format. For video it reads only the size, and for HDF5 it has only a stub."""
    reader, _ = pillow.OPEN.get(form, (None, None))
    stub = optional("PIL.ImageFile", "train").StubImageFile
    named = isinstance(reader, type) and issubclass(reader, stub)
    return reader is not None and not named and not pillow.MIME.get(form, "").startswith("video/")


def _files(folder: Path, suffixes: Collection[str], within: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the files below ``folder`` in order; links are followed, except links to an enclosing folder."""
    here = folder.resolve()
    if here in within:
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files(path, suffixes, (*within, here))
        elif path.suffix.lower() in suffixes:
            yield path


def read_hub(place: str, split: str, size: tuple[int, int] | None, *, skip_broken: bool, progress: bool = True) -> Raw:
    """Read a data set by its name on the Hugging Face hub or by its path on disk; see ``load_data``."""
    datasets = optional("datasets", "train")
    with _bars(shown=progress), _reading(datasets, f"hf:{place}"):
        table = _table(datasets, Path(place).expanduser(), place, split)
    place = f"hf:{place}"
    image_column = next((name for name, kind in table.features.items() if isinstance(kind, datasets.Image)), None)
    if image_column is None:
        raise SeparableError(f"{place} has no image column: its columns are {', '.join(table.features) or 'none'}")
    label_column = _label_column(datasets, table, place)
    encoded = table.cast_column(image_column, datasets.Image(decode=False))
    pictures, kept = _decode(encoded[image_column], place, size, skip_broken=skip_broken, progress=progress)
    images = _stack(pictures, place)
    if label_column is None:
        return Raw(images, None, ())
    labels = _hub_labels(table[label_column], kept, f"the column {label_column} of {place}")
    if bool((labels == -1).all()):  # the hub's convention for test splits with secret labels
        return Raw(images, None, ())
    kind = table.features[label_column]
    return Raw(images, labels, tuple(kind.names) if isinstance(kind, datasets.ClassLabel) else _numbered(labels, place))


def _table(datasets: Any, saved: Path, place: str, split: str) -> Any:
    """Return the ``datasets.Dataset`` of a split."""
    if not (saved / "dataset_dict.json").is_file() and not (saved / "state.json").is_file():
        return datasets.load_dataset(str(saved) if saved.is_dir() else place, split=split)
    try:
        table = datasets.load_from_disk(str(saved))
    except IndexError as error:  # a table without rows has no file
        raise SeparableError(f"{saved}, or one of its splits, has no rows") from error
    if not isinstance(table, datasets.DatasetDict):
        return table
    if split not in table:
        raise SeparableError(f"{saved} has no split {split}: it has {', '.join(table)}")
    return table[split]


@contextmanager
def _bars(*, shown: bool) -> Iterator[None]:
    """Disable the progress bars of ``datasets`` and the hub unless ``shown`` and standard error is a terminal."""
    libraries = [optional(name, "train") for name in ("datasets", "huggingface_hub.utils")]
    silenced = [
        library
        for library in libraries
        if not (shown and sys.stderr.isatty()) and not library.are_progress_bars_disabled()
    ]
    for library in silenced:
        library.disable_progress_bars()
    try:
        yield
    finally:
        for library in silenced:
            library.enable_progress_bars()


@contextmanager
def _reading(datasets: Any, place: str) -> Iterator[None]:
    """Convert exceptions of ``datasets`` about ``place`` to one line."""
    try:
        yield
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise SeparableError(f"`datasets` cannot read {place}: {first}") from error


def _label_column(datasets: Any, table: Any, place: str) -> str | None:
    """Return the column ``label``, ``labels`` or else the first ``ClassLabel``; warn if the choice is ambiguous."""
    kinds = table.features
    named = [name for name, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)]
    usual = [name for name in ("label", "labels") if name in kinds]
    for name in usual:
        if name in named or (isinstance(kinds[name], datasets.Value) and "int" in kinds[name].dtype):
            return name
    if len(named) > 1:
        warnings.warn(
            f"the labels of {place} are read from its column {named[0]}; it also has {', '.join(named[1:])}: rename "
            "the column to use to label",
            stacklevel=4,
        )
    if not named and usual:
        kind = getattr(kinds[usual[0]], "dtype", type(kinds[usual[0]]).__name__)
        warnings.warn(
            f"the column {usual[0]} of {place} is {kind}, not integer class indices: its images are loaded without "
            "labels",
            stacklevel=4,
        )
    return named[0] if named else None


def _hub_labels(column: Sequence[int | None], kept: list[int], name: str) -> Tensor:
    """Return the labels of the images that were ``kept``, (N,)."""
    labels = list(column)
    missing = next((index for index in kept if labels[index] is None), None)
    if missing is not None:
        raise SeparableError(f"row {missing} in {name} has no label: add it, or remove the row")
    return torch.tensor([labels[index] for index in kept], dtype=torch.int64)


def _decode(
    encoded: Sequence[dict[str, Any] | None],
    place: str,
    size: tuple[int, int] | None,
    *,
    skip_broken: bool,
    progress: bool = True,
) -> tuple[list[NDArray[np.uint8]], list[int]]:
    """Return the pixels (H, W) or (H, W, 3) of each image that can be decoded, and the indices of these images."""
    pictures: list[NDArray[np.uint8]] = []
    kept: list[int] = []
    broken: list[str] = []
    pillow = optional("PIL.Image", "train")
    operations = optional("PIL.ImageOps", "train")
    with progress_bar(f"decoding {place}", len(encoded), shown=progress) as advance:
        for index, entry in enumerate(encoded):
            advance()
            name = (entry and entry["path"]) or f"image {index}"
            try:
                if entry is None:
                    raise ValueError("the row has no image")
                with pillow.open(BytesIO(entry["bytes"]) if entry["bytes"] is not None else entry["path"]) as picture:
                    if picture.mode.startswith(("I", "F")):
                        raise ValueError(f"its pixel mode {picture.mode} has more than 8 bits")
                    plain = picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")
            except Exception as error:  # decoders raise OSError, NotImplementedError, struct.error, ...
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
        warnings.warn(f"{len(broken)} broken images of {place} skipped: {_some(broken)}", stacklevel=4)
    return pictures, kept


def _stack(pictures: list[NDArray[np.uint8]], place: str) -> Tensor:
    """Stack images of one size to (N, C, H, W); if any has colour, grey images are expanded to three channels."""
    if not pictures:
        raise SeparableError(f"{place} has no image")
    sizes = {picture.shape[:2] for picture in pictures}
    if len(sizes) > 1:
        shown = _some([f"{height}x{width}" for height, width in sorted(sizes)])
        raise SeparableError(f"images of {place} differ in size ({shown}): give image_size to resize them")
    height, width = next(iter(sizes))
    channels = 3 if any(picture.ndim == 3 for picture in pictures) else 1
    images = torch.empty(len(pictures), channels, height, width, dtype=torch.uint8)
    for image, picture in zip(images, pictures, strict=True):
        pixels = torch.from_numpy(picture.reshape(height, width, -1).copy())
        image.copy_(pixels.permute(2, 0, 1).expand(channels, -1, -1))
    return images


def _cover(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Resize images (N, C, H, W) to cover ``size``, then crop the centre; uint8 stays uint8."""
    if size is None or images.shape[-2:] == size or images.numel() == 0:
        return images
    height, width = images.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    scaled = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    parts = []
    for part in torch.split(images, 1024):
        resized = F.interpolate(part, scaled, mode="bilinear", antialias=True, align_corners=False)
        cropped = resized[..., top : top + size[0], left : left + size[1]]
        # Interpolated values lie between the pixels; rounding may push them slightly outside.
        parts.append(cropped.clamp(part.amin((1, 2, 3), keepdim=True), part.amax((1, 2, 3), keepdim=True)))
    return torch.cat(parts)


def _subfolders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _numbered(labels: Tensor, place: str) -> tuple[str, ...]:
    """Return class names for labels that have no names: their numbers."""
    most = int(labels.max()) if labels.numel() else -1
    if most >= _MOST_CLASSES:
        raise SeparableError(f"a label of {place} is {most:,}: labels must be class indices below {_MOST_CLASSES:,}")
    return tuple(map(str, range(most + 1)))


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
