"""What travels with the pixels: EXIF, XMP and a colour profile."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rsd_edge.stream.tiff import LONG, SHORT, Directory, Field, TiffError, directory_bytes, open_tiff

ORIENTATION = 274
EXIF_DIRECTORY, GPS_DIRECTORY = 34665, 34853
_PIXEL_WIDTH, _PIXEL_HEIGHT = 40962, 40963
_INTEROPERABILITY = 40965
_MAIN_TAGS = (
    *(269, 270, 271, 272, 282, 283, 285, 296, 305, 306, 315, 316, 18246, 18249, 33432),
    *(40091, 40092, 40093, 40094, 40095),
)
"""Of a TIFF file's main directory, what describes the picture and not its storage: make, model, date, artist, ..."""
_RESOLUTION_TAGS = (282, 283, 296)
_LARGEST_EXIF = 1 << 22
"""Bytes that are copied from one directory: a hostile one may point all its entries at one large value."""

_PROFILE_HEADER = 128
_PROFILE_COLOURS = {b"GRAY": "gray", b"RGB ": "RGB", b"CMYK": "CMYK"}
_XMP_ORIENTATION = re.compile(rb"""(tiff:Orientation(?:\s*=\s*["']|>)\s*)[1-8](?=\s*["'<])""")


@dataclass(frozen=True)
class Metadata:
    """Bytes as a file holds them, without the wrapping of its format; b'' for what it does not have."""

    exif: bytes = b""
    """A TIFF header and directories."""
    xmp: bytes = b""
    """An XML packet."""
    icc: bytes = b""
    """A colour profile."""
    unreadable: tuple[str, ...] = ()
    """The names of what is there but cannot be unwrapped."""
    unread: tuple[str, ...] = ()
    """The names of what is there but not looked into."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names of what is there."""
        found = (("EXIF", self.exif), ("XMP", self.xmp), ("ICC profile", self.icc))
        return (*(name for name, content in found if content), *self.unreadable, *self.unread)

    @property
    def orientation(self) -> int:
        """1 to 8, as EXIF numbers them; 1 if it is missing or cannot be read."""
        try:
            found = open_tiff(self.exif).number(ORIENTATION, 1)
        except TiffError:
            return 1
        return found if 1 <= found <= 8 else 1

    def checked(self, *, gray: bool) -> tuple[Metadata, tuple[str, ...]]:
        """Without what is damaged or, for a profile, made for other colours than RGB or gray, and why each was dropped.

        gray: whether the pixels that it will travel with are gray.
        """
        kept = replace(self, unreadable=(), unread=())
        notes = [f"{name} dropped because it is damaged" for name in self.unreadable]
        notes += [f"{name} dropped because it is not read" for name in self.unread]
        if self.exif and not _is_tiff(self.exif):
            kept = replace(kept, exif=b"")
            notes.append("EXIF dropped because it is damaged")
        wanted = "gray" if gray else "RGB"
        found = _profile_colours(self.icc)
        if self.icc and found != wanted:
            kept = replace(kept, icc=b"")
            why = f"it is for {found} and the result is {wanted}" if found else "it is damaged"
            notes.append(f"ICC profile dropped because {why}")
        return kept, tuple(notes)

    def for_result(self, width: int, height: int) -> Metadata:
        """For upright pixels of another size: orientation 1, the new size, and no thumbnail of the old picture."""
        xmp = _XMP_ORIENTATION.sub(rb"\g<1>1", self.xmp)
        return replace(self, exif=_updated(self.exif, width, height), xmp=xmp)


def _is_tiff(exif: bytes) -> bool:
    try:
        open_tiff(exif)
    except TiffError:
        return False
    return True


def _profile_colours(icc: bytes) -> str:
    """'gray', 'RGB' or another name of the colours that a profile is for; '' if it is damaged."""
    if len(icc) < _PROFILE_HEADER or icc[36:40] != b"acsp" or struct.unpack_from(">I", icc)[0] > len(icc):
        return ""
    colours = icc[16:20]
    return _PROFILE_COLOURS.get(colours, colours.decode("ascii", "replace").strip())


