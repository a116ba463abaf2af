"""Write docs/explorer.html: ``python docs/make_explorer.py``."""

from __future__ import annotations

from pathlib import Path

from torch_separable.explanation.explorer.page import write_explorer

PAGE = Path(__file__).resolve().parent / "explorer.html"


def main() -> None:
    """Write it."""
    write_explorer(PAGE)
    print(f"{PAGE.name}: {PAGE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
