"""Explain one convolution: worked arithmetic, alternatives and a figure."""

from torch_separable.explanation.explanation import Explanation, explain

__all__ = ["Explanation", "explain"]
