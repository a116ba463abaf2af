"""Winning the accuracy back: data, evaluation, and distillation from the dense network."""

from torch_separable.distillation.config import RecoverConfig
from torch_separable.data.image_data import IMAGENET_MEAN, IMAGENET_STD, ImageData, load_data
from torch_separable.distillation.distillation import recover
from torch_separable.distillation.evaluation import Evaluation, evaluate
from torch_separable.distillation.run import EpochRecord

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
