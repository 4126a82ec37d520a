from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from rsd_edge.stream.headers import HeaderError, ImageHeader, parse_header, sniff_format

COLOUR = np.random.default_rng(0).integers(0, 256, (21, 34, 3)).astype(np.uint8)
ALPHA = np.dstack([COLOUR, COLOUR[:, :, :1]])

JPEG_PROGRESSIVE = (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
JPEG_RESTART = (cv2.IMWRITE_JPEG_RST_INTERVAL, 1)
WEBP_LOSSY = (cv2.IMWRITE_WEBP_QUALITY, 80)
TIFF_RAW = (cv2.IMWRITE_TIFF_COMPRESSION, 1)

KINDS = {
    "png": (".png", (), "PNG"),
    "jpeg": (".jpg", (), "JPEG"),
    "progressive": (".jpg", JPEG_PROGRESSIVE, "JPEG"),
    "restart markers": (".jpg", JPEG_RESTART, "JPEG"),
    "lossless webp": (".webp", (), "WebP"),
    "lossy webp": (".webp", WEBP_LOSSY, "WebP"),
    "bmp": (".bmp", (), "BMP"),
    "tiff": (".tif", (), "TIFF"),
    "raw tiff": (".tif", TIFF_RAW, "TIFF"),
}


def encode(image: np.ndarray, suffix: str, options: tuple[int, ...] = ()) -> bytes:
    done, data = cv2.imencode(suffix, image, list(options))
    assert done
    return data.tobytes()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("kind", KINDS)
def test_size_of_every_format(kind: str) -> None:
    suffix, options, name = KINDS[kind]
    header = parse_header(encode(COLOUR, suffix, options))
    assert (header.format, header.width, header.height) == (name, 34, 21)
    assert (header.bits, header.alpha, header.more_pages) == (8, False, False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [0.999, 0.9, 0.5, 0.2, 0.05])
def test_every_truncation_is_noticed(kind: str, kept: float) -> None:
    suffix, options, _ = KINDS[kind]
    data = encode(COLOUR, suffix, options)
    with pytest.raises(HeaderError, match="is truncated"):
        parse_header(data[: int(len(data) * kept)])


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_after_the_picture_do_no_harm(kind: str) -> None:
    suffix, options, name = KINDS[kind]
    assert parse_header(encode(COLOUR, suffix, options) + b"appended by a phone").format == name


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_alpha_is_seen(suffix: str) -> None:
    assert parse_header(encode(ALPHA, suffix)).alpha


def test_lossy_webp_with_alpha() -> None:
    header = parse_header(encode(ALPHA, ".webp", WEBP_LOSSY))
    assert header == ImageHeader("WebP", 34, 21, alpha=True)


def test_palette_transparency_is_alpha() -> None:
    data = encode(COLOUR, ".png")
    assert parse_header(data[:33] + png_chunk(b"tRNS", b"\0") + data[33:]).alpha


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_seen(suffix: str) -> None:
    assert parse_header(encode(COLOUR.astype(np.uint16) * 257, suffix)).bits == 16


def test_an_animated_png_is_named() -> None:
    data = encode(COLOUR, ".png")

    def with_frames(count: int) -> bytes:
        return data[:33] + png_chunk(b"acTL", struct.pack(">II", count, 0)) + data[33:]

    assert parse_header(with_frames(1)).width == 34
    with pytest.raises(HeaderError, match="is an animated PNG file") as caught:
        parse_header(with_frames(2))
    assert "extract its frames first" in caught.value.cure


def test_a_second_tiff_page_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "two.tif"
    assert cv2.imwritemulti(str(file), [COLOUR, COLOUR])
    assert parse_header(file.read_bytes()).more_pages


def test_big_endian_tiff() -> None:
    pixels = bytes(3 * 5)
    entries = [(256, 3, 1, 5 << 16), (257, 3, 1, 1 << 16), (273, 4, 1, 8), (279, 4, 1, len(pixels))]
    table = b"".join(struct.pack(">HHII", *entry) for entry in entries)
    directory = struct.pack(">H", len(entries)) + table + struct.pack(">I", 0)
    data = struct.pack(">2sHI", b"MM", 42, 8 + len(pixels)) + pixels + directory
    assert parse_header(data) == ImageHeader("TIFF", 5, 1, bits=1, gray=True)
    with pytest.raises(HeaderError, match="truncated"):
        parse_header(data.replace(struct.pack(">HHII", *entries[3]), struct.pack(">HHII", 279, 4, 1, 10**6)))


@pytest.mark.parametrize("subsampling", [(), (1, 1), (2, 1), (2, 2), (4, 4)])
def test_pixels_of_a_tiff_may_share_their_colours(subsampling: tuple[int, ...]) -> None:
    """8x8 pixels of YCbCr, of which blocks of 2x2 share both values of colour where nothing else is said."""

    def tiff(stored: int) -> bytes:
        numbers = {256: 8, 257: 8, 258: 8, 259: 1, 262: 6, 277: 3, 278: 8}
        entries = [(tag, 3, 1, number) for tag, number in numbers.items()] + [(273, 4, 1, 8), (279, 4, 1, stored)]
        if subsampling:
            entries.append((530, 3, 2, subsampling[0] | subsampling[1] << 16))
        table = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
        directory = struct.pack("<H", len(entries)) + table + struct.pack("<I", 0)
        return struct.pack("<2sHI", b"II", 42, 8 + stored) + bytes(stored) + directory

    across, down = subsampling or (2, 2)
    size = 64 // (across * down) * (across * down + 2)
    assert parse_header(tiff(size)) == ImageHeader("TIFF", 8, 8)
    with pytest.raises(HeaderError, match="truncated"):
        parse_header(tiff(size - 1))


def test_float_tiff_is_named() -> None:
    with pytest.raises(HeaderError, match="floating-point"):
        # Raw, because OpenCV 4 otherwise writes the logarithms of the values, as integers.
        parse_header(encode(COLOUR.astype(np.float32), ".tif", TIFF_RAW))


def test_bmp_stored_from_top_to_bottom() -> None:
    data = bytearray(encode(COLOUR, ".bmp"))
    struct.pack_into("<i", data, 22, -21)
    assert parse_header(bytes(data)).height == 21


def test_old_bmp_header() -> None:
    data = struct.pack("<2sIHHI", b"BM", 26 + 24, 0, 0, 26) + struct.pack("<IHHHH", 12, 5, 1, 1, 24) + bytes(24)
    assert parse_header(data) == ImageHeader("BMP", 5, 1)


def test_damaged_png_is_noticed() -> None:
    data = bytearray(encode(COLOUR, ".png"))
    data[60] ^= 1
    with pytest.raises(HeaderError, match="checksum"):
        parse_header(bytes(data))


def test_a_thumbnail_inside_a_jpeg_is_not_its_picture() -> None:
    inner = encode(COLOUR[:8, :8], ".jpg")
    data = encode(COLOUR, ".jpg")
    whole = data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(inner)) + inner + data[2:]
    assert parse_header(whole).width == 34


