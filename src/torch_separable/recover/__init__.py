"""Winning the accuracy back: data, evaluation, and distillation from the dense network."""

from torch_separable.recover.config import RecoverConfig
from torch_separable.data.image_data import IMAGENET_MEAN, IMAGENET_STD, ImageData, load_data
from torch_separable.recover.distill import recover
from torch_separable.recover.evaluate import Evaluation, evaluate
from torch_separable.recover.run import EpochRecord

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "EpochRecord",
    "Evaluation",
    "ImageData",
    "RecoverConfig",
    "evaluate",
    "load_data",
    "recover",
]
