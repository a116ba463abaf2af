"""The library reads from CPUID what Linux reads."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from torch_separable.runtime.native.instruction_sets import cpu_has

CPUINFO = Path("/proc/cpuinfo")
FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")


@pytest.mark.skipif(platform.machine() != "x86_64" or not CPUINFO.is_file(), reason="neither x86-64 nor Linux")
@pytest.mark.parametrize("feature", FEATURES)
def test_features_are_those_that_linux_reports(feature: str) -> None:
    flags = next(line for line in CPUINFO.read_text().splitlines() if line.startswith("flags")).split()
    assert cpu_has(feature) == (feature in flags)


def test_unknown_features_are_absent() -> None:
    assert not cpu_has("avx1024")
