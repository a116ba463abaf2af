"""The package's exceptions: one base class, and a subclass only where a caller would branch."""

from __future__ import annotations


class SeparableError(Exception):
    """Something that the caller gave cannot be used; the message names the thing, the place and the remedy.

    The command line prints it as one line and exits with code 2.
    """


class SeparableValueError(SeparableError, ValueError):
    """An argument has a value that its rule forbids; also a ``ValueError``, as ``torch.nn`` raises."""


class MissingExtraError(SeparableError, ImportError):
    """A feature needs an optional dependency; the message says which extra to install."""
