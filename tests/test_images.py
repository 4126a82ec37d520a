from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from rsd_edge.errors import ImageReadError, OutputError
from rsd_edge.stream import atomic, encoders
from rsd_edge.stream.images import load_image, read_image, write_image

Image = npt.NDArray[np.uint8]

LOSSLESS = [".png", ".bmp", ".tif", ".tiff"]
LOSSY = [".jpg", ".jpeg", ".jpe", ".jfif", ".webp"]
ORIENTATION = 0x0112


def photo(height: int, width: int) -> Image:
    y, x = np.mgrid[:height, :width]
    planes = [128 + 100 * np.sin(x / (5 + c) + c) * np.cos(y / (7 - c)) for c in range(3)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """Insert an EXIF segment with nothing but the orientation."""
    directory = struct.pack("<HHHIHHI", 1, ORIENTATION, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0" + struct.pack("<2sHI", b"II", 42, 8) + directory
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (37, 50), (64, 128)])
@pytest.mark.parametrize("suffix", LOSSLESS)
def test_lossless_formats_give_the_pixels_back(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    path = tmp_path / f"photo{suffix}"
    write_image(path, photo(*size))
    assert np.array_equal(read_image(path), photo(*size))


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_images_of_several_bands(tmp_path: Path, suffix: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "_BAND_BYTES", rows * 3 * 31)
    path = tmp_path / f"photo{suffix}"
    write_image(path, photo(23, 31))
    assert np.array_equal(read_image(path), photo(23, 31))


@pytest.mark.parametrize("suffix", LOSSY)
def test_lossy_formats_are_close(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo{suffix}"
    write_image(path, photo(64, 96))
    error = np.abs(read_image(path).astype(int) - photo(64, 96))
    # Quality 95 quantises smooth waves by a grey level or two; WebP halves the resolution of colour besides.
    assert error.mean() < (2 if suffix != ".webp" else 4)


def test_jpeg_keeps_full_colour_resolution(tmp_path: Path) -> None:
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = (0, 0, 255)
    stripes[:, 1::2] = (255, 0, 0)
    write_image(tmp_path / "stripes.jpg", stripes)
    assert np.abs(read_image(tmp_path / "stripes.jpg").astype(int) - stripes).mean() < 8  # 4:2:0 would give about 70


@pytest.mark.parametrize("suffix", [*LOSSLESS, *LOSSY])
def test_paths_beyond_ascii(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "фото 写真 ñ"
    folder.mkdir()
    path = folder / f"日没 ü'\"{suffix}"
    write_image(path, photo(20, 30))
    assert read_image(path).shape == (20, 30, 3)


def test_a_view_of_another_image_can_be_written(tmp_path: Path) -> None:
    view = photo(40, 60)[::-2, 5:50:3]
    for suffix in LOSSLESS:
        write_image(tmp_path / f"view{suffix}", view)
        assert np.array_equal(read_image(tmp_path / f"view{suffix}"), view)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, np.rot90),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, upright: Callable[[Image], Image]) -> None:
    jpeg = cv2.imencode(".jpg", photo(24, 40))[1].tobytes()
    plain, turned = tmp_path / "plain.jpg", tmp_path / "turned.jpg"
    plain.write_bytes(jpeg)
    turned.write_bytes(with_orientation(jpeg, orientation))
    assert np.array_equal(read_image(turned), upright(read_image(plain)))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_gray_becomes_three_equal_channels(tmp_path: Path, suffix: str) -> None:
    gray = photo(20, 30)[:, :, 0]
    path = tmp_path / f"gray{suffix}"
    path.write_bytes(cv2.imencode(suffix, gray)[1].tobytes())
    assert np.array_equal(read_image(path), np.repeat(gray[:, :, None], 3, axis=2))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_and_transparency_are_read(tmp_path: Path, suffix: str) -> None:
    deep = np.dstack([photo(20, 30), photo(20, 30)[:, :, :1]]).astype(np.uint16) * 257
    path = tmp_path / f"deep{suffix}"
    path.write_bytes(cv2.imencode(suffix, deep)[1].tobytes())
    loaded = load_image(path)
    assert np.array_equal(loaded.pixels, deep[..., :3])
    assert loaded.alpha is not None
    assert np.array_equal(loaded.alpha, deep[..., 3])
    assert (loaded.bits, loaded.mode, loaded.losses()) == (16, "RGB", ())
    assert np.array_equal(read_image(path), photo(20, 30))


def test_plain_images_lose_nothing(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", photo(20, 30))
    assert load_image(tmp_path / "a.png").losses() == ()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match=r"gone\.png does not exist; check the spelling"):
        read_image(tmp_path / "gone.png")
    (tmp_path / "link.png").symlink_to("gone.png")
    with pytest.raises(ImageReadError, match=r"link\.png is a link to gone\.png, which leads nowhere; mend or remove"):
        read_image(tmp_path / "link.png")


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="is a folder, not an image"):
        read_image(tmp_path)


