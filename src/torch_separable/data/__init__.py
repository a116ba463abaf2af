"""Images with or without labels: in memory, read from files, randomly changed for training."""

from torch_separable.data.image_data import IMAGENET_MEAN, IMAGENET_STD, ImageData, load_data

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "ImageData", "load_data"]
