"""Depthwise separable convolution made practical: count, explain, convert, recover.

import torch_separable as ts

ts.summary(model, (3, 224, 224))                                  # what it costs, layer by layer
ts.explain(nn.Conv2d(4, 8, 3, padding=1, groups=2), (3, 3))       # the arithmetic of one convolution
ts.convert(model, images, budget=ts.Budget(macs=0.5)).model       # depthwise separable, weights kept
ts.recover(student, teacher, data)                                # the rest of the accuracy, by distillation
"""

from torch_separable import models, nn
from torch_separable._version import __version__
from torch_separable.convert import Budget, Conversion, Plan, Statistics, apply, calibrate, convert, plan
from torch_separable.cost import Summary, analyze, summary
from torch_separable.errors import MissingExtraError, SeparableError, SeparableValueError
from torch_separable.explain import Explanation, explain
from torch_separable.nn import depthwise_separable_conv
from torch_separable.recover import ImageData, evaluate, load_data, recover

__all__ = [
    "Budget",
    "Conversion",
    "Explanation",
    "ImageData",
    "MissingExtraError",
    "Plan",
    "SeparableError",
    "SeparableValueError",
    "Statistics",
    "Summary",
    "__version__",
    "analyze",
    "apply",
    "calibrate",
    "convert",
    "depthwise_separable_conv",
    "evaluate",
    "explain",
    "load_data",
    "models",
    "nn",
    "plan",
    "recover",
    "summary",
]