def test_pipe_instead_of_a_file(tmp_path: Path) -> None:
    """Opening it would wait for a writer for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageReadError, match="is a pipe or a device"):
        read_image(tmp_path / "pipe.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; copy or download it again"),
        (b"no pixels in here", "is not an image; convert it to PNG, JPEG"),
        (b"GIF89a" + bytes(100), "is a GIF file; if it moves, extract its frames first"),
        (b"P6\n2 2\n255\n" + bytes(12), "is a PPM file; convert it to PNG, JPEG"),
        (b"P5 2 2 255 " + bytes(12), "is a PGM file; convert it to PNG, JPEG"),
        (b"P60 is a page", "is not an image; convert it to PNG, JPEG"),
    ],
)
def test_files_that_are_no_image(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "odd.png"
    path.write_bytes(content)
    with pytest.raises(ImageReadError, match=rf"odd\.png {message}"):
        read_image(path)


def test_a_format_without_a_signature_is_told_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "odd.tga"
    path.write_bytes(bytes(2) + b"\x02" + bytes(60))
    with pytest.raises(ImageReadError, match=r"odd\.tga is a TGA file; convert it to PNG, JPEG"):
        read_image(path)


@pytest.mark.parametrize("suffix", [*LOSSLESS, *LOSSY])
def test_truncated_files_are_refused_quietly(tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"cut{suffix}"
    write_image(path, photo(64, 96))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ImageReadError, match="is truncated; copy or download it again"):
        read_image(path)
    assert capfd.readouterr() == ("", "")


def test_what_only_the_decoder_notices_is_refused_quietly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.bmp"
    write_image(path, photo(8, 8))
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, 28, 7)  # bits per pixel that no BMP has
    path.write_bytes(data)
    with pytest.raises(ImageReadError, match=r"cannot be decoded \(its BMP data"):
        read_image(path)
    assert capfd.readouterr() == ("", "")


def test_decompression_bomb_is_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60000, 50000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)

    def decode(*_: object) -> None:
        raise AssertionError("the bomb went off")

    monkeypatch.setattr(cv2, "imdecode", decode)
    with pytest.raises(ImageReadError, match=r"60000x50000 = 3000000000 pixels, more than the limit of 50000000;"):
        read_image(path)


def test_pixel_limit_is_inclusive(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", photo(20, 30))
    assert read_image(tmp_path / "a.png", max_pixels=600).shape == (20, 30, 3)
    with pytest.raises(ImageReadError, match="30x20"):
        read_image(tmp_path / "a.png", max_pixels=599)


@pytest.mark.parametrize("name", ["a.gif", "a", "a.png.txt"])
def test_formats_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"is not an output format; use one of \.png"):
        write_image(tmp_path / name, photo(4, 4))


@pytest.mark.parametrize(("suffix", "longest"), [(".jpg", 65500), (".webp", 16383)])
def test_formats_that_are_too_small(tmp_path: Path, suffix: str, longest: int) -> None:
    strip = np.zeros((1, longest + 1, 3), np.uint8)
    with pytest.raises(OutputError, match=rf"{longest + 1}x1 is beyond the {longest} pixels of {suffix}; use \.png"):
        write_image(tmp_path / f"strip{suffix}", strip)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"cannot write into .*file: it is a file; choose a folder"):
        write_image(tmp_path / "file" / "a.png", photo(4, 4))


@pytest.mark.parametrize("suffix", [*LOSSLESS, *LOSSY])
def test_full_disk_leaves_what_was_there(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"the old file")

    class FullDisk:
        """Takes 100 bytes."""

        def __init__(self, file: BinaryIO) -> None:
            self._file = file

        def __enter__(self) -> FullDisk:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def write(self, data: bytes) -> int:
            if self._file.tell() + len(data) > 100:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self._file.write(data)

        def seek(self, position: int) -> int:
            return self._file.seek(position)

    def open_full(*arguments: Any) -> FullDisk:
        return FullDisk(open(*arguments))

    monkeypatch.setattr(atomic, "open", open_full, raising=False)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    with pytest.raises(OutputError, match="the disk is full; free some space") as caught:
        write_image(path, noise)
    assert atomic.is_disk_full(caught.value)
    assert path.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def write_half() -> None:
        with atomic.atomic_file(tmp_path / "a.bin") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_results_have_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_image(tmp_path / "a.png", photo(4, 4))
    finally:
        os.umask(before)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o644


def test_large_png_needs_no_second_copy(tmp_path: Path) -> None:
    """The encoder's own memory, as Python sees it, is a few bands whatever the image."""
    import tracemalloc

    image = np.tile(photo(256, 256), (8, 8, 1))
    tracemalloc.start()
    try:
        write_image(tmp_path / "a.png", image)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A band is 2 MiB: its RGB copy, its filtered rows, its compressed bytes. The image has 12.6 MB.
    assert peak < 8e6


