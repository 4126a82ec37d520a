"""Lossless image files written band by band: beside a band of the image, memory holds a few megabytes.

OpenCV encodes to a buffer in memory, which for a large result costs as much again as the result. PNG, TIFF and BMP are
simple enough to be written straight to the file. What a file holds does not depend on how the image came in bands.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from rsd_edge.errors import OutputError
from rsd_edge.stream.metadata import Metadata, fields_for_tiff
from rsd_edge.stream.tiff import BYTE, LONG, SHORT, UNDEFINED, Field, directory_bytes

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

_BAND_BYTES = 1 << 21
_LEVEL = 2
"""As fast as OpenCV's PNG encoder and 5 % smaller; level 6 saves 3 % more and takes four times as long."""
_FILTER_SUB = 1
_LARGEST_OFFSET = (1 << 32) - 1
_PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}
_PNG_XMP = b"XML:com.adobe.xmp\0\0\0\0\0"
_DIRECTORY_ROOM = 1 << 26
"""More than the directory of a TIFF file and its metadata take."""


@dataclass(frozen=True)
class Layout:
    """What an image is like before its first row is there."""

    width: int
    height: int
    channels: int = 3
    """1 gray, 2 gray and alpha, 3 BGR, 4 BGR and alpha. Alpha is not multiplied into the colours."""
    bits: int = 8
    """8 or 16."""

    @classmethod
    def of(cls, image: Pixels) -> Layout:
        """The layout of a whole image, uint8 or uint16 (h, w) or (h, w, channels)."""
        channels = image.shape[2] if image.ndim == 3 else 1
        return cls(image.shape[1], image.shape[0], channels, 8 * image.dtype.itemsize)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.width * self.channels * self.bits // 8

    @property
    def image_bytes(self) -> int:
        """Bytes of all rows."""
        return self.row_bytes * self.height


def write_png(file: BinaryIO, layout: Layout, bands: Iterable[Pixels], metadata: Metadata) -> None:
    """Write bands of whole rows, from top to bottom, as a PNG with the layout's channels and bits."""
    file.write(b"\x89PNG\r\n\x1a\n")
    colour = _PNG_COLOURS[layout.channels]
    _png_chunk(file, b"IHDR", struct.pack(">IIBBBBB", layout.width, layout.height, layout.bits, colour, 0, 0, 0))
    if metadata.icc:
        _png_chunk(file, b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc))
    if metadata.exif:
        _png_chunk(file, b"eXIf", metadata.exif)
    if metadata.xmp:
        _png_chunk(file, b"iTXt", _PNG_XMP + metadata.xmp)
    packer = zlib.compressobj(_LEVEL)
    pixel = layout.channels * layout.bits // 8
    for band in _regroup(bands, layout):
        samples = _rgb(band, layout)
        if layout.bits == 16:
            samples = samples.astype(">u2").view(np.uint8)
        rows = np.empty((len(band), 1 + layout.row_bytes), np.uint8)
        rows[:, 0] = _FILTER_SUB
        _horizontal_differences(samples, pixel, rows[:, 1:])
        _png_chunk(file, b"IDAT", packer.compress(rows.data))
    _png_chunk(file, b"IDAT", packer.flush())
    _png_chunk(file, b"IEND", b"")


def check_bmp(layout: Layout) -> None:
    """Raises OutputError beyond the format's 4 GB."""
    if _bmp_start(layout) + _bmp_stride(layout) * layout.height > _LARGEST_OFFSET:
        raise OutputError(f"BMP cannot hold {layout.width}x{layout.height} pixels; use .png")


def write_bmp(file: BinaryIO, layout: Layout, bands: Iterable[Pixels], metadata: Metadata) -> None:
    """Write bands of gray or BGR rows of 8 bits, from top to bottom, as an uncompressed BMP, which holds no metadata.

    Raises OutputError as `check_bmp` does.
    """
    check_bmp(layout)
    start, stride = _bmp_start(layout), _bmp_stride(layout)
    colours = 256 if layout.channels == 1 else 0
    content = stride * layout.height
    file.write(struct.pack("<2sIHHI", b"BM", start + content, 0, 0, start))
    bits = 8 * layout.channels
    sizes = (40, layout.width, layout.height, 1, bits, 0, content, 2835, 2835, colours, 0)
    file.write(struct.pack("<IiiHHIIiiII", *sizes))
    file.write(np.repeat(np.arange(colours, dtype=np.uint8), 4).tobytes())
    below = start + content
    for band in _regroup(bands, layout):
        rows = np.zeros((len(band), stride), np.uint8)
        rows[:, : layout.row_bytes] = band[::-1].reshape(len(band), -1)
        below -= rows.size
        file.seek(below)  # the lowest row comes first in the file
        file.write(rows.data)


def _bmp_start(layout: Layout) -> int:
    return 54 + (1024 if layout.channels == 1 else 0)


def _bmp_stride(layout: Layout) -> int:
    return (layout.row_bytes + 3) // 4 * 4


