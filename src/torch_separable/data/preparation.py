"""The preparation of a network's input images: size, crop, channels, normalisation and class names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch_separable.data.image_data import ImageData
from torch_separable.errors import SeparableError, SeparableValueError

_CHANNELS = {1: "grey", 3: "RGB"}


@dataclass(frozen=True)
class Preparation:
    """How images are prepared for a network; a saved network keeps it with its weights.

    Attributes:
        image_size: (height, width) that images are resized and centre-cropped to.
        channels: number of channels; three are in the order red, green, blue.
        mean: value subtracted from each channel of images in 0..1; empty for none.
        std: value that each channel is then divided by; empty for none.
        classes: names of the classes, in the order of the logits; empty if unknown.

    Example:
        >>> import torch
        >>> data = ImageData("made", "train", torch.rand(4, 3, 8, 8), mean=(0.5, 0.5, 0.5))
        >>> Preparation.of(data).to_dict()["mean"]
        [0.5, 0.5, 0.5]
        >>> Preparation.from_dict(Preparation.of(data).to_dict(), "a folder") == Preparation.of(data)
        True
    """

    image_size: tuple[int, int]
    channels: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, data: ImageData) -> Preparation:
        """Return the preparation of ``data``."""
        channels, height, width = data.image_shape
        return cls((height, width), channels, data.mean, data.std, data.classes)

    def to_dict(self) -> dict[str, Any]:
        """Return the preparation as JSON types."""
        return {
            "image_size": list(self.image_size),
            "crop": "center",
            "channels": self.channels,
            "channel_order": _CHANNELS.get(self.channels),
            "mean": list(self.mean),
            "std": list(self.std),
            "classes": list(self.classes),
        }

    @classmethod
    def from_dict(cls, document: Any, where: str) -> Preparation:
        """Read what `to_dict` returned.

        Raises:
            SeparableError: a value is missing or invalid; the message names it and ``where``.
        """
        if not isinstance(document, dict):
            raise SeparableError(f"{where}: preparation is {document!r:.40}, not a JSON object")

        def invalid(name: str) -> SeparableError:
            return SeparableError(f"{where}: preparation.{name} is {document.get(name)!r:.40}: correct or remove it")

        size: Any = document.get("image_size")
        channels = document.get("channels")
        if not _all(size, int) or len(size) != 2 or min(size) < 1:
            raise invalid("image_size")
        if type(channels) is not int or channels < 1:
            raise invalid("channels")
        if document.get("crop", "center") != "center":
            raise invalid("crop")
        if document.get("channel_order") not in (None, _CHANNELS.get(channels)):
            raise invalid("channel_order")
        values: dict[str, tuple[float, ...]] = {}
        for name in ("mean", "std"):
            given = document.get(name, [])
            if not _all(given, int, float) or not all(map(math.isfinite, given)) or len(given) not in (0, channels):
                raise invalid(name)
            values[name] = tuple(map(float, given))
        classes = document.get("classes", [])
        if not _all(classes, str):
            raise invalid("classes")
        return cls((size[0], size[1]), channels, values["mean"], values["std"], tuple(classes))

    def settings(
        self,
        where: str,
        *,
        image_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> dict[str, Any]:
        """Return the arguments of `load_data` that prepare images in this way.

        Args:
            where: the folder that the preparation was read from, for messages.
            image_size: a size given in addition to the folder.
            mean: a mean given in addition to the folder.
            std: a standard deviation given in addition to the folder.

        Raises:
            SeparableValueError: a given value contradicts the preparation.
        """
        size = None if image_size is None else (image_size, image_size)
        for name, given, own in (
            ("image_size", size, self.image_size),
            ("mean", mean, self.mean),
            ("std", std, self.std),
        ):
            if given is not None and tuple(given) != own:
                option = "--" + name.replace("_", "-")
                raise SeparableValueError(
                    f"{option} {_text(given)} contradicts {where}, whose network takes images prepared with {name} "
                    f"{_text(own)}: omit {option}"
                )
        return {"image_size": self.image_size, "mean": self.mean, "std": self.std}

    def check(self, data: ImageData, where: str) -> None:
        """Raise unless the channels and the class names of ``data`` are those of the network.

        Raises:
            SeparableError: they differ; the message names the first difference.
        """
        if data.image_shape[0] != self.channels:
            raise SeparableError(
                f"images of {data.name} have {data.image_shape[0]} channels, but the network of {where} takes "
                f"{self.channels}"
            )
        if not data.labelled or not self.classes or data.classes == self.classes:
            return
        if _numbers_only(data.classes) or _numbers_only(self.classes):  # the data have no names to compare
            return
        for index in range(max(len(data.classes), len(self.classes))):
            ours, theirs = (names[index : index + 1] for names in (data.classes, self.classes))
            if ours != theirs:
                raise SeparableError(
                    f"class {index} of {data.name} is {_name(ours)}, but {_name(theirs)} in {where}: the labels must "
                    "have the classes of the network in the same order"
                )


def _all(values: Any, *types: type) -> bool:
    return isinstance(values, list) and all(type(value) in types for value in values)


def _text(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values) or "(none)"


def _name(found: tuple[str, ...]) -> str:
    return repr(found[0]) if found else "absent"


def _numbers_only(classes: tuple[str, ...]) -> bool:
    return all(name == str(index) for index, name in enumerate(classes))
