"""What an export came to."""

from __future__ import annotations

import io
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from torch_separable._console.notebook import table

Format = Literal["onnx", "pt2", "executorch"]


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how well it agrees with the network.

    Attributes:
        path: of the file.
        format: ``"onnx"``, ``"pt2"`` or ``"executorch"``.
        bytes: its size.
        input_shape: of one image, (C, H, W).
        batch: images in a batch; ``None`` for any number.
        opset: of ONNX; ``None`` for other formats.
        operators: nodes of its graph by operator; for ExecuTorch, parts that XNNPACK runs, and other operators.
        images: how many the outputs were compared on.
        real: whether they were given, or are noise.
        largest: absolute value among the network's outputs.
        parity: largest difference of an output by runtime.
    """

    path: Path
    format: Format
    bytes: int
    input_shape: tuple[int, ...]
    batch: int | None
    opset: int | None
    operators: dict[str, int]
    images: int
    real: bool
    largest: float
    parity: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "path": str(self.path)}

    def __str__(self) -> str:
        shown = Table(
            box=box.SIMPLE_HEAD, title=str(self.path), title_justify="left", pad_edge=False, show_header=False
        )
        shown.add_column(no_wrap=True)
        shown.add_column()
        for name, words in self._lines():
            shown.add_row(name, words)
        out = io.StringIO()
        width = min(shutil.get_terminal_size((80, 24)).columns, 100)
        Console(file=out, width=width, color_system=None, markup=False, emoji=False, highlight=False).print(shown)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).rstrip()

    def _repr_html_(self) -> str:
        return table((), [("file", str(self.path)), *self._lines()])

    def _lines(self) -> list[tuple[str, str]]:
        what = f"{self.images} images" if self.real else f"{self.images} images of noise"
        agreement = f"of outputs up to {self.largest:.1f} ({what})"
        return [
            ("format", self.format + (f", opset {self.opset}" if self.opset else "")),
            ("input", "x".join(map(str, ("N" if self.batch is None else self.batch, *self.input_shape)))),
            ("size", f"{self.bytes:,} bytes"),
            ("operators", ", ".join(f"{name} {count}" for name, count in self.operators.items())),
            *((runtime, f"differs by {most:.1e} at most, {agreement}") for runtime, most in self.parity.items()),
        ]
