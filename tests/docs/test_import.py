"""The guide to weights from elsewhere: its code runs, and its table names what the package knows."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

from torch_separable.importing import LAYOUTS
from torch_separable.models import NETWORKS

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "import.md"


def test_the_code_runs_and_prints_what_the_guide_says() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    test = doctest.DocTestParser().get_doctest(code, {}, GUIDE.name, str(GUIDE), 0)
    complaints: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.DocTestRunner(optionflags=flags).run(test, out=complaints.append)
    assert result.attempted >= 10
    assert result.failed == 0, "".join(complaints)


def test_the_table_names_every_layout() -> None:
    table = GUIDE.read_text(encoding="utf-8").partition("```")[0]
    for layout in LAYOUTS.values():
        package, _, network = layout.name.partition(" ")
        assert package in table
        assert network in table
    for name in re.findall(r"`((?:mobilenet|efficientnet|resnet)\w+\d)`", table):
        assert name in NETWORKS
