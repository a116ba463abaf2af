"""What became of each tensor when weights were imported."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ImportReport:
    """Which tensors found their places, key by key.

    Attributes:
        layout: whose names the source uses; "own" for those of the network itself.
        matched: tensors of the network that were found, by our names.
        missing: tensors of the network that the source lacks, by our names.
        unexpected: tensors of the source that the network has no place for, by its names.
        reshaped: tensors of another shape: our name, the source's shape, the network's.
        differing: conventions in which the network and the source differ, by name: the network's value, the source's.

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

    @property
    def complete(self) -> bool:
        """Whether the network has all of its weights, of its own kind, and nothing was left over."""
        return not (self.missing or self.unexpected or self.reshaped or self.differing)

    def __str__(self) -> str:
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.reshaped}
        counts = [
            f"{len(self.matched)} tensors matched",
            *(f"{len(names)} {kind}" for kind, names in kinds.items() if names),
        ]
        lines = [f"{self.layout}: {', '.join(counts)}"]
        lines += [f"  missing     {name}" for name in self.missing]
        lines += [f"  unexpected  {name}" for name in self.unexpected]
        lines += [f"  shape       {name}: {given}, the network has {ours}" for name, given, ours in self.reshaped]
        lines += [
            f"  convention  {name}: {theirs!r}, the network has {ours!r}" for name, ours, theirs in self.differing
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The report by name, for JSON."""
        return {**asdict(self), "complete": self.complete}
