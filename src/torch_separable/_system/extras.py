"""Optional dependencies, imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch_separable.errors import MissingExtraError


def optional(module: str, extra: str) -> Any:
    """Import ``module``, which belongs to the package's optional extra ``extra``.

    Raises:
        MissingExtraError: it is not installed; the message gives the command that installs it.

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
