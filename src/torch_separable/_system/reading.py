"""Iterate over data of the caller's, whose exceptions have no place of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch_separable.errors import SeparableError


def read_each(source: Iterable[Any], what: str) -> Iterator[Any]:
    """Yield the elements of ``source``; an exception that it raises becomes an error that names the element.

    A worker of a ``DataLoader`` raises with its traceback as the message, of which the last line says what happened.

    Args:
        source: what the caller gave, such as a ``DataLoader`` or a generator.
        what: the element's name for the message, in which ``{}`` stands for its index.

    Raises:
        SeparableError: ``source`` raised an exception, which is this error's cause.

    Example:
        >>> def broken():
        ...     yield 1
        ...     raise OSError("disk unplugged")
        >>> list(read_each(broken(), "batch {} of the images"))
        Traceback (most recent call last):
        torch_separable.errors.SeparableError: batch 1 of the images cannot be read: OSError: disk unplugged
    """
    iterator, index = iter(source), 0
    while True:
        try:
            element = next(iterator)
        except StopIteration:
            return
        except SeparableError:
            raise
        except Exception as error:  # a data set may raise anything
            last = (str(error).strip().splitlines() or ["no message"])[-1]
            kind = "" if last.startswith(type(error).__name__) else f"{type(error).__name__}: "
            where = what.replace("{}", str(index))
            raise SeparableError(f"{where} cannot be read: {kind}{last}") from error
        yield element
        index += 1
