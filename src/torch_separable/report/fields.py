"""Typed access to documents that may be damaged: a value has the expected type, or an error names it."""

from __future__ import annotations

import math
from typing import Any

from torch_separable.errors import SeparableError

Pair = tuple[float, float]


def entries(holder: Any, key: str, where: str) -> list[Any]:
    """Return the list ``holder[key]``."""
    value = _value(holder, key, where)
    if not isinstance(value, list):
        raise SeparableError(f"{where}.{key} is not a list")
    return value


def text(holder: Any, key: str, where: str) -> str:
    """Return the string ``holder[key]``."""
    value = _value(holder, key, where)
    if not isinstance(value, str):
        raise SeparableError(f"{where}.{key} is {value!r:.40}, not a string")
    return value


def number(holder: Any, key: str, where: str) -> float:
    """Return the finite number ``holder[key]``; integers stay integers."""
    return _number(_value(holder, key, where), f"{where}.{key}")


def optional_number(holder: Any, key: str, where: str) -> float | None:
    """Return the number or ``None`` in ``holder[key]``."""
    return None if _value(holder, key, where) is None else number(holder, key, where)


def count(holder: Any, key: str, where: str) -> int:
    """Return the integer ``holder[key]``, at least 0."""
    value = _value(holder, key, where)
    if type(value) is not int or value < 0:
        raise SeparableError(f"{where}.{key} is {value!r:.40}, not a count")
    return value


def pair(holder: Any, key: str, where: str) -> Pair:
    """Return the two non-negative numbers ``holder[key]``, before and after."""
    value = _value(holder, key, where)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise SeparableError(f"{where}.{key} is {value!r:.40}, not two numbers")
    before, after = (_number(part, f"{where}.{key}") for part in value)
    if min(before, after) < 0:
        raise SeparableError(f"{where}.{key} is {value!r:.40}: neither may be negative")
    return before, after


def _value(holder: Any, key: str, where: str) -> Any:
    if not isinstance(holder, dict):
        raise SeparableError(f"{where} is {holder!r:.40}, not a JSON object")
    if key not in holder:
        raise SeparableError(f"{where} lacks {key}")
    return holder[key]


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SeparableError(f"{where} is {value!r:.40}, not a number")
    return value
