"""Directories of the TIFF format, which EXIF data shares: read with every length checked, and written.

A damaged or hostile file may claim billions of values, or point a thousand entries at the same megabytes: nothing is
unpacked before it is asked for, and never beyond the data.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

SHORT, LONG = 3, 4
BYTE, UNDEFINED = 1, 7

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_WORDS = {3: 2, 4: 4, 5: 4, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4}
"""Bytes of what a byte order turns round; a rational is two words."""


class TiffError(ValueError):
    """A directory or a value lies beyond the data."""


@dataclass(frozen=True)
class Entry:
    """One field: its type, how many values it has, and where in the data they or their copy in the entry begin."""

    kind: int
    count: int
    where: int

    @property
    def size(self) -> int:
        """Bytes of all values; 0 for types that TIFF does not know."""
        return self.count * _SIZES.get(self.kind, 0)


class Directory(Mapping[int, Entry]):
    """The entries of one directory by tag; the first of several with one tag counts."""

    def __init__(self, data: bytes, order: str, position: int) -> None:
        """order: "<" or ">". Raises TiffError if the directory is not wholly there."""
        self.data, self.order, self.position = data, order, position
        self._entries: dict[int, Entry] = {}
        try:
            (count,) = struct.unpack_from(f"{order}H", data, position)
            for index in range(count):
                place = position + 2 + 12 * index
                tag, kind, values = struct.unpack_from(f"{order}HHI", data, place)
                entry = Entry(kind, values, place + 8)
                if entry.size > 4:
                    entry = Entry(kind, values, *struct.unpack_from(f"{order}I", data, place + 8))
                self._entries.setdefault(tag, entry)
            self.next_place = position + 2 + 12 * count
            (self.next,) = struct.unpack_from(f"{order}I", data, self.next_place)
        except struct.error:
            raise TiffError("a directory lies beyond the data") from None

    def __getitem__(self, tag: int) -> Entry:
        return self._entries[tag]

    def __iter__(self) -> Iterator[int]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def raw(self, tag: int) -> bytes:
        """The bytes of a field, b'' if it is missing. Raises TiffError if they lie beyond the data."""
        entry = self.get(tag)
        if entry is None:
            return b""
        if entry.where + entry.size > len(self.data):
            raise TiffError(f"the values of tag {tag} lie beyond the data")
        return self.data[entry.where : entry.where + entry.size]

    def numbers(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The values of a field of whole numbers; `default` if it is missing, empty or of another type."""
        entry = self.get(tag)
        if entry is None or entry.count == 0 or entry.kind not in (BYTE, SHORT, LONG):
            return default
        words = np.frombuffer(self.raw(tag), f"{self.order}u{_SIZES[entry.kind]}")
        return tuple(words.tolist())

    def number(self, tag: int, default: int) -> int:
        """The first of `numbers`."""
        return self.numbers(tag, (default,))[0]

    def field(self, tag: int) -> Field:
        """A copy of a field, with its values in little-endian order."""
        entry, values = self[tag], self.raw(tag)
        word = _WORDS.get(entry.kind, 1)
        if self.order == ">" and word > 1:
            values = np.frombuffer(values, f">u{word}").astype(f"<u{word}").tobytes()
        return Field(tag, entry.kind, entry.count, values)


@dataclass(frozen=True)
class Field:
    """One field to write; its values are little-endian bytes."""

    tag: int
    kind: int
    count: int
    values: bytes

    @classmethod
    def of(cls, tag: int, kind: int, *numbers: int) -> Field:
        """A field of whole numbers of type SHORT or LONG."""
        letter = {SHORT: "H", LONG: "I"}[kind]
        return cls(tag, kind, len(numbers), struct.pack(f"<{len(numbers)}{letter}", *numbers))


def open_tiff(data: bytes, start: int = 0) -> Directory:
    """The first directory of a TIFF file or of EXIF data. Raises TiffError."""
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(data[start : start + 4])
    if order is None or len(data) < start + 8:
        raise TiffError("the data has no TIFF header")
    return Directory(data, order, *struct.unpack_from(f"{order}I", data, start + 4))


def directory_bytes(fields: Iterable[Field], position: int) -> bytes:
    """A directory that begins at `position` of a little-endian file, with the values that its entries cannot hold."""
    ordered = sorted(fields, key=lambda field: field.tag)
    table, values = struct.pack("<H", len(ordered)), bytearray()
    after = position + 2 + 12 * len(ordered) + 4
    for field in ordered:
        packed = field.values
        if len(packed) > 4:
            packed = struct.pack("<I", after + len(values))
            values += field.values + b"\0" * (len(field.values) % 2)  # the format wants even offsets
        table += struct.pack("<HHI4s", field.tag, field.kind, field.count, packed)
    return table + struct.pack("<I", 0) + bytes(values)
