"""What an ONNX file claims, read from its bytes before a runtime believes it.

ONNX is a message of Protocol Buffers: fields of a number and a value, of which some are messages again. Only the few
that lead to tensors are looked into, so that this takes neither the onnx package nor much time.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from rtdetrv4.input_files import open_file, size_text

MAX_DEPTH = 50
"""Of messages: a graph in a node of a graph is four."""
MAX_DIMS = 64
MAX_FIELDS = 20_000_000
"""A file whose fields take minutes to count is no detector."""
VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5
"""How the value of a field is written."""
PARTS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
}
"""Messages by kind, and their fields that are messages which lead to tensors."""
DIMS, DATA_TYPE, NAME, RAW_DATA, EXTERNAL_DATA = 1, 2, 8, 9, 13
STRING = 8
TYPED_DATA = (4, 5, 6, 7, 10, 11)
"""Fields of a tensor whose values are written one by one."""
BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16}
"""Of an element, by data type; smaller ones take up half a byte or a whole one."""


DAMAGED = "is damaged or truncated, or no ONNX file; export it again"


class StructureError(ValueError):
    """What is wrong with a file, as a sentence without a subject."""


def onnx_problem(path: Path) -> str | None:
    """What is wrong with an ONNX file, as a sentence without a subject, or None.

    Its tensors must have the bytes that their shapes need, in the file or in another one in the same folder, and no
    link out of it: a file named ../../.ssh/id_rsa would be read, and its content computed with.
    """
    try:
        with open_file(path) as file:
            if os.fstat(file.fileno()).st_size == 0:
                return "is empty"
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _Reader(data, path.parent).message("model", 0, len(data), 0)
    except OSError as error:
        return f"is not readable ({error.strerror})"
    except StructureError as error:
        return str(error)
    return None


class _Reader:
    def __init__(self, data: mmap.mmap, folder: Path) -> None:
        self._data, self._folder = data, folder
        self._num_fields = 0

    def message(self, kind: str, start: int, end: int, depth: int) -> None:
        """Look at a message, and at those in it."""
        if depth > MAX_DEPTH:
            raise StructureError(f"has more than {MAX_DEPTH} messages inside each other")
        if kind == "sparse tensor":  # of few values and any shape, which runtimes write out in full
            raise StructureError("has a sparse tensor, which no detector needs")
        if kind == "tensor":
            self._tensor(start, end)
            return
        parts = PARTS[kind]
        for number, wire, first, last in self._fields(start, end):
            if wire == BYTES and number in parts:
                self.message(parts[number], first, last, depth + 1)

    def _tensor(self, start: int, end: int) -> None:
        dims: list[int] = []
        data_type, name = 0, ""
        raw: int | None = None
        typed = 0
        external: dict[str, str] = {}
        for number, wire, first, last in self._fields(start, end):
            if number == DIMS:
                dims += islice(self._numbers(wire, first, last), MAX_DIMS + 1)
            elif number == DATA_TYPE and wire == VARINT:
                data_type = self._varint(first, end)[0]
            elif number == NAME and wire == BYTES:
                name = self._text(first, min(last, first + 200))
            elif number == RAW_DATA and wire == BYTES:
                raw = last - first
            elif number in TYPED_DATA:
                typed += last - first + (data_type == STRING)
            elif number == EXTERNAL_DATA and wire == BYTES:
                entry = {n: self._text(a, b) for n, w, a, b in self._fields(first, last) if w == BYTES}
                external[entry.get(1, "")] = entry.get(2, "")
            if len(dims) > MAX_DIMS:
                raise StructureError(f"has a tensor of more than {MAX_DIMS} dimensions")
        if any(side >= 1 << 63 for side in dims):
            raise StructureError(f'has a tensor "{name}" with a negative side')
        num = math.prod(dims)
        needed = num * BITS.get(data_type, 2) // 8
        if external:
            held = self._external(name, external)
        elif raw is not None:
            held = raw
        else:  # one by one, each in a byte at least; or up to 16 in one number, if they are smaller than that
            held, needed = typed, num if data_type in BITS else num // 16
        if needed > held and num:
            raise StructureError(
                f'has a tensor "{name}" that claims {"×".join(map(str, dims))}, {size_text(needed)}, and holds '
                f"{size_text(held)}"
            )

    def _external(self, name: str, entry: dict[str, str]) -> int:
        """The number of bytes that a tensor has in another file."""
        location = entry.get("location", "")
        parts = location.replace("\\", "/").split("/")
        if not location or "\0" in location or parts[0] == "" or ".." in parts or ":" in parts[0]:
            raise StructureError(
                f'keeps the tensor "{name}" in {location!r}, expected the name of a file in the same folder'
            )
        path, folder = self._folder / location, self._folder.resolve()
        if not path.resolve().is_relative_to(folder):
            raise StructureError(f'keeps the tensor "{name}" in {location!r}, a link that leads out of the folder')
        try:
            with open_file(path) as file:
                size = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise StructureError(f'keeps the tensor "{name}" in {location!r}: {error.strerror}') from None
        try:
            offset = int(entry.get("offset", "0") or 0)
            length = int(entry["length"]) if entry.get("length") else max(size - offset, 0)
        except ValueError:
            raise StructureError(f'has no numbers where it says which part of {location!r} is "{name}"') from None
        if offset < 0 or length < 0 or offset + length > size:
            raise StructureError(
                f'keeps the tensor "{name}" in bytes {offset} to {offset + length} of {location!r}, which has {size}'
            )
        return length

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Number, form, and the place of the value of each field of a message."""
        at = start
        while at < end:
            self._num_fields += 1
            if self._num_fields > MAX_FIELDS:
                raise StructureError(f"has more than {MAX_FIELDS} fields")
            key, at = self._varint(at, end)
            wire = key & 7
            if wire == VARINT:
                last = self._varint(at, end)[1]
            elif wire == BYTES:
                length, at = self._varint(at, end)
                last = at + length
            elif wire in (FIXED_64, FIXED_32):
                last = at + (8 if wire == FIXED_64 else 4)
            else:
                raise StructureError(DAMAGED)
            if last > end:
                raise StructureError(DAMAGED)
            yield key >> 3, wire, at, last
            at = last

    def _numbers(self, wire: int, first: int, last: int) -> Iterator[int]:
        if wire == VARINT:
            yield self._varint(first, last)[0]
        while wire == BYTES and first < last:  # packed
            number, first = self._varint(first, last)
            yield number

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        if at < end and (byte := self._data[at]) < 0x80:  # most are this short
            return byte, at + 1
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                break
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & (1 << 64) - 1, at
        raise StructureError(DAMAGED)

    def _text(self, first: int, last: int) -> str:
        return self._data[first:last].decode("utf-8", errors="replace")
