"""What the header of an image file says, read without decoding, and whether the file is all there.

A decoder allocates what the header asks for and, in some OpenCV versions, fills the missing part of a truncated file
with gray. Both are decided here first, from the bytes alone.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SNIFF_BYTES = 32
"""How many leading bytes `sniff_format` needs."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SIGNATURES = (
    ("PNG", _PNG_SIGNATURE),
    ("JPEG", b"\xff\xd8\xff"),
    ("BMP", b"BM"),
    ("TIFF", b"II*\x00"),
    ("TIFF", b"MM\x00*"),
    ("GIF", b"GIF8"),
    ("BigTIFF", b"II+\x00"),
    ("BigTIFF", b"MM\x00+"),
    ("JPEG 2000", b"\x00\x00\x00\x0cjP  "),
    ("JPEG XL", b"\x00\x00\x00\x0cJXL "),
    ("JPEG XL", b"\xff\x0a"),
    ("PSD", b"8BPS"),
    ("OpenEXR", b"\x76\x2f\x31\x01"),
    ("PDF", b"%PDF"),
    ("video", b"\x1a\x45\xdf\xa3"),  # Matroska and WebM
)
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"), "HEIC"),
}
"""Still images among the many things that begin with `ftyp`; the rest are MP4, MOV and their kin."""

_JPEG_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")

_TIFF_TYPES = {1: "B", 3: "H", 4: "I"}
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS = 256, 257, 258
_TIFF_STRIPS, _TIFF_STRIP_SIZES, _TIFF_TILES, _TIFF_TILE_SIZES = 273, 279, 324, 325
_TIFF_COLOUR, _TIFF_SAMPLES, _TIFF_SAMPLE_FORMAT = 262, 277, 339
_TIFF_COLOUR_CHANNELS = {2: 3, 5: 4, 6: 3, 8: 3}
"""Channels of RGB, CMYK, YCbCr and Lab; gray and palette have one. What a pixel has beyond is alpha."""


class HeaderError(Exception):
    """The bytes are no readable image; the text says why, without naming the file."""


@dataclass(frozen=True)
class ImageHeader:
    """What a file holds, as stored (before its EXIF orientation is applied)."""

    format: str
    width: int
    height: int
    bits: int = 8
    """Per channel."""
    alpha: bool = False
    more_pages: bool = False
    """An animation or a multi-page file, of which only the first picture is used."""


def sniff_format(start: bytes) -> str:
    """The format named by the first SNIFF_BYTES of a file, or '' if unknown. Not every name has a parser."""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    if start[4:8] == b"ftyp":
        return _BRANDS.get(start[8:12], "video")
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return "video"
    return next((name for name, signature in _SIGNATURES if start.startswith(signature)), "")


def parse_header(data: bytes) -> ImageHeader:
    """Header of a whole file. Raises HeaderError if it is truncated, damaged, or not PNG, JPEG, WebP, BMP or TIFF."""
    name = sniff_format(data[:SNIFF_BYTES])
    if name not in _PARSERS:
        raise HeaderError(f"is a {name} file" if name else "is not an image")
    try:
        header = _PARSERS[name](data)
    except (struct.error, IndexError):
        raise HeaderError("is truncated") from None
    if header.width < 1 or header.height < 1:
        raise HeaderError(f"is damaged: its header says {header.width}x{header.height} pixels")
    return header


