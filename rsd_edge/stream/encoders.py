"""Lossless image files written band by band: beside the image, memory holds a few megabytes.

OpenCV encodes to a buffer in memory, which for a large result costs as much again as the result. PNG, TIFF and BMP are
simple enough to be written straight to the file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from rsd_edge.errors import OutputError

Image = npt.NDArray[np.uint8]

_BAND_BYTES = 1 << 21
_LEVEL = 2
"""As fast as OpenCV's PNG encoder and 5 % smaller; level 6 saves 3 % more and takes four times as long."""
_FILTER_SUB = 1
_LARGEST_OFFSET = (1 << 32) - 1


def write_png(file: BinaryIO, image: Image) -> None:
    """Write uint8 (h, w, 3) BGR as an 8-bit RGB PNG."""
    height, width = image.shape[:2]
    file.write(b"\x89PNG\r\n\x1a\n")
    _png_chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    packer = zlib.compressobj(_LEVEL)
    for band in _bands(image):
        rows = np.empty((band.shape[0], 1 + 3 * width), np.uint8)
        rows[:, 0] = _FILTER_SUB
        _horizontal_differences(band, rows[:, 1:])
        _png_chunk(file, b"IDAT", packer.compress(rows.data))
    _png_chunk(file, b"IDAT", packer.flush())
    _png_chunk(file, b"IEND", b"")


def write_bmp(file: BinaryIO, image: Image) -> None:
    """Write uint8 (h, w, 3) BGR as an uncompressed 24-bit BMP. Raises OutputError beyond the format's 4 GB."""
    height, width = image.shape[:2]
    stride = (3 * width + 3) // 4 * 4
    size = 54 + stride * height
    if size > _LARGEST_OFFSET:
        raise OutputError(f"BMP cannot hold {width}x{height} pixels; use .png")
    file.write(struct.pack("<2sIHHI", b"BM", size, 0, 0, 54))
    file.write(struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, stride * height, 2835, 2835, 0, 0))
    for band in _bands(image[::-1]):
        rows = np.zeros((band.shape[0], stride), np.uint8)
        rows[:, : 3 * width] = band.reshape(band.shape[0], -1)
        file.write(rows.data)


def write_tiff(file: BinaryIO, image: Image) -> None:
    """Write uint8 (h, w, 3) BGR as a deflate-compressed 8-bit RGB TIFF. Raises OutputError beyond the format's 4 GB."""
    height, width = image.shape[:2]
    offsets, sizes, rows_per_strip = [], [], 0
    file.write(struct.pack("<2sHI", b"II", 42, 0))
    position = 8
    for band in _bands(image):
        rows = np.empty((band.shape[0], 3 * width), np.uint8)
        _horizontal_differences(band, rows)
        strip = zlib.compress(rows.data, _LEVEL)
        strip += b"\0" * (len(strip) % 2)  # the format wants even offsets
        file.write(strip)
        offsets.append(position)
        sizes.append(len(strip))
        position += len(strip)
        rows_per_strip = max(rows_per_strip, band.shape[0])
    if position + 8 * len(offsets) + 512 > _LARGEST_OFFSET:
        raise OutputError(f"TIFF cannot hold {width}x{height} pixels in 4 GB; use .png")
    file.write(_tiff_directory(position, width, height, rows_per_strip, (offsets, sizes)))
    file.seek(4)
    file.write(struct.pack("<I", position))


def _tiff_directory(
    position: int, width: int, height: int, rows_per_strip: int, strips: tuple[list[int], list[int]]
) -> bytes:
    """The file's only directory, placed at `position`, followed by the values that do not fit into its entries."""
    short, long = (3, "H"), (4, "I")
    deflate, rgb, horizontal_predictor = 8, 2, 2
    entries = [
        (256, long, [width]),
        (257, long, [height]),
        (258, short, [8, 8, 8]),
        (259, short, [deflate]),
        (262, short, [rgb]),
        (273, long, strips[0]),
        (277, short, [3]),
        (278, long, [rows_per_strip]),
        (279, long, strips[1]),
        (284, short, [1]),
        (317, short, [horizontal_predictor]),
    ]
    table, values = struct.pack("<H", len(entries)), b""
    after = position + 2 + 12 * len(entries) + 4
    for tag, (code, letter), numbers in entries:
        packed = struct.pack(f"<{len(numbers)}{letter}", *numbers)
        if len(packed) > 4:
            packed, values = struct.pack("<I", after + len(values)), values + packed + b"\0" * (len(packed) % 4)
        table += struct.pack("<HHI4s", tag, code, len(numbers), packed)
    return table + struct.pack("<I", 0) + values


def _bands(image: Image) -> Iterator[Image]:
    rows = max(1, _BAND_BYTES // (3 * image.shape[1]))
    for start in range(0, image.shape[0], rows):
        yield image[start : start + rows]


def _horizontal_differences(band: Image, out: Image) -> None:
    """RGB bytes of BGR rows, each minus the same channel of the pixel to its left (modulo 256), into (rows, 3w)."""
    rgb = np.ascontiguousarray(band[:, :, ::-1]).reshape(band.shape[0], -1)
    out[:, :3] = rgb[:, :3]
    np.subtract(rgb[:, 3:], rgb[:, :-3], out=out[:, 3:])


def _png_chunk(file: BinaryIO, kind: bytes, content: bytes) -> None:
    if kind == b"IDAT" and not content:
        return  # the compressor kept this band for later
    checksum = zlib.crc32(content, zlib.crc32(kind))
    file.write(struct.pack(">I4s", len(content), kind))
    file.write(content)
    file.write(struct.pack(">I", checksum))
