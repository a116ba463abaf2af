"""The entry point of ``separable``: outside of the package, because importing that takes PyTorch's two seconds.

An interrupt in them ends as one at any other moment does, in a line and not in a traceback.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from torch_separable.cli.main import main as run
    except KeyboardInterrupt:
        print("separable: interrupted before anything was begun", file=sys.stderr)
        raise SystemExit(130) from None
    run()
