"""JPEG and WebP files: OpenCV encodes in memory, and the metadata is put into the container here.

OpenCV takes metadata itself from version 5 on; older ones are allowed too, and two formats of segments are little code.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from rsd_edge.errors import OutputError
from rsd_edge.opencv import cv2
from rsd_edge.stream.encoders import Layout
from rsd_edge.stream.metadata import Metadata

_QUALITY = 95
_LONGEST_SIDE = {".jpg": 65500, ".jpeg": 65500, ".webp": 16383}
_MAX_PIXELS = 1 << 28
"""In memory the image takes 3 bytes for each of them, 4 with alpha, and the encoder up to 6 more."""

_JPEG_EXIF, _JPEG_XMP, _JPEG_ICC = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
_SEGMENT = 65533
"""Bytes that a JPEG segment holds."""
_ICC_PART = _SEGMENT - len(_JPEG_ICC) - 2
_WEBP_ICC, _WEBP_ALPHA, _WEBP_EXIF, _WEBP_XMP = 0x20, 0x10, 0x08, 0x04


def check_lossy(suffix: str, layout: Layout) -> None:
    """Raises OutputError for an image beyond the format's sides, or too large to be encoded in memory."""
    size, longest = f"{layout.width}x{layout.height}", _LONGEST_SIDE[suffix]
    if max(layout.width, layout.height) > longest:
        raise OutputError(f"{size} is beyond the {longest} pixels of {suffix}; use .png")
    if layout.width * layout.height > _MAX_PIXELS:
        raise OutputError(f"{size} is more than the {_MAX_PIXELS / 1e6:.0f} megapixels kept for {suffix}; use .png")


def jpeg_metadata(metadata: Metadata) -> tuple[Metadata, tuple[str, ...]]:
    """What fits into the segments of a JPEG file, and notes on what does not."""
    exif, xmp, icc = metadata.exif, metadata.xmp, metadata.icc
    notes: list[str] = []
    if len(exif) > _SEGMENT - len(_JPEG_EXIF):
        exif, notes = b"", [*notes, "EXIF dropped because JPEG holds 64 KB of it"]
    if len(xmp) > _SEGMENT - len(_JPEG_XMP):
        xmp, notes = b"", [*notes, "XMP dropped because JPEG holds 64 KB of it"]
    if len(icc) > 255 * _ICC_PART:
        icc, notes = b"", [*notes, "ICC profile dropped because JPEG holds 16 MB of it"]
    return Metadata(exif, xmp, icc), tuple(notes)


def encode_jpeg(image: npt.NDArray[np.uint8], metadata: Metadata) -> list[bytes | memoryview]:
    """uint8 gray (h, w) or BGR (h, w, 3) as JPEG of quality 95, 4:4:4, in pieces to write one after the other."""
    options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    data = _encoded(".jpg", image, options)
    (first,) = struct.unpack_from(">H", data, 4)
    start = 4 + first if data[3] == 0xE0 else 2  # behind the JFIF segment, which wants to be the first
    pieces: list[bytes | memoryview] = [data[:start]]
    if metadata.exif:
        pieces.append(_segment(0xE1, _JPEG_EXIF + metadata.exif))
    if metadata.xmp:
        pieces.append(_segment(0xE1, _JPEG_XMP + metadata.xmp))
    parts = [metadata.icc[i : i + _ICC_PART] for i in range(0, len(metadata.icc), _ICC_PART)]
    pieces += [_segment(0xE2, _JPEG_ICC + bytes([i + 1, len(parts)]) + part) for i, part in enumerate(parts)]
    return [*pieces, data[start:]]


def encode_webp(image: npt.NDArray[np.uint8], metadata: Metadata) -> list[bytes | memoryview]:
    """uint8 BGR (h, w, 3) or BGRA (h, w, 4) as WebP of quality 95, in pieces to write one after the other."""
    data = _encoded(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, _QUALITY])
    if not metadata.kinds:
        return [data]
    height, width, channels = image.shape
    flags = _WEBP_ALPHA if channels == 4 else 0
    for content, flag in ((metadata.icc, _WEBP_ICC), (metadata.exif, _WEBP_EXIF), (metadata.xmp, _WEBP_XMP)):
        flags |= flag if content else 0
    # A file of more than one picture chunk begins with the features and the canvas, which OpenCV may have written.
    chunks = data[30:] if bytes(data[12:16]) == b"VP8X" else data[12:]
    canvas = struct.pack("<I", flags) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    before = _chunk(b"VP8X", canvas) + _chunk(b"ICCP", metadata.icc)
    after = _chunk(b"EXIF", metadata.exif) + _chunk(b"XMP ", metadata.xmp)
    total = 4 + len(before) + len(chunks) + len(after)
    return [b"RIFF" + struct.pack("<I", total) + b"WEBP" + before, chunks, after]


def _encoded(suffix: str, image: npt.NDArray[np.uint8], options: list[int]) -> memoryview:
    encoded, data = cv2.imencode(suffix, image, options)
    if not encoded:
        raise OutputError(f"OpenCV cannot encode {image.shape[1]}x{image.shape[0]} pixels as {suffix}; use .png")
    return data.data


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _chunk(name: bytes, content: bytes) -> bytes:
    """A RIFF chunk, nothing for no content."""
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2) if content else b""
