"""Export to ONNX, PyTorch's ``.pt2`` and ExecuTorch; each file is compared with the network before it is kept."""

from torch_separable.exporting.exporter import SUFFIXES, export
from torch_separable.exporting.fold import fold_batch_norms
from torch_separable.exporting.result import Exported, Format

__all__ = ["SUFFIXES", "Exported", "Format", "export", "fold_batch_norms"]
