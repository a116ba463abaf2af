"""What the explorer's browser tests share: its state, its texts, and the layers that they show."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")
from playwright.sync_api import Locator, Page

from torch_separable.explanation.explorer import page as explorer_module
from torch_separable.explanation.explorer.state import ExplorerState, Kind

KINDS = get_args(Kind)
LATE = "#in=512&out=512&input=14&groups=32&depth_multiplier=2"
FOLDER = Path(explorer_module.__file__).parent / "templates" / "explorer"
WORDS: dict[str, str] = json.loads((FOLDER / "words.json").read_text(encoding="utf-8"))["en"]


def state(page: Page) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate("separableExplorer.state()")
    return found


def texts(locator: Locator) -> list[str]:
    return [re.sub(r"\s+", " ", text).strip() for text in locator.all_inner_texts()]


FIELDS = {
    "in": ("12", 12, 13, 24),
    "out": ("20", 20, 21, 40),
    "kernel": ("3×5", [3, 5], [4, 6], [6, 10]),
    "input": ("9x14", [9, 14], [10, 15], [18, 28]),
    "stride": ("2", [2, 2], [3, 3], [4, 4]),
    "padding": ("2, 1", [2, 1], [3, 2], [4, 2]),
    "dilation": ("2", [2, 2], [3, 3], [4, 4]),
    "depth_multiplier": ("3", 3, 4, 6),
}


WALKS = [
    *(ExplorerState(show=show) for show in KINDS),
    ExplorerState(6, 4, (3, 2), (7, 6), (2, 1), (2, 0), (1, 2), show="grouped"),
    ExplorerState(12, 18, (2, 3), (6, 7), (2, 2), (1, 1), depth_multiplier=2, show="depthwise_first"),
    ExplorerState(12, 9, (3, 3), (8, 8), (2, 2), depth_multiplier=2, show="pointwise_first"),
]


def numbers(lines: list[str]) -> list[str]:
    return sorted(re.findall(r"\d[\d,.]*", " ".join(lines)))


def labels(page: Page) -> list[str]:
    found: list[str] = page.locator("#figure text").all_text_contents()
    return found
