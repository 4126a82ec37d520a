"""What is in a file and not carried over is told; what programs say of themselves is not."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_batch import Resolver

from rsd_edge.stream.batch import RunSettings, run_jobs
from rsd_edge.stream.discovery import Job
from rsd_edge.stream.headers import parse_header
from rsd_edge.stream.tiff import open_tiff

PIXELS = np.zeros((4, 5, 3), np.uint8)
VERSION, CAPTION = b"\x1c\x02\x00\x00\x02\x00\x02", b"\x1c\x02\x78\x00\x05Hello"
DOCUMENT, PAGE, IPTC = 269, 285, 33723


def resource(number: int, content: bytes, name: bytes = b"") -> bytes:
    named = bytes([len(name)]) + name + b"\0" * (1 - len(name) % 2)
    return (
        b"8BIM"
        + struct.pack(">H", number)
        + named
        + struct.pack(">I", len(content))
        + content
        + len(content) % 2 * b"\0"
    )


def jpeg(*segments: tuple[int, bytes]) -> bytes:
    data = cv2.imencode(".jpg", PIXELS)[1].tobytes()
    added = (struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content for marker, content in segments)
    return data[:2] + b"".join(added) + data[2:]


def photoshop(content: bytes) -> tuple[int, bytes]:
    return 0xED, b"Photoshop 3.0\0" + content


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    data = cv2.imencode(".png", PIXELS)[1].tobytes()
    added = (struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks)
    return data[:33] + b"".join(added) + data[33:]


def tiff(*fields: tuple[int, int, bytes]) -> bytes:
    """One gray pixel, and fields of (tag, type, four bytes or fewer)."""
    numbers = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 279: 1}
    entries = [struct.pack("<HHII", tag, 4, 1, number) for tag, number in numbers.items()]
    entries += [struct.pack("<HHI4s", tag, kind, len(content), content) for tag, kind, content in sorted(fields)]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 12) + bytes(4) + directory


ODD = resource(0x03ED, b"odd", b"name")
SPLIT = resource(0x0404, VERSION + CAPTION)


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (jpeg(photoshop(ODD + SPLIT)), ("IPTC",)),
        (jpeg(photoshop(ODD + SPLIT[:20]), photoshop(SPLIT[20:])), ("IPTC",)),
        (jpeg((0xFE, b"Our garden"), (0xFE, b"in May")), ("comment",)),
        (jpeg((0xFE, b"Created with love")), ("comment",)),
        (jpeg(photoshop(SPLIT), (0xFE, b"Our garden")), ("IPTC", "comment")),
        (png((b"tEXt", b"Title\0Our garden"), (b"iTXt", b"Author\0\0\0\0\0Me")), ("text",)),
        (png((b"zTXt", b"Comment\0\0" + zlib.compress(b"Our garden"))), ("text",)),
        (png((b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(b"..."))), ("IPTC",)),
        (tiff((IPTC, 7, b"\x1c\x02\x78\0")), ("IPTC",)),
    ],
)
def test_what_is_left_out_is_told(tmp_path: Path, data: bytes, names: tuple[str, ...]) -> None:
    (tmp_path / "a").write_bytes(data)
    job = Job(tmp_path / "a", tmp_path / "b.png")
    (result,) = run_jobs([job], Resolver(), RunSettings())
    assert result.notes == tuple(f"{name} dropped because it is not read" for name in names)
    assert result.read is not None
    assert result.written is not None
    assert result.read["metadata"] == result.written["metadata_dropped"] == list(names)
    (stripped,) = run_jobs([job], Resolver(), RunSettings(strip=True))
    assert stripped.notes == ()


@pytest.mark.parametrize(
    "data",
    [
        jpeg(photoshop(ODD + resource(0x040C, CAPTION) + resource(0x0404, VERSION))),
        jpeg(photoshop(resource(0x0404, CAPTION)[:11]), photoshop(b"")),
        jpeg((0xED, b"Adobe_CM\0" + SPLIT), (0xFE, b"CREATOR: gd-jpeg v1.0"), (0xFE, b" \0")),
        png((b"tEXt", b"Software\0GIMP"), (b"tEXt", b"Comment\0Created with GIMP"), (b"tEXt", b"date:create\0now")),
        png((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>"), (b"zTXt", b"Raw profile type exif\0\0...")),
        tiff((305, 2, b"us\0")),
    ],
)
def test_what_says_nothing_of_the_picture_is_not(data: bytes) -> None:
    assert parse_header(data).metadata.unread == ()


def test_names_of_a_document_and_its_page_are_carried_over() -> None:
    exif = parse_header(tiff((DOCUMENT, 2, b"doc\0"), (PAGE, 2, b"one\0"))).metadata.exif
    main = open_tiff(exif)
    assert (main.raw(DOCUMENT), main.raw(PAGE)) == (b"doc\0", b"one\0")