def _png(data: bytes) -> ImageHeader:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    alpha, animated = colour in (4, 6), False
    for kind, start, end in _png_chunks(data):
        # Lower case marks a chunk that decoders may ignore, and its checksum with it.
        critical = kind[:1].isupper()
        if critical and zlib.crc32(memoryview(data)[start - 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise HeaderError("is damaged: a checksum does not match")
        alpha |= kind == b"tRNS"
        animated |= kind == b"acTL"
        if kind == b"IEND":
            return ImageHeader("PNG", width, height, bits, alpha, animated)
    raise HeaderError("is truncated")


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of each chunk's content that is wholly there."""
    position = len(_PNG_SIGNATURE)
    while position + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + size
        if end + 4 > len(data):
            return
        yield kind, position + 8, end
        position = end + 4


def _jpeg(data: bytes) -> ImageHeader:
    header: ImageHeader | None = None
    position = 2
    while position < len(data):
        match = _JPEG_NEXT_MARKER.search(data, position)
        if match is None:
            break
        marker, position = data[match.end() - 1], match.end()
        if marker == 0xD9:
            if header is None:
                raise HeaderError("is damaged: it holds no picture")
            return header
        if marker in (0x01, 0xD8):
            continue
        (size,) = struct.unpack_from(">H", data, position)
        if marker in _JPEG_FRAME_MARKERS and header is None:
            bits, height, width = struct.unpack_from(">BHH", data, position + 2)
            header = ImageHeader("JPEG", width, height, bits)
        position += size
    raise HeaderError("is truncated")


def _webp(data: bytes) -> ImageHeader:
    (size,) = struct.unpack_from("<I", data, 4)
    if size + 8 > len(data):
        raise HeaderError("is truncated")
    kind = data[12:16]
    if kind == b"VP8X":
        flags = data[20]
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        return ImageHeader("WebP", width, height, alpha=bool(flags & 0x10), more_pages=bool(flags & 0x02))
    if kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, 21)
        alpha = bool(packed >> 28 & 1)
        return ImageHeader("WebP", 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF), alpha=alpha)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return ImageHeader("WebP", width & 0x3FFF, height & 0x3FFF)
    raise HeaderError("is damaged: its first chunk holds no picture")


def _bmp(data: bytes) -> ImageHeader:
    offset, header_size = struct.unpack_from("<II", data, 10)
    if header_size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    rows = abs(height)  # negative marks rows stored from top to bottom
    uncompressed = compression in (0, 3, 6)
    if uncompressed and offset + (width * bits + 31) // 32 * 4 * rows > len(data):
        raise HeaderError("is truncated")
    return ImageHeader("BMP", width, rows)


def _tiff(data: bytes) -> ImageHeader:
    order = "<" if data[:2] == b"II" else ">"
    (directory,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, directory)
    fields = {}
    for index in range(count):
        tag, values = _tiff_field(data, order, directory + 2 + 12 * index)
        fields[tag] = values
    (next_directory,) = struct.unpack_from(f"{order}I", data, directory + 2 + 12 * count)
    width, height = (fields.get(tag, (0,))[0] for tag in (_TIFF_WIDTH, _TIFF_HEIGHT))
    if 3 in fields.get(_TIFF_SAMPLE_FORMAT, ()):
        raise HeaderError("is a floating-point TIFF file")
    for starts, sizes in ((_TIFF_STRIPS, _TIFF_STRIP_SIZES), (_TIFF_TILES, _TIFF_TILE_SIZES)):
        ends = (start + size for start, size in zip(fields.get(starts, ()), fields.get(sizes, ()), strict=False))
        if max(ends, default=0) > len(data):
            raise HeaderError("is truncated")
    bits = max(fields.get(_TIFF_BITS, (1,)))
    (colour, *_), (samples, *_) = fields.get(_TIFF_COLOUR, (1,)), fields.get(_TIFF_SAMPLES, (1,))
    alpha = samples > _TIFF_COLOUR_CHANNELS.get(colour, 1)
    return ImageHeader("TIFF", width, height, bits, alpha, more_pages=next_directory != 0)


def _tiff_field(data: bytes, order: str, position: int) -> tuple[int, tuple[int, ...]]:
    """(tag, values) of a directory entry; no values for types that no tag of interest has."""
    tag, kind, count = struct.unpack_from(f"{order}HHI", data, position)
    if kind not in _TIFF_TYPES:
        return tag, ()
    layout = f"{order}{count}{_TIFF_TYPES[kind]}"
    where = position + 8
    if struct.calcsize(layout) > 4:
        (where,) = struct.unpack_from(f"{order}I", data, where)
    return tag, struct.unpack_from(layout, data, where)


_PARSERS: dict[str, Callable[[bytes], ImageHeader]] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "WebP": _webp,
    "BMP": _bmp,
    "TIFF": _tiff,
}