def check_tiff(layout: Layout) -> None:
    """Raises OutputError if the pixels and the directory could come to lie beyond the format's 4 GB."""
    if layout.image_bytes + _DIRECTORY_ROOM > _LARGEST_OFFSET:
        raise OutputError(f"TIFF may not hold {layout.width}x{layout.height} pixels in 4 GB; use .png")


def write_tiff(file: BinaryIO, layout: Layout, bands: Iterable[Pixels], metadata: Metadata) -> None:
    """Write bands of whole rows, from top to bottom, as a deflate-compressed TIFF with the layout's channels and bits.

    Raises OutputError as `check_tiff` does, TiffError for EXIF data whose directories are damaged.
    """
    check_tiff(layout)
    offsets, sizes = [], []
    file.write(struct.pack("<2sHI", b"II", 42, 0))
    position = 8
    for band in _regroup(bands, layout):
        rows = np.empty((len(band), layout.width * layout.channels), band.dtype)
        _horizontal_differences(_rgb(band, layout), layout.channels, rows)
        strip = zlib.compress(rows.astype(rows.dtype.newbyteorder("<"), copy=False).data, _LEVEL)
        strip += b"\0" * (len(strip) % 2)  # the format wants even offsets
        file.write(strip)
        offsets.append(position)
        sizes.append(len(strip))
        position += len(strip)
    block, described = _described(metadata, position)
    file.write(block)
    position += len(block)
    fields = [*_stored(layout), Field.of(273, LONG, *offsets), Field.of(279, LONG, *sizes), *described]
    file.write(directory_bytes(fields, position))
    file.seek(4)
    file.write(struct.pack("<I", position))


def _stored(layout: Layout) -> list[Field]:
    """How a TIFF file of ours holds its pixels."""
    deflate, gray, rgb, horizontal_predictor, not_premultiplied = 8, 1, 2, 2, 2
    fields = [
        Field.of(256, LONG, layout.width),
        Field.of(257, LONG, layout.height),
        Field.of(258, SHORT, *[layout.bits] * layout.channels),
        Field.of(259, SHORT, deflate),
        Field.of(262, SHORT, gray if layout.channels < 3 else rgb),
        Field.of(274, SHORT, 1),
        Field.of(277, SHORT, layout.channels),
        Field.of(278, LONG, min(layout.height, _rows_at_once(layout))),
        Field.of(284, SHORT, 1),
        Field.of(317, SHORT, horizontal_predictor),
    ]
    return fields + ([Field.of(338, SHORT, not_premultiplied)] if layout.channels in (2, 4) else [])


def _described(metadata: Metadata, position: int) -> tuple[bytes, list[Field]]:
    """What carries the metadata: bytes for `position` of the file, and fields of the main directory."""
    block, fields = fields_for_tiff(metadata.exif, position) if metadata.exif else (b"", [])
    block += b"\0" * (len(block) % 2)
    if metadata.xmp:
        fields.append(Field(700, BYTE, len(metadata.xmp), metadata.xmp))
    if metadata.icc:
        fields.append(Field(34675, UNDEFINED, len(metadata.icc), metadata.icc))
    return block, fields


def _rows_at_once(layout: Layout) -> int:
    return max(1, _BAND_BYTES // layout.row_bytes)


def _regroup(bands: Iterable[Pixels], layout: Layout) -> Iterator[Pixels]:
    """The same rows in bands of `_rows_at_once`; the last one may have fewer."""
    size = _rows_at_once(layout)
    kept: Pixels | None = None
    for band in bands:
        start = 0
        if kept is not None:
            start = min(size - len(kept), len(band))
            kept = np.concatenate([kept, band[:start]])
            if len(kept) < size:
                continue
            yield kept
            kept = None
        whole = start + (len(band) - start) // size * size
        for begin in range(start, whole, size):
            yield band[begin : begin + size]
        if whole < len(band):
            kept = band[whole:].copy()  # the next band may take its place
    if kept is not None:
        yield kept


def _rgb(band: npt.NDArray[Any], layout: Layout) -> npt.NDArray[Any]:
    """The rows (rows, width * channels) with RGB for BGR."""
    if layout.channels >= 3:
        band = band[:, :, [2, 1, 0, 3]] if layout.channels == 4 else band[:, :, ::-1]
    return np.ascontiguousarray(band).reshape(len(band), -1)


def _horizontal_differences(rows: Pixels, step: int, out: Pixels) -> None:
    """Each sample minus the one `step` before it in its row, modulo its range."""
    out[:, :step] = rows[:, :step]
    np.subtract(rows[:, step:], rows[:, :-step], out=out[:, step:])


def _png_chunk(file: BinaryIO, kind: bytes, content: bytes) -> None:
    if kind == b"IDAT" and not content:
        return  # the compressor kept this band for later
    checksum = zlib.crc32(content, zlib.crc32(kind))
    file.write(struct.pack(">I4s", len(content), kind))
    file.write(content)
    file.write(struct.pack(">I", checksum))
