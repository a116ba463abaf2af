"""Image data: in-memory data sets, readers for files and the hub, their preparation, and augmentation."""

from torch_separable.data.collect import collect_images
from torch_separable.data.image_data import IMAGENET_MEAN, IMAGENET_STD, ImageData, load_data
from torch_separable.data.preparation import Preparation
from torch_separable.data.splits import find_test_split, split_names

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "ImageData",
    "Preparation",
    "collect_images",
    "find_test_split",
    "load_data",
    "split_names",
]
