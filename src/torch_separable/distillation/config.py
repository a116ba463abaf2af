"""What decides the course of a distillation: every setting, checked, with a JSON form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from torch_separable.data.augmentation import AUGMENTATIONS
from torch_separable.errors import SeparableValueError

_LEARNING_RATE = {"adamw": 1e-3, "sgd": 0.05}
# Norms that adapt to each batch keep large steps in bounds; without, 0.005 diverges on a converted ResNet-20.
_SGD_WITH_FROZEN_NORMS = 1e-3
_WEIGHT_DECAY = {"adamw": 0.01, "sgd": 5e-4}


@dataclass(frozen=True)
class DistillConfig:
    """The settings of ``distill``; two runs with the same settings, data and networks take the same course.

    Attributes:
        epochs: passes through the images, each in an order of its own; images that fill no last batch are left out.
        batch_size: images that one step of the optimizer sees, over all processes and parts together.
        optimizer: ``adamw`` (arXiv 1711.05101), or ``sgd`` with Nesterov momentum 0.9.
        learning_rate: its largest value; by default 0.001; for ``sgd`` without frozen norms 0.05.
        weight_decay: by default 0.01 for ``adamw``, 0.0005 for ``sgd``; biases and norms are not decayed.
        warmup: share of all steps in which the learning rate rises to its largest value, before it falls as a cosine.
        temperature: by which both networks' logits are divided before they are compared (arXiv 1503.02531).
        logits_weight: weight of the divergence of the student's logits from the teacher's.
        label_weight: weight of the cross-entropy with the labels; above 0 needs labelled data.
        feature_weight: weight of the difference of the two networks' inner features.
        features: names of the modules whose outputs are compared; ``None`` for all that the student has converted.
        augment: what is done to the images, in this order; ``crop``, ``flip``, ``color``, ``erase``, ``mixup``.
        ema_decay: decay of the running mean of the weights that is evaluated and returned; 0 for no mean.
        gradient_accumulation: parts that a batch is computed in, one after the other, to save memory; the steps are the
            same, but for batch norms, which see each part alone.
        mixed_precision: ``bf16`` computes under autocast, for GPUs (on CPUs, depthwise convolutions train far slower in
            it); ``None`` in float32.
        seed: of the order of the images, of the augmentation and of dropout.
        max_steps: steps of the optimizer after which to stop, the learning rate having fallen by then.
        frozen_norms: whether batch norms go on with the statistics that they have. A converted network is fitted to
            them, and starts where conversion left it; statistics of each batch would first take it away from there.
            Over some epochs, though, norms that adapt bear larger steps and lead further: try ``False`` with
            ``learning_rate=0.003``. ``None`` for whenever a teacher is learnt from. Norms that never saw an image
            learn their statistics anyway.
        keep: which weights are returned, of those with validation images: ``best``, or ``last``. Images that the dense
            network was trained on flatter whatever is still near to it, so by them the best is not the best.
        checkpoint_every: steps after which a checkpoint is written, besides the ones after each minute and each epoch.

    Raises:
        SeparableValueError: a setting breaks its rule, which the message names.

    Example:
        >>> config = DistillConfig(optimizer="sgd", epochs=3)
        >>> config.learning_rate, DistillConfig(optimizer="sgd", frozen_norms=False).learning_rate
        (0.001, 0.05)
        >>> DistillConfig.from_dict(config.to_dict()) == config
        True
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = None  # type: ignore[assignment]  # None becomes the optimizer's default
    weight_decay: float = None  # type: ignore[assignment]
    warmup: float = 0.05
    temperature: float = 2.0
    logits_weight: float = 1.0
    label_weight: float = 0.0
    feature_weight: float = 0.0
    features: tuple[str, ...] | None = None
    augment: tuple[str, ...] = ("crop", "flip")
    ema_decay: float = 0.0
    gradient_accumulation: int = 1
    mixed_precision: Literal["bf16"] | None = None
    seed: int = 0
    max_steps: int | None = None
    frozen_norms: bool | None = None
    keep: Literal["best", "last"] = "best"
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        _one_of("optimizer", self.optimizer, tuple(_LEARNING_RATE))
        if self.frozen_norms is None:
            object.__setattr__(self, "frozen_norms", self.needs_teacher)
        _one_of("frozen_norms", self.frozen_norms, (True, False))
        _one_of("keep", self.keep, ("best", "last"))
        _one_of("mixed_precision", self.mixed_precision, (None, "bf16"))
        steps_in_bounds = self.optimizer != "sgd" or not self.frozen_norms
        rate = _LEARNING_RATE[self.optimizer] if steps_in_bounds else _SGD_WITH_FROZEN_NORMS
        for name, default in (("learning_rate", rate), ("weight_decay", _WEIGHT_DECAY[self.optimizer])):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        for name in ("augment", "features"):
            names = getattr(self, name)
            if isinstance(names, str):
                raise SeparableValueError(f"{name}={names!r}: give a tuple of names, ({names!r},)")
            if names is not None or name == "augment":
                if not isinstance(names, list | tuple) or not all(isinstance(part, str) for part in names):
                    raise SeparableValueError(f"{name}={names!r}: must be a tuple of names")
                object.__setattr__(self, name, tuple(names))
        for name in self.augment:
            _one_of("augment", name, AUGMENTATIONS)
        if len(set(self.augment)) < len(self.augment):
            raise SeparableValueError(f"augment={self.augment} names one twice")
        for name in ("epochs", "batch_size", "gradient_accumulation", "checkpoint_every"):
            _whole(name, getattr(self, name), 1)
        _whole("seed", self.seed, 0)
        if self.max_steps is not None:
            _whole("max_steps", self.max_steps, 1)
        for name in ("learning_rate", "temperature"):
            _number(name, getattr(self, name), above=0)
        for name in ("weight_decay", "logits_weight", "label_weight", "feature_weight"):
            _number(name, getattr(self, name), least=0)
        for name in ("warmup", "ema_decay"):
            _number(name, getattr(self, name), least=0, below=1)
        if self.logits_weight == self.label_weight == self.feature_weight == 0:
            raise SeparableValueError(
                "logits_weight, label_weight and feature_weight are all 0: nothing would be learnt"
            )
        if self.feature_weight and self.features == ():
            raise SeparableValueError(
                f"features=() names no module, and feature_weight is {self.feature_weight:g}: name some, or give None "
                "for all that the student has converted"
            )
        if self.gradient_accumulation > self.batch_size:
            raise SeparableValueError(
                f"gradient_accumulation={self.gradient_accumulation} parts of batch_size={self.batch_size} images: "
                "each part needs at least one image"
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings by name, of types that JSON has."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def needs_teacher(self) -> bool:
        """Whether anything is learnt from the teacher; otherwise from the labels alone."""
        return self.logits_weight > 0 or self.feature_weight > 0

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> DistillConfig:
        """The settings in a mapping such as ``to_dict`` gives; those left out take their defaults.

        Raises:
            SeparableValueError: a name is not a setting, or a setting breaks its rule.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise SeparableValueError(f"{unknown[0]!r} is not a setting of distill: it has {', '.join(sorted(known))}")
        return cls(**settings)


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise SeparableValueError(f"{name}={value!r}: must be one of {', '.join(map(repr, allowed))}")


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SeparableValueError(f"{name}={value!r}: must be a whole number of at least {least}")


def _number(
    name: str, value: object, *, least: float = -math.inf, above: float = -math.inf, below: float = math.inf
) -> None:
    sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not sound or not (least <= value and above < value < below):  # type: ignore[operator]
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (("at least", least), ("above", above), ("below", below))
            if math.isfinite(bound)
        ]
        raise SeparableValueError(f"{name}={value!r}: must be a number {' and '.join(bounds)}")
