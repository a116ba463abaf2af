"""The page about the kernels: its code runs and prints what it says, and it knows every file that it speaks of."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from torch_separable.runtime import available

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "kernels.md"


@pytest.mark.skipif(not available(), reason="this installation has no kernel library: no C++ compiler built it")
def test_the_code_runs_and_prints_what_the_page_says() -> None:
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    test = doctest.DocTestParser().get_doctest(code, {}, PAGE.name, str(PAGE), 0)
    complaints: list[str] = []
    result = doctest.DocTestRunner().run(test, out=complaints.append)
    assert result.attempted > 10
    assert result.failed == 0, "".join(complaints)


def test_the_sources_that_it_names_exist() -> None:
    named = set(re.findall(r"`((?:native|runtime)/[\w/]+\.\w+)`", PAGE.read_text(encoding="utf-8")))
    assert len(named) >= 6
    homes = (ROOT, ROOT / "src" / "torch_separable")
    assert [name for name in named if not any((home / name).is_file() for home in homes)] == []


def test_the_sizes_that_it_gives_are_those_of_the_sources() -> None:
    text, gemm = PAGE.read_text(encoding="utf-8"), (ROOT / "native" / "CMakeLists.txt").read_text(encoding="utf-8")
    sets = {name: (lanes, rows) for name, lanes, rows in re.findall(r"instruction_set\((\w+) (\d+) (\d+)", gemm)}
    assert sets["avx2"] == ("8", "6")
    assert sets["avx512"] == ("16", "14")
    assert "6 pixels × 2 vectors are 12 of AVX2's 16 registers, 14 × 2 are 28 of AVX-512's 32" in text
    depthwise = (ROOT / "native" / "kernels" / "depthwise.h").read_text(encoding="utf-8")
    assert "constexpr int kPixels = 7;" in depthwise
    assert "takes 7 neighbouring pixels" in text

    from torch_separable.runtime.planning import tiling

    assert f"{tiling._DEPTH_FIRST_BYTES // 1024} KB of patches" in text
