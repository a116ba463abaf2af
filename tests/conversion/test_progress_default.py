"""The Python calls show progress by default."""

from __future__ import annotations

import inspect

import pytest

import torch_separable as ts


@pytest.mark.parametrize("function", [ts.calibrate, ts.plan, ts.apply, ts.convert, ts.distill, ts.evaluate])
def test_progress_is_shown_by_default(function: object) -> None:
    assert callable(function)
    assert inspect.signature(function).parameters["progress"].default is True