def test_jpeg_without_a_picture() -> None:
    with pytest.raises(HeaderError, match="holds no picture"):
        parse_header(b"\xff\xd8\xff\xd9")


@pytest.mark.parametrize("make", [lambda data: b"", lambda data: b"plain text " * 9, lambda data: data[::-1]])
def test_what_is_no_image(make: Callable[[bytes], bytes]) -> None:
    with pytest.raises(HeaderError, match="is not an image"):
        parse_header(make(encode(COLOUR, ".png")))


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"GIF89a", "GIF"),
        (b"\0\0\0\x20ftypavif", "AVIF"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"8BPS\0\1", "PSD"),
        (b"\0\0\0\x20ftypisom", "video"),
        (b"RIFF\0\0\0\0AVI LIST", "video"),
        (b"\x1a\x45\xdf\xa3", "video"),
    ],
)
def test_other_formats_are_named(start: bytes, name: str) -> None:
    assert sniff_format(start.ljust(32, b"\0")) == name
    with pytest.raises(HeaderError, match=f"is a {name} file"):
        parse_header(start.ljust(200, b"\0"))


def test_a_size_of_nothing_is_damage() -> None:
    data = bytearray(encode(COLOUR, ".bmp"))
    struct.pack_into("<i", data, 18, 0)
    with pytest.raises(HeaderError, match="0x21"):
        parse_header(bytes(data))


def test_tiles_beyond_the_end_of_a_tiff_are_missing() -> None:
    def tiff(start: int) -> bytes:
        numbers = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 322: 16, 323: 16, 324: start, 325: 256}
        table = b"".join(struct.pack("<HHII", tag, 4, 1, number) for tag, number in numbers.items())
        return struct.pack("<2sHI", b"II", 42, 264) + bytes(256) + struct.pack("<H", len(numbers)) + table + bytes(4)

    end = len(tiff(8))
    assert parse_header(tiff(end - 256)) == ImageHeader("TIFF", 16, 16, gray=True)
    with pytest.raises(HeaderError, match="truncated"):
        parse_header(tiff(end - 255))
