"""Keep the messages of third-party libraries off the screen."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress Python warnings, log records and everything that is written to file descriptor 2.

    Native libraries write to the descriptor, which ``contextlib.redirect_stderr`` does not reach. Exceptions are not
    affected.
    """
    sys.stderr.flush()
    previous, level = os.dup(2), logging.root.manager.disable
    with tempfile.TemporaryFile() as sink, warnings.catch_warnings(action="ignore"):
        logging.disable(logging.CRITICAL)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(previous, 2)
            os.close(previous)
            logging.disable(level)
