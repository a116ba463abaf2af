"""The processor that figures and tuned settings depend on."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_USUAL = {2: 512 * 1024, 3: 16 * 2**20}


@cache
def processor() -> str:
    """Return the processor's name, as the system says it, with its family and model: some generations share a name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    if "model name" not in said:
        return platform.processor() or "unknown"
    known = "cpu family" in said and "model" in said
    return said["model name"] + (f" (family {said['cpu family']}, model {said['model']})" if known else "")


@cache
def cache_bytes(level: int) -> int:
    """Return the bytes of the processor's cache of a level (2 or 3), as the system says; else what is usual."""
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind, at = ((index / name).read_text().strip() for name in ("type", "level"))
            size = (index / "size").read_text().strip()
        except OSError:
            continue
        if at == str(level) and kind != "Instruction" and size[:-1].isdecimal() and size[-1] in "KM":
            return int(size[:-1]) * (1024 if size[-1] == "K" else 2**20)
    return _USUAL[level]
