"""Text that is safe to print in a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """Escape control characters, which a terminal would execute; line breaks stay.

    Example:
        >>> printable("a\\x1b[31mb")
        'a\\\\x1b[31mb'
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
