"""The chunks of a PNG file, and the metadata in them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from rsd_edge.stream.metadata import Metadata

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_XMP = b"XML:com.adobe.xmp"
_EXIF_START = b"Exif\0\0"
"""Of JPEG, which some programs leave in."""
_LARGEST_METADATA = 1 << 24
"""Bytes that a compressed profile or text may unpack to."""


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of each chunk's content that is wholly there."""
    position = len(PNG_SIGNATURE)
    while position + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + size
        if end + 4 > len(data):
            return
        yield kind, position + 8, end
        position = end + 4


def bare_png(data: bytes) -> bytes:
    """A PNG without what decoders may ignore, transparency apart: libpng prints remarks on harmless colour profiles."""
    chunks = [data[start - 8 : end + 4] for kind, start, end in png_chunks(data) if kind.isupper() or kind == b"tRNS"]
    return PNG_SIGNATURE + b"".join(chunks)


def png_metadata(wrapped: dict[bytes, bytes]) -> Metadata:
    """EXIF, XMP and profile from the contents of chunks by their type."""
    icc = xmp = b""
    unreadable = []
    if b"iCCP" in wrapped:
        packed = wrapped[b"iCCP"].partition(b"\0")[2][1:]
        icc = _unpacked(packed)
        if not icc:
            unreadable.append("ICC profile")
    if b"iTXt" in wrapped:
        body = wrapped[b"iTXt"][len(PNG_XMP) + 1 :]  # flag, method, language, translated keyword, text
        text = body[2:].split(b"\0", 2)[-1]
        xmp = _unpacked(text) if body[:1] == b"\1" else text
        if not xmp:
            unreadable.append("XMP")
    exif = wrapped.get(b"eXIf", b"").removeprefix(_EXIF_START)
    return Metadata(exif, xmp, icc, tuple(unreadable))


def _unpacked(packed: bytes) -> bytes:
    """Zlib data unpacked, or b'' if it is damaged or absurdly large."""
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(packed, _LARGEST_METADATA)
    except zlib.error:
        return b""
    return content if unpacker.eof else b""
