"""Rank and precision in one plan: what each layer costs and loses in every form and precision, and `convert`."""

from torch_separable.mixed_precision.composition import MixedConversion, convert

__all__ = ["MixedConversion", "convert"]
