"""The runtime's tests need the kernel library; where the package was built without it they skip, and say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from torch_separable.runtime import available


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if available():
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(
                pytest.mark.skip(reason="this installation has no kernel library: no C++ compiler built it")
            )
