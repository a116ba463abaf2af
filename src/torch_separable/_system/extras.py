"""Optional dependencies, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch_separable.errors import MissingExtraError


def optional(module: str, extra: str) -> Any:
    """Import ``module``, which the package's extra ``extra`` brings.

    Raises:
        MissingExtraError: it is not installed; the message says how to install it.

    Example:
        >>> optional("no_such_package.part", "train")
        Traceback (most recent call last):
        torch_separable.errors.MissingExtraError: no_such_package is not installed: pip install 'torch-separable[train]'
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(f"{package} is not installed: pip install 'torch-separable[{extra}]'") from error
