"""The frontier of accuracy against milliseconds: a network in every form, precision and engine, measured together."""

from torch_separable.pareto.measuring import frontier
from torch_separable.pareto.points import Frontier, Point

__all__ = ["Frontier", "Point", "frontier"]
