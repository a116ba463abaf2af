"""The bytes of a network file: a header, a table of sections, and the sections (docs/native-format.md)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

MAGIC = b"\x89TSN\r\n\x1a\n"
MAJOR, MINOR = 1, 0
ALIGNMENT = 64  # bytes: sections and weights begin at cache lines, so that they are used where they are mapped
_BYTE_ORDER = 0x01020304
_MODULUS = 2**32 - 1
_CHUNK = 1 << 20  # words that are summed at a time


def fletcher64(content: bytes | memoryview) -> int:
    """Sum 32-bit words, and these sums, modulo 2^32 - 1 (Fletcher, 1982); the last word is filled with zeros.

    Example:
        >>> f"{fletcher64(b'abcdefgh'):x}"
        '312e2b28cccac8c6'
    """
    more = -len(content) % 4
    words = np.frombuffer(bytes(content) + bytes(more) if more else content, "<u4")
    low = high = 0
    for start in range(0, len(words), _CHUNK):
        chunk = words[start : start + _CHUNK].astype(np.uint64)
        count = np.uint64(len(chunk))
        # A word counts once in each of the sums that follow it. A product is below 2^52.
        later = int((chunk * (count - np.arange(len(chunk), dtype=np.uint64)) % np.uint64(_MODULUS)).sum())
        high = (high + low * len(chunk) + later) % _MODULUS
        low = (low + int(chunk.sum())) % _MODULUS
    return high << 32 | low


def write(file: BinaryIO, sections: Mapping[str, bytes | memoryview]) -> None:
    """Write a file with these sections, each named by at most eight ASCII characters."""
    at = _aligned(64 + 32 * len(sections))
    table, places = b"", []
    for name, content in sections.items():
        table += struct.pack("<8sQQQ", name.encode("ascii"), at, len(content), fletcher64(content))
        places.append(at)
        end = at + len(content)
        at = _aligned(end)
    size = end
    header = struct.pack(
        "<8sIHHQIIQ", MAGIC, _BYTE_ORDER, MAJOR, MINOR, size, len(sections), 0, fletcher64(table)
    )  # fmt: skip
    file.write(header + struct.pack("<Q", fletcher64(header)) + bytes(16) + table)
    for place, content in zip(places, sections.values(), strict=True):
        file.write(bytes(place - file.tell()))
        file.write(content)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
