"""Conversion: from a trained dense network to a depthwise separable one that computes nearly the same function."""

from torch_separable.conversion.apply_plan import apply
from torch_separable.conversion.calibration.calibrate import calibrate
from torch_separable.conversion.calibration.statistics import LayerStatistics, Statistics
from torch_separable.conversion.conversion import Conversion, Report, convert
from torch_separable.conversion.planning.budget import Budget
from torch_separable.conversion.planning.plan import Latency, LayerPlan, Plan
from torch_separable.conversion.planning.planner import plan
from torch_separable.conversion.reduction import Reduction

__all__ = [
    "Budget",
    "Conversion",
    "Latency",
    "LayerPlan",
    "LayerStatistics",
    "Plan",
    "Reduction",
    "Report",
    "Statistics",
    "apply",
    "calibrate",
    "convert",
    "plan",
]