def _updated(exif: bytes, width: int, height: int) -> bytes:
    """Changed in place, because what cameras keep in there for themselves breaks when it is moved."""
    if not exif:
        return exif
    changed = bytearray(exif)
    try:
        main = open_tiff(exif)
        _set_number(changed, main, ORIENTATION, 1)
        struct.pack_into("<I", changed, main.next_place, 0)
        if EXIF_DIRECTORY in main:
            details = Directory(exif, main.order, main.number(EXIF_DIRECTORY, 0))
            _set_number(changed, details, _PIXEL_WIDTH, width)
            _set_number(changed, details, _PIXEL_HEIGHT, height)
    except TiffError:
        pass  # the orientation, which is read in the same way and first, is right; the rest is left as it was
    return bytes(changed)


def _set_number(data: bytearray, directory: Directory, tag: int, value: int) -> None:
    """Replace the only value of a field, if it is there and can hold the new one."""
    entry = directory.get(tag)
    if entry is None or entry.count != 1 or entry.kind not in (SHORT, LONG):
        return
    if entry.kind == LONG or value < 1 << 16:
        struct.pack_into(f"{directory.order}{'H' if entry.kind == SHORT else 'I'}", data, entry.where, value)


def exif_of_tiff(main: Directory) -> bytes:
    """EXIF data made of what a TIFF file's directories say about the picture; b'' if that is nothing.

    Raises TiffError if they are damaged.
    """
    fields = list(_fields(main, _MAIN_TAGS))
    subs = {tag: main.number(tag, 0) for tag in (EXIF_DIRECTORY, GPS_DIRECTORY) if tag in main}
    turned = main.number(ORIENTATION, 1) != 1
    if not subs and not turned and all(field.tag in _RESOLUTION_TAGS for field in fields):
        return b""
    fields.append(Field.of(ORIENTATION, SHORT, main.number(ORIENTATION, 1)))
    details = [(tag, Directory(main.data, main.order, at)) for tag, at in subs.items()]
    return _with_subdirectories(fields, details)


def fields_for_tiff(exif: bytes, position: int) -> tuple[bytes, list[Field]]:
    """What a TIFF file needs to carry EXIF data: bytes for `position` of the file, and fields of its main directory.

    Raises TiffError if the data is damaged.
    """
    main = open_tiff(exif)
    fields = list(_fields(main, _MAIN_TAGS))
    block = b""
    for tag in (EXIF_DIRECTORY, GPS_DIRECTORY):
        if tag in main:
            details = Directory(exif, main.order, main.number(tag, 0))
            fields.append(Field.of(tag, LONG, position + len(block)))
            block += directory_bytes(_fields(details, details), position + len(block))
    return block, fields


def has_whole_directories(exif: bytes) -> bool:
    """Whether `fields_for_tiff` can take the data apart."""
    try:
        fields_for_tiff(exif, 0)
    except TiffError:
        return False
    return True


def _with_subdirectories(fields: list[Field], subs: list[tuple[int, Directory]]) -> bytes:
    header = struct.pack("<2sHI", b"II", 42, 8)
    placed = [*fields, *(Field.of(tag, LONG, 0) for tag, _ in subs)]
    position = len(header) + len(directory_bytes(placed, len(header)))
    blocks, pointers = b"", []
    for tag, directory in subs:
        pointers.append(Field.of(tag, LONG, position + len(blocks)))
        blocks += directory_bytes(_fields(directory, directory), position + len(blocks))
    return header + directory_bytes([*fields, *pointers], len(header)) + blocks


def _fields(directory: Directory, tags: Iterator[int] | tuple[int, ...] | Directory) -> Iterator[Field]:
    total = 0
    for tag in tags:
        # Left out: types that nobody knows, and the pointer to one more directory, which only cameras read.
        if tag in directory and directory[tag].size and tag != _INTEROPERABILITY:
            field = directory.field(tag)
            total += len(field.values)
            if total > _LARGEST_EXIF:
                raise TiffError("the directory is absurdly large")
            yield field
