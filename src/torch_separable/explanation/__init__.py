"""The worked arithmetic and the figure of one convolution."""

from torch_separable.explanation.explanation import Explanation, explain

__all__ = ["Explanation", "explain"]
