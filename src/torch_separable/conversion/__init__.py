"""Conversion: from a trained dense network to a depthwise separable one that computes nearly the same function."""

from torch_separable.conversion.apply_plan import apply
from torch_separable.conversion.calibration.calibrate import LayerStatistics, Statistics, calibrate
from torch_separable.conversion.conversion import Conversion, Report, convert
from torch_separable.conversion.planning.plan import Latency, LayerPlan, Plan
from torch_separable.conversion.planning.planner import Budget, plan

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
