"""The settings of a distillation, with validation and a JSON form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from torch_separable.data.augmentation import AUGMENTATIONS
from torch_separable.errors import SeparableValueError

_LEARNING_RATE = {"adamw": 1e-3, "sgd": 0.05}
# Batch norms that use batch statistics tolerate large steps. With frozen statistics, 0.005 diverges on a converted
# ResNet-20.
_SGD_WITH_FROZEN_NORMS = 1e-3
_WEIGHT_DECAY = {"adamw": 0.01, "sgd": 5e-4}


@dataclass(frozen=True)
class DistillConfig:
    """The settings of ``distill``. Runs with equal settings, data and networks give equal weights.

    Attributes:
        epochs: passes through the images, each in a new random order; an incomplete last batch is dropped.
        batch_size: images in one optimizer step, summed over all processes and gradient accumulation steps.
        optimizer: ``adamw`` (arXiv 1711.05101), or ``sgd`` with Nesterov momentum 0.9.
        learning_rate: peak learning rate; 0.001 by default, 0.05 for ``sgd`` without frozen norms.
        weight_decay: 0.01 by default for ``adamw``, 0.0005 for ``sgd``; not applied to biases and norms.
        warmup: share of all steps with a linear warmup to the peak learning rate, before the cosine decay.
        temperature: divisor of both networks' logits before they are compared (arXiv 1503.02531).
        logits_weight: weight of the divergence between the student's logits and the teacher's.
        label_weight: weight of the cross-entropy with the labels; a value above 0 needs labelled data.
        feature_weight: weight of the distance between intermediate features of both networks.
        features: names of the modules whose outputs are compared; ``None`` for all converted modules.
        augment: augmentations in order: ``crop``, ``flip``, ``color``, ``erase``, ``mixup``.
        ema_decay: decay of the exponential moving average of the weights, which is then evaluated and returned; 0
            disables it.
        gradient_accumulation: number of micro-batches that a batch is split into to save memory. The gradients are the
            same, except through batch norms with batch statistics, which see one micro-batch at a time.
        mixed_precision: ``bf16`` trains under autocast and is meant for GPUs (depthwise convolutions train far slower
            in bfloat16 on CPUs); ``None`` trains in float32.
        seed: random seed for the order of the images, augmentation and dropout.
        max_steps: optimizer steps after which training stops; the learning rate schedule ends there, too.
        frozen_norms: whether batch norms keep their running statistics. Conversion fits a network to these statistics,
            so keeping them preserves its accuracy at the start. Over several epochs batch statistics allow larger
            steps and can reach a higher accuracy: try ``False`` with ``learning_rate=0.003``. ``None`` freezes them if
            there is a teacher. Norms that never saw an image always learn their statistics.
        keep: which weights to return if there are validation images: ``best`` or ``last``. Images from the training
            set favour the epoch closest to the teacher, so they cannot select the best one.
        checkpoint_every: steps between checkpoints; one is also written every minute and after every epoch.

    Raises:
        SeparableValueError: a setting is invalid; the message names it.

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
            raise SeparableValueError(f"augment={self.augment}: each augmentation may be named once")
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
                "logits_weight, label_weight and feature_weight are all 0: the loss would be constant. Give one above 0"
            )
        if self.feature_weight and self.features == ():
            raise SeparableValueError(
                f"features=() names no module, and feature_weight is {self.feature_weight:g}: name modules, or give "
                "None for all converted ones"
            )
        if self.gradient_accumulation > self.batch_size:
            raise SeparableValueError(
                f"gradient_accumulation={self.gradient_accumulation} is above batch_size={self.batch_size}: each "
                "micro-batch needs at least one image"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by name, as JSON types."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss depends on a teacher; otherwise it depends on the labels only."""
        return self.logits_weight > 0 or self.feature_weight > 0

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> DistillConfig:
        """Create settings from a mapping as returned by ``to_dict``; missing settings take their defaults.

        Raises:
            SeparableValueError: a name is not a setting, or a setting is invalid.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise SeparableValueError(f"{unknown[0]!r} is not a setting of distill: use {', '.join(sorted(known))}")
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
