"""Operations as rows of named values: the content of ``ts_operation`` without addresses and layout in memory."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

from torch import Tensor

from torch_separable.errors import SeparableError
from torch_separable.runtime.native.operations import Kind, Operation

# The member of the union that each kind of operation on floats fills in; those on uint8 are in `_member`.
_MEMBERS = {
    Kind.IMPORT: "external", Kind.CONVOLUTION: "convolution", Kind.DEPTHWISE: "depthwise", Kind.POOL_MAX: "pool",
    Kind.POOL_AVERAGE: "pool", Kind.MEAN: "", Kind.ADD: "", Kind.SCALE: "", Kind.ACTIVATE: "", Kind.COPY: "copy",
    Kind.REPAIR_NONFINITE: "repair", Kind.ELEMENTWISE: "elementwise", Kind.RESAMPLE: "resample",
    Kind.STRIDED_COPY: "strided_copy", Kind.NORMALIZE: "normalize", Kind.SOFTMAX: "",
    Kind.MATRIX_PRODUCT: "matrix_product",
}  # fmt: skip
_INT8_MEMBERS = {Kind.CONVOLUTION: "int8_convolution", Kind.DEPTHWISE: "int8_depthwise"}

# Not part of a file: the kind, whose name stands before the fields, the union, whose member is chosen, the strides of
# the input, which a call sets, and fields that fill gaps.
_LEFT_OUT = {"kind", "_by_kind", "external.strides", "int8_elementwise.external.strides"}


class Texts:
    """The texts of a file, by number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """Return the number of a text, which is added if it is new."""
        if "\0" in text:
            raise SeparableError(f"the text {text!r:.60} contains a zero character: remove it")
        return self._numbers.setdefault(text, len(self._numbers))

    def section(self) -> bytes:
        """Return all texts, each ended by a zero byte."""
        return b"".join(text.encode() + b"\0" for text in self._numbers)


class Blobs:
    """Packed weights, each content once, at multiples of 64 bytes."""

    def __init__(self, alignment: int) -> None:
        self._alignment = alignment
        self._numbers: dict[bytes, int] = {}
        self._places: list[tuple[int, int]] = []
        self._end = 0

    def number(self, content: bytes) -> int:
        """Return the number of a content, which is added if it is new."""
        known = self._numbers.get(content)
        if known is None:
            known = self._numbers[content] = len(self._places)
            self._places.append((self._end, len(content)))
            self._end = -(-(self._end + len(content)) // self._alignment) * self._alignment
        return known

    def index(self) -> bytes:
        """Return offset and size of each."""
        return b"".join(struct.pack("<QQ", *place) for place in self._places)

    def section(self) -> bytes:
        """Return all contents with zeros between them."""
        content = bytearray(self._end)
        for blob, (at, size) in zip(self._numbers, self._places, strict=True):
            content[at : at + size] = blob
        return bytes(content)


class Addresses:
    """Turns addresses of packed weights into numbers of blobs.

    Weights may have been laid side by side in one tensor, so a blob ends where the next address that an operation names
    begins.
    """

    def __init__(self, operations: Sequence[Operation], weights: Sequence[Tensor], blobs: Blobs) -> None:
        named = {getattr(params, name) for op in operations for params, name in op.addresses()}
        self._begins = sorted(address for address in named if address is not None)
        self._pieces = [(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in weights]
        self._blobs = blobs
        self._known: dict[int, int] = {}

    def number(self, address: int | None) -> int:
        """Return 0 for no weights, else 1 + the number of the blob."""
        if address is None:
            return 0
        if address not in self._known:
            end = next(end for begin, end in self._pieces if begin <= address < end)
            after = next((other for other in self._begins if other > address), end)
            content = ctypes.string_at(address, min(after, end) - address)
            self._known[address] = 1 + self._blobs.number(content)
        return self._known[address]


class Kinds:
    """The kinds of operations in a file, each with the names of its fields."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._numbers: dict[str, int] = {}
        self._fields: list[list[str]] = []

    def row(self, operation: Operation, address_number: Callable[[int | None], int], set_name: str) -> bytes:
        """Return the operation's kind and the values of its fields, eight bytes each."""
        kind, member = _kind(operation)
        fields = _fields(member)
        if kind not in self._numbers:
            self._numbers[kind] = len(self._fields)
            self._fields.append([name for name, _ in fields])
        values = [struct.pack("<Q", self._numbers[kind])]
        for name, path in fields:
            value = _value(operation, path)
            if name == "instruction_set":
                values.append(struct.pack("<Q", self._texts.number(set_name)))
            elif isinstance(value, float):
                values.append(struct.pack("<d", value))
            elif path[-1] is ctypes.c_void_p:
                values.append(struct.pack("<Q", address_number(value)))
            else:
                values.append(struct.pack("<q", value))
        return b"".join(values)

    def section(self) -> bytes:
        """Return the names of kinds and fields, as numbers of texts."""
        words = [len(self._fields)]
        for kind, names in zip(self._numbers, self._fields, strict=True):
            words += [self._texts.number(kind), len(names), *map(self._texts.number, names)]
        return struct.pack(f"<{len(words)}Q", *words)


def _kind(operation: Operation) -> tuple[str, str]:
    """Name the kind of an operation, and the member of the union that it fills in."""
    kind = Kind(operation.kind)
    if operation.is_int8:
        return f"int8_{kind.name.lower()}", _INT8_MEMBERS.get(kind, "int8_elementwise")
    if kind not in _MEMBERS:
        raise SeparableError(f"a network file cannot hold the operation {kind.name.lower()} yet: use ts.compile")
    return kind.name.lower(), _MEMBERS[kind]


Path = tuple[str | int | type, ...]  # names of fields and indices of arrays; the last is the type of the value


@cache
def _fields(member: str) -> tuple[tuple[str, Path], ...]:
    """Name the fields of an operation that fills in this member of the union."""
    found = list(_leaves(Operation, "", ()))
    if member:
        union: Any = next(field[1] for field in Operation._fields_ if field[0] == "_by_kind")
        found += _leaves(dict(union._fields_)[member], f"{member}.", (member,))
    return tuple(found)


def _leaves(of: type[ctypes.Structure], prefix: str, path: Path) -> Iterator[tuple[str, Path]]:
    fields: list[tuple[str, Any]] = [(field[0], field[1]) for field in of._fields_]
    for name, kind in fields:
        if name == "reserved" or f"{prefix}{name}" in _LEFT_OUT:
            continue
        if issubclass(kind, ctypes.Structure):
            yield from _leaves(kind, f"{prefix}{name}.", (*path, name))
        elif issubclass(kind, ctypes.Array):
            for i in range(kind._length_):
                yield f"{prefix}{name}[{i}]", (*path, name, i, kind._type_)
        else:
            yield f"{prefix}{name}", (*path, name, kind)


def _value(operation: Operation, path: Path) -> int | float | None:
    value = operation
    for step in path[:-1]:
        value = value[step] if isinstance(step, int) else getattr(value, step)  # type: ignore[index,arg-type]
    return value  # type: ignore[return-value]
