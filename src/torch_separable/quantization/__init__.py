"""int8 networks from trained float ones: ranges, equalization, weight rounding, and the quantized module."""

from torch_separable.quantization.module import QuantizedNetwork
from torch_separable.quantization.quantization import LayerReport, QuantizationReport, Quantized, quantize

__all__ = ["LayerReport", "QuantizationReport", "Quantized", "QuantizedNetwork", "quantize"]
