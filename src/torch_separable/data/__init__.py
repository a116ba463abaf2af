"""Image data: in-memory data sets, readers for files and the hub, and augmentation."""

from torch_separable.data.image_data import IMAGENET_MEAN, IMAGENET_STD, ImageData, load_data

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "ImageData", "load_data"]
