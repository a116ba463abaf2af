"""Export to ONNX, PyTorch's ``.pt2``, ExecuTorch and compiled files; each file is compared before it is kept."""

from torch_separable.exporting.exporter import SUFFIXES, export
from torch_separable.exporting.fold import fold_batch_norms
from torch_separable.exporting.result import Exported, Format
from torch_separable.exporting.to_native import NativeOptions

__all__ = ["SUFFIXES", "Exported", "Format", "NativeOptions", "export", "fold_batch_norms"]
