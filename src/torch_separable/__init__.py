"""Depthwise separable convolutions for PyTorch: count, explain, convert, distill, compile, export.

import torch_separable as ts

ts.summary(model, (3, 224, 224))                                  # parameters and MACs, layer by layer
ts.explain(nn.Conv2d(4, 8, 3, padding=1, groups=2), (3, 3))       # the arithmetic of one convolution
ts.convert(model, images, budget=ts.Budget(macs=0.5)).model       # a separable network, fitted to the trained weights
ts.distill(student, teacher, data)                                # regain accuracy by distillation
ts.quantize(model, images).model                                  # int8 weights, uint8 activations, without training
ts.compile(model, images)                                         # one native call with fused kernels
ts.frontier(model, images)                                        # accuracy against milliseconds, peers beside it
ts.save(model, "folder"); ts.load("folder")                       # weights and plan; loading executes nothing in it
ts.export(model, "model.onnx", input_shape=(3, 224, 224))         # for another runtime, verified against the network
"""

from torch_separable import importing, models, nn, runtime
from torch_separable._version import __version__
from torch_separable.artifacts.save_load import load, save
from torch_separable.conversion import Budget, Conversion, Plan, Statistics, apply, calibrate, plan
from torch_separable.cost import Summary, analyze, summary
from torch_separable.data import ImageData, load_data
from torch_separable.distillation import distill, evaluate
from torch_separable.errors import MissingExtraError, SeparableError, SeparableValueError
from torch_separable.explanation import Explanation, explain
from torch_separable.exporting import Exported, export
from torch_separable.importing import import_weights
from torch_separable.mixed_precision import MixedConversion, convert
from torch_separable.nn import depthwise_separable_conv
from torch_separable.pareto import Frontier, frontier
from torch_separable.quantization import Quantized, quantize
from torch_separable.runtime import CompiledModel, compile


def __dir__() -> list[str]:
    """List the public names only."""
    return __all__


__all__ = [
    "Budget",
    "CompiledModel",
    "Conversion",
    "Explanation",
    "Exported",
    "Frontier",
    "ImageData",
    "MissingExtraError",
    "MixedConversion",
    "Plan",
    "Quantized",
    "SeparableError",
    "SeparableValueError",
    "Statistics",
    "Summary",
    "__version__",
    "analyze",
    "apply",
    "calibrate",
    "compile",
    "convert",
    "depthwise_separable_conv",
    "distill",
    "evaluate",
    "explain",
    "export",
    "frontier",
    "import_weights",
    "importing",
    "load",
    "load_data",
    "models",
    "nn",
    "plan",
    "quantize",
    "runtime",
    "save",
    "summary",
]
