"""The processor's name and cache sizes, on which measurements and tuned settings depend."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_DEFAULT_CACHE_BYTES = {2: 512 * 1024, 3: 16 * 2**20}


@cache
def processor() -> str:
    """Return the processor's name with family and model, because some generations share a name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    if "model name" not in said:
        return platform.processor() or "unknown"
    known = "cpu family" in said and "model" in said
    return said["model name"] + (f" (family {said['cpu family']}, model {said['model']})" if known else "")


@cache
def cache_bytes(level: int) -> int:
    """Return the size of the level-2 or level-3 cache in bytes; a common size where the system does not report it."""
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind, at = ((index / name).read_text().strip() for name in ("type", "level"))
            size = (index / "size").read_text().strip()
        except OSError:
            continue
        if at == str(level) and kind != "Instruction" and size[:-1].isdecimal() and size[-1] in "KM":
            return int(size[:-1]) * (1024 if size[-1] == "K" else 2**20)
    return _DEFAULT_CACHE_BYTES[level]
