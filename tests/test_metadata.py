"""EXIF, XMP and colour profiles from one file to another. OpenCV 5 reads them back, which does not share our code."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from rsd_edge.stream.encoders import Layout
from rsd_edge.stream.headers import parse_header
from rsd_edge.stream.metadata import Metadata
from rsd_edge.stream.png_chunks import png_metadata
from rsd_edge.stream.results import plan_result
from rsd_edge.stream.tiff import Directory, TiffError, open_tiff

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
MAKE, ORIENTATION, EXIF, GPS, EXPOSURE, PIXEL_WIDTH, LATITUDE = 271, 274, 34665, 34853, 33434, 40962, 1
READERS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WebP"}


def profile(colours: bytes = b"RGB ", size: int = 200) -> bytes:
    """The header of a display profile, without tables. libpng checks the illuminant, and dislikes what packs well."""
    illuminant = struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    start = struct.pack(">I8s4s4s4s", size, bytes(8), b"mntr", colours, b"XYZ ") + bytes(12) + b"acsp" + bytes(28)
    body = np.random.default_rng(0).bytes(size - 132)
    return start + illuminant + bytes(48) + struct.pack(">I", 0) + body


def exif(order: str = "<", orientation: int = 6, width: int = 34) -> bytes:
    """Maker, orientation, a thumbnail directory, exposure time, width and the hemisphere."""

    def directory(*entries: bytes, following: int = 0) -> bytes:
        return struct.pack(f"{order}H", len(entries)) + b"".join(entries) + struct.pack(f"{order}I", following)

    def entry(tag: int, kind: int, count: int, value: int | bytes) -> bytes:
        if isinstance(value, int):
            value = struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value)
        return struct.pack(f"{order}HHI", tag, kind, count) + value

    main_at, details_at = 8, 8 + 2 + 4 * 12 + 4
    gps_at = details_at + 2 + 2 * 12 + 4
    values_at = gps_at + 2 + 12 + 4
    main = directory(
        entry(MAKE, 2, 6, values_at),
        entry(ORIENTATION, 3, 1, orientation),
        entry(EXIF, 4, 1, details_at),
        entry(GPS, 4, 1, gps_at),
        following=gps_at,
    )
    details = directory(entry(EXPOSURE, 5, 1, values_at + 6), entry(PIXEL_WIDTH, 3, 1, width))
    gps = directory(entry(LATITUDE, 2, 2, b"N\0\0\0"))
    values = b"Maker\0" + struct.pack(f"{order}II", 1, 125)
    header = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, main_at)
    return header + main + details + gps + values


def check_exif(data: bytes, width: int) -> None:
    main = open_tiff(data)
    details = Directory(data, main.order, main.number(EXIF, 0))
    gps = Directory(data, main.order, main.number(GPS, 0))
    assert main.raw(MAKE) == b"Maker\0"
    assert struct.unpack(f"{main.order}II", details.raw(EXPOSURE)) == (1, 125)
    assert details.number(PIXEL_WIDTH, 0) == width
    assert gps.raw(LATITUDE) == b"N\0"


def written(path: Path, image: np.ndarray, metadata: Metadata) -> bytes:
    plan = plan_result(path, Layout.of(image), metadata)
    assert plan.notes == ()
    plan.write([image])
    return path.read_bytes()


COLOUR = np.random.default_rng(0).integers(0, 256, (21, 34, 3)).astype(np.uint8)
CLEAR = np.dstack([COLOUR, COLOUR[..., :1]])


@pytest.mark.skipif(not hasattr(cv2, "imdecodeWithMetadata"), reason="needs OpenCV 5")
@pytest.mark.parametrize("image", [COLOUR, CLEAR, COLOUR[..., 0]], ids=["colour", "clear", "gray"])
@pytest.mark.parametrize("suffix", READERS)
def test_another_reader_finds_everything(tmp_path: Path, suffix: str, image: np.ndarray) -> None:
    if suffix == ".jpg" and image is CLEAR:
        image = COLOUR
    icc = profile(b"GRAY" if image.ndim == 2 and suffix != ".webp" else b"RGB ")
    data = written(tmp_path / f"a{suffix}", image, Metadata(exif(), XMP, icc))
    pixels, kinds, contents = cv2.imdecodeWithMetadata(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    found = {int(kind): content.tobytes() for kind, content in zip(kinds, contents, strict=True)}
    assert pixels.shape[:2] == (21, 34)
    assert exif() in found[cv2.IMAGE_METADATA_EXIF]
    assert found[cv2.IMAGE_METADATA_XMP].removesuffix(b"\0").endswith(XMP)
    assert found[cv2.IMAGE_METADATA_ICCP] == icc


@pytest.mark.parametrize("suffix", READERS)
def test_metadata_come_back_unchanged(tmp_path: Path, suffix: str) -> None:
    metadata = Metadata(exif(), XMP, profile())
    assert parse_header(written(tmp_path / f"a{suffix}", COLOUR, metadata)).metadata == metadata


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_keeps_what_exif_says_in_directories_of_its_own(tmp_path: Path, order: str) -> None:
    data = written(tmp_path / "a.tif", COLOUR, Metadata(exif(order), XMP, profile()))
    check_exif(data, 34)
    header = parse_header(data)
    assert (header.metadata.xmp, header.metadata.icc, header.metadata.orientation) == (XMP, profile(), 1)
    check_exif(header.metadata.exif, 34)  # and made of it again


def test_pillow_reads_our_tiff(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    deep = CLEAR[..., :1].astype(np.uint16)[..., 0] * 257
    for name, image in {"colour": COLOUR, "clear": CLEAR, "half": CLEAR[..., 2:], "deep": deep}.items():
        plan_result(tmp_path / f"{name}.tif", Layout.of(image), Metadata(exif(), XMP)).write([image])
        with pillow.open(tmp_path / f"{name}.tif") as read:
            pixels, tags = np.asarray(read), read.getexif()
        order = {"colour": [2, 1, 0], "clear": [2, 1, 0, 3], "half": [0, 0, 0, 1]}.get(name)
        expected = image if order is None else image[..., order]
        np.testing.assert_array_equal(pixels, expected)
        assert (tags[MAKE], tags.get_ifd(EXIF)[EXPOSURE], tags.get_ifd(GPS)[LATITUDE]) == ("Maker", 1 / 125, "N")


@pytest.mark.parametrize("order", ["<", ">"])
def test_metadata_of_the_result(order: str) -> None:
    found = Metadata(exif(order), XMP, profile()).for_result(340, 210)
    assert found.orientation == 1
    assert b'tiff:Orientation="1"' in found.xmp
    assert found.icc == profile()
    assert open_tiff(found.exif).next == 0  # the thumbnail shows the picture as it was
    check_exif(found.exif, 340)
    assert len(found.exif) == len(exif())  # nothing has moved


def test_a_size_that_does_not_fit_stays() -> None:
    check_exif(Metadata(exif(width=7)).for_result(70000, 1).exif, 7)


@pytest.mark.parametrize("text", [b"tiff:Orientation='8'", b"<tiff:Orientation>8</tiff:Orientation>"])
def test_other_spellings_of_xmp_orientation(text: bytes) -> None:
    assert Metadata(xmp=text).for_result(1, 1).xmp == text.replace(b"8", b"1")


@pytest.mark.parametrize(
    ("icc", "gray", "reason"),
    [
        (profile(b"RGB "), True, "it is for RGB and the result is gray"),
        (profile(b"GRAY"), False, "it is for gray and the result is RGB"),
        (profile(b"CMYK"), False, "it is for CMYK and the result is RGB"),
        (profile(b"Lab "), False, "it is for Lab and the result is RGB"),
        (profile()[:100], False, "it is damaged"),
        (profile()[:-1], False, "it is damaged"),
    ],
)
def test_profiles_of_another_kind_are_dropped(icc: bytes, gray: bool, reason: str) -> None:
    kept, notes = Metadata(icc=icc).checked(gray=gray)
    assert kept == Metadata()
    assert notes == (f"ICC profile dropped because {reason}",)


def test_a_gray_result_in_a_format_of_three_channels_takes_an_rgb_profile(tmp_path: Path) -> None:
    gray = Layout(4, 4, 1)
    assert plan_result(tmp_path / "a.webp", gray, Metadata(icc=profile())).metadata.icc == profile()
    assert plan_result(tmp_path / "a.png", gray, Metadata(icc=profile())).metadata.icc == b""


def test_what_jpeg_cannot_hold(tmp_path: Path) -> None:
    large = exif() + bytes(1 << 16)
    plan = plan_result(tmp_path / "a.jpg", Layout(4, 4), Metadata(large, XMP + bytes(1 << 16), profile(size=70000)))
    assert plan.notes == (
        "EXIF dropped because JPEG holds 64 KB of it",
        "XMP dropped because JPEG holds 64 KB of it",
    )
    plan.write([COLOUR[:4, :4]])
    assert parse_header((tmp_path / "a.jpg").read_bytes()).metadata == Metadata(icc=profile(size=70000))  # two segments


def test_extended_xmp_is_left_out_aloud(tmp_path: Path) -> None:
    data = written(tmp_path / "a.jpg", COLOUR, Metadata(xmp=XMP))
    more = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32 + struct.pack(">II", 4, 0) + b"<x/>"
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(more)) + more + data[2:]
    plan = plan_result(tmp_path / "b.png", Layout(4, 4), parse_header(data).metadata.for_result(4, 4))
    assert plan.notes == ("Extended XMP dropped because it is not read",)
    assert plan.metadata == Metadata(xmp=XMP.replace(b"6", b"1"))


def test_damaged_exif_is_dropped_and_said(tmp_path: Path) -> None:
    kept, notes = Metadata(exif=b"nothing of the kind").checked(gray=False)
    assert (kept.exif, notes) == (b"", ("EXIF dropped because it is damaged",))
    beyond = exif().replace(struct.pack("<HHI", EXPOSURE, 5, 1), struct.pack("<HHI", EXPOSURE, 5, 1 << 20))
    assert plan_result(tmp_path / "a.png", Layout(4, 4), Metadata(beyond)).metadata.exif == beyond
    plan = plan_result(tmp_path / "a.tif", Layout(4, 4), Metadata(beyond))
    assert plan.metadata.exif == b""
    assert "EXIF dropped because its directories are damaged" in plan.notes[0]


def test_bmp_holds_no_metadata(tmp_path: Path) -> None:
    plan = plan_result(tmp_path / "a.bmp", Layout(4, 4), Metadata(exif(), b"", profile()))
    assert (plan.metadata, plan.notes) == (Metadata(), ("EXIF, ICC profile dropped, because BMP holds none",))


def test_values_beyond_the_data_are_noticed() -> None:
    data = exif()
    with pytest.raises(TiffError, match="beyond the data"):
        open_tiff(data[:-10]).field(MAKE)
    with pytest.raises(TiffError, match="directory lies beyond"):
        open_tiff(data[:20])
    with pytest.raises(TiffError, match="no TIFF header"):
        open_tiff(b"II*")


def test_one_value_behind_many_entries_is_not_copied_many_times(tmp_path: Path) -> None:
    """3000 entries of a megabyte each."""
    data = exif() + bytes(1 << 20)
    entries = b"".join(struct.pack("<HHII", 50000 + i, 7, 1 << 20, 8) for i in range(3000))
    many = data + struct.pack("<H", 3000) + entries + bytes(4)
    pointer = struct.pack("<HHI", EXIF, 4, 1)
    at = data.index(pointer) + len(pointer)
    many = many[:at] + struct.pack("<I", len(data)) + many[at + 4 :]
    plan = plan_result(tmp_path / "a.tif", Layout(4, 4), Metadata(many))
    assert plan.metadata.exif == b""


@pytest.mark.parametrize("length", [200, 201])
def test_what_comes_behind_a_webp_chunk_of_odd_length_is_found(tmp_path: Path, length: int) -> None:
    metadata = Metadata(exif().ljust(length, b"\0"), XMP, profile(size=length))
    assert len(metadata.exif) == length
    assert parse_header(written(tmp_path / "a.webp", COLOUR, metadata)).metadata == metadata


def test_parts_of_a_profile_may_come_in_any_order(tmp_path: Path) -> None:
    metadata = Metadata(icc=profile(size=70000))
    data = written(tmp_path / "a.jpg", COLOUR, metadata)
    first = data.index(b"\xff\xe2")
    second = first + 2 + struct.unpack_from(">H", data, first + 2)[0]
    end = second + 2 + struct.unpack_from(">H", data, second + 2)[0]
    turned = data[:first] + data[second:end] + data[first:second] + data[end:]
    assert parse_header(turned).metadata == metadata


def test_exif_and_xmp_fill_a_jpeg_segment_to_the_last_byte(tmp_path: Path) -> None:
    most = Metadata(exif().ljust(65527, b"\0"), XMP.ljust(65504))
    assert parse_header(written(tmp_path / "a.jpg", COLOUR, most)).metadata == most
    for more in (Metadata(most.exif + b"\0"), Metadata(xmp=most.xmp + b" ")):
        plan = plan_result(tmp_path / "b.jpg", Layout.of(COLOUR), more)
        assert plan.metadata == Metadata()
        assert len(plan.notes) == 1


def test_a_profile_that_is_cut_off_is_dropped_and_said(tmp_path: Path) -> None:
    packed = zlib.compress(profile())
    assert png_metadata({b"iCCP": b"name\0\0" + packed}) == Metadata(icc=profile())
    assert png_metadata({b"iCCP": b"name\0\0" + packed[:-1]}) == Metadata(unreadable=("ICC profile",))