def png_with(path: Path, *chunks: tuple[bytes, bytes]) -> Path:
    """A picture with these chunks behind its header."""
    plain = cv2.imencode(".png", photo(4, 5))[1].tobytes()
    made = b""
    for kind, data in chunks:
        made += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(plain[:33] + made + plain[33:])
    return path


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("above", [0, 0x8000])
def test_a_gray_value_may_stand_for_transparency(tmp_path: Path, bits: int, above: int) -> None:
    """Bits above those that a pixel has mean nothing; of 16 there are none."""
    value, most = 1, 2**bits - 1
    row = {1: b"\x40", 2: b"\x10", 4: b"\x01\x00", 8: b"\x00\x01\x00\x00", 16: bytes(3) + b"\x01" + bytes(4)}[bits]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 4, 2, bits, 0, 0, 0, 0)),
        (b"tRNS", struct.pack(">H", value | (above if bits < 16 else 0))),
        (b"IDAT", zlib.compress((b"\0" + row) * 2)),
        (b"IEND", b""),
    ]
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    (tmp_path / "a.png").write_bytes(content)
    loaded = load_image(tmp_path / "a.png")
    full = 65535 if bits == 16 else 255
    assert loaded.alpha is not None
    assert loaded.alpha.tolist() == 2 * [[full, 0, full, full]]
    assert loaded.pixels[0, :, 0].tolist() == [0, value * (1 if bits == 16 else 255 // most), 0, 0]
    assert loaded.gray
    assert not any("transparency" in loss for loss in loaded.losses())


def test_print_sizes_and_gamma_are_left_out_aloud(tmp_path: Path) -> None:
    dpi, gamma = (b"pHYs", struct.pack(">IIB", 11811, 11811, 1)), (b"gAMA", struct.pack(">I", 100_000))
    usual = (b"pHYs", struct.pack(">IIB", 2835, 2835, 1)), (b"gAMA", struct.pack(">I", 45_455))
    path = tmp_path / "a.png"
    assert load_image(png_with(path, dpi, gamma)).losses() == (
        "its 300 DPI left out",
        "its gamma of 1 left out: colours are taken for sRGB",
    )
    assert load_image(path).losses(strip=True) == ("its gamma of 1 left out: colours are taken for sRGB",)
    assert load_image(png_with(path, *usual)).losses() == ()
    assert load_image(png_with(path, gamma, (b"sRGB", b"\0"))).losses() == ()
    jpeg = cv2.imencode(".jpg", photo(8, 8))[1].tobytes()
    assert jpeg[6:11] == b"JFIF\0"
    for unit, value, words in ((1, 300, ("its 300 DPI left out",)), (2, 118, ("its 300 DPI left out",)), (0, 300, ())):
        path.write_bytes(jpeg[:13] + struct.pack(">BHH", unit, value, value) + jpeg[18:])
        assert load_image(path).losses() == words
    path.write_bytes(with_orientation(path.read_bytes(), 1))  # EXIF goes along, and is where cameras put it
    assert load_image(path).losses() == ()


@pytest.mark.parametrize(("unit", "value"), [(2, 300), (3, 118)])
def test_the_resolution_of_a_tiff_is_left_out_aloud(tmp_path: Path, unit: int, value: int) -> None:
    options = [cv2.IMWRITE_TIFF_RESUNIT, unit, cv2.IMWRITE_TIFF_XDPI, value, cv2.IMWRITE_TIFF_YDPI, value]
    (tmp_path / "a.tif").write_bytes(cv2.imencode(".tif", photo(4, 5), options)[1].tobytes())
    assert load_image(tmp_path / "a.tif").losses() == ("its 300 DPI left out",)


@pytest.mark.parametrize("bits", [8, 16])
def test_gray_with_alpha_can_be_read_back_from_tiff(tmp_path: Path, bits: int) -> None:
    kind = np.uint8 if bits == 8 else np.uint16
    gray = (np.arange(40).reshape(5, 8) * 6).astype(kind)
    alpha = np.full_like(gray, np.iinfo(kind).max)
    write_image(tmp_path / "a.tif", np.dstack([gray, alpha]))
    loaded = load_image(tmp_path / "a.tif")
    assert loaded.alpha is not None
    np.testing.assert_array_equal(loaded.alpha, alpha)
    np.testing.assert_array_equal(loaded.pixels, np.dstack([gray] * 3))


def test_colours_above_their_alpha_do_not_wrap(tmp_path: Path) -> None:
    pixels = bytes((200, 50, 100, 100))
    numbers = {256: 1, 257: 1, 258: 8, 259: 1, 262: 2, 273: 8, 277: 4, 279: 4, 338: 1}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, number) for tag, number in numbers.items())
    directory = struct.pack("<H", len(numbers)) + table + bytes(4)
    (tmp_path / "a.tif").write_bytes(struct.pack("<2sHI", b"II", 42, 12) + pixels + directory)
    assert load_image(tmp_path / "a.tif").pixels.tolist() == [[[255, 128, 255]]]
