"""Conversion: from a trained dense network to a depthwise separable one that computes nearly the same function."""

from torch_separable.convert.apply import apply
from torch_separable.convert.calibrate import LayerStatistics, Statistics, calibrate
from torch_separable.convert.conversion import Conversion, Report, convert
from torch_separable.convert.plan import Latency, LayerPlan, Plan
from torch_separable.convert.planner import Budget, plan

__all__ = [
    "Budget",
    "Conversion",
    "Latency",
    "LayerPlan",
    "LayerStatistics",
    "Plan",
    "Report",
    "Statistics",
    "apply",
    "calibrate",
    "convert",
    "plan",
]
