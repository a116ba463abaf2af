"""The result of an export."""

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

Format = Literal["onnx", "pt2", "executorch", "native"]


@dataclass(frozen=True)
class Exported:
    """An exported file, and how closely its outputs agree with the network's.

    Attributes:
        path: path of the file.
        format: ``"onnx"``, ``"pt2"``, ``"executorch"`` or ``"native"``.
        bytes: size of the file.
        input_shape: shape of one image, (C, H, W).
        batch: batch size, or several in a native file; ``None`` if it is dynamic.
        opset: version of ONNX operators; ``None`` for other formats.
        operators: number of graph nodes by operator; for ExecuTorch, the number of XNNPACK delegates and of other
            operators.
        images: number of images that the outputs were compared on.
        real: whether the caller gave these images; otherwise they are noise.
        largest: largest absolute value of the network's outputs.
        parity: largest absolute difference of the outputs, by runtime.
        outputs: names of the outputs, in the order in which the file returns them.
    """

    path: Path
    format: Format
    bytes: int
    input_shape: tuple[int, ...]
    batch: int | tuple[int, ...] | None
    opset: int | None
    operators: dict[str, int]
    images: int
    real: bool
    largest: float
    parity: dict[str, float]
    outputs: tuple[str, ...] = ("logits",)

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
        batch = "N" if self.batch is None else str(self.batch)
        if isinstance(self.batch, tuple):
            batch = f"({'|'.join(map(str, self.batch))})"
        agreement = f"for outputs up to {self.largest:.1f} ({what})"
        return [
            ("format", self.format + (f", opset {self.opset}" if self.opset else "")),
            ("input", "x".join(map(str, (batch, *self.input_shape)))),
            *([("outputs", ", ".join(self.outputs))] if len(self.outputs) > 1 else []),
            ("size", f"{self.bytes:,} bytes"),
            ("operators", ", ".join(f"{name} {count}" for name, count in self.operators.items())),
            *((runtime, f"differs by at most {most:.1e} {agreement}") for runtime, most in self.parity.items()),
        ]
