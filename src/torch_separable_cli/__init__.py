"""The entry point of ``separable``, outside the package because importing the package imports PyTorch (two seconds).

An interrupt during that import ends in one line instead of a traceback, like an interrupt later on.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from torch_separable.cli.main import main as run
    except KeyboardInterrupt:
        print("separable: interrupted before the command started", file=sys.stderr)
        raise SystemExit(130) from None
    run()
