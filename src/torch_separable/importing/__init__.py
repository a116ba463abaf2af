"""Import weights from other packages, which name the same layers differently, and layers from Keras."""

from torch_separable.importing.keras import from_keras
from torch_separable.importing.layouts import LAYOUTS, Layout
from torch_separable.importing.load import import_weights
from torch_separable.importing.report import ImportReport

__all__ = ["LAYOUTS", "ImportReport", "Layout", "from_keras", "import_weights"]
