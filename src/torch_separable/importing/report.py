"""The report of an import of weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ImportReport:
    """Which tensors were loaded, missing, unexpected or of another shape.

    Attributes:
        layout: the `Layout` of the source's names; "own" for the network's own names.
        matched: tensors of the network that the source has, by the network's names.
        missing: tensors of the network that the source lacks, by the network's names.
        unexpected: tensors that only the source has, by the source's names.
        reshaped: tensors of another shape: the network's name, the source's shape, the network's shape.
        differing: conventions that differ: name, the network's value, the source's value.
        selection: which of several sets of weights was loaded, and the prefix that was removed; empty if there was
            neither.

    Example:
        >>> print(ImportReport("timm mobilenetv1", ("stem.0.weight",), (), ("aux.bias",)))
        timm mobilenetv1: 1 tensors matched, 1 unexpected
          unexpected  aux.bias
    """

    layout: str
    matched: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[tuple[str, Shape, Shape], ...] = ()
    differing: tuple[tuple[str, Any, Any], ...] = ()
    selection: str = ""

    @property
    def complete(self) -> bool:
        """Whether every tensor of the network was loaded, nothing was left over, and no convention differs."""
        return not (self.missing or self.unexpected or self.reshaped or self.differing)

    def __str__(self) -> str:
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.reshaped}
        counts = [
            f"{len(self.matched)} tensors matched",
            *(f"{len(names)} {kind}" for kind, names in kinds.items() if names),
        ]
        lines = [f"{self.layout}: {', '.join(counts)}"]
        lines += [f"  selection   {self.selection}"] if self.selection else []
        lines += [f"  missing     {name}" for name in self.missing]
        lines += [f"  unexpected  {name}" for name in self.unexpected]
        lines += [f"  shape       {name}: {given}, the network has {ours}" for name, given, ours in self.reshaped]
        lines += [
            f"  convention  {name}: {theirs!r}, the network has {ours!r}" for name, ours, theirs in self.differing
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {**asdict(self), "complete": self.complete}
