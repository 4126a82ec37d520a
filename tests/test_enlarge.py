"""What becomes of gray, transparency, palettes and 16 bits on the way from a file to its result."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from rsd_edge import SuperResolver
from rsd_edge.errors import ImageReadError, OutputError
from rsd_edge.resample import AreaReduction, Bands, shrink
from rsd_edge.stream import encoders
from rsd_edge.stream.encoders import Layout
from rsd_edge.stream.enlarge import enlarge, enlarge_rows, plan_enlarged, spread_colours
from rsd_edge.stream.images import load_image, read_image, write_image
from rsd_edge.stream.results import fit_band, plan_result

Photo = Callable[[int, int], np.ndarray]
LOSSLESS = [".png", ".tif", ".bmp"]


class Bicubic:
    """Stands for a resolver; gives bands of five rows."""

    def bands(self, image_bgr: np.ndarray, *, size: tuple[int, int] | None = None, **_: object) -> Bands:
        assert size is not None
        whole = cv2.resize(image_bgr, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
        out = np.empty((size[1], size[0], 3), image_bgr.dtype)
        shrink(whole, out)
        for top in range(0, len(out), 5):
            yield out[top : top + 5]


def result(source: Path, target: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """The decoded file that an image file becomes, as it is stored."""
    loaded = load_image(source)
    plan = plan_enlarged(loaded, size or (4 * loaded.size[0], 4 * loaded.size[1]), target)
    enlarge(loaded, plan, Bicubic())
    return cv2.imdecode(np.frombuffer(target.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)


def disc(dtype: type = np.uint8) -> np.ndarray:
    """A soft orange disc on black that is wholly transparent."""
    y, x = np.mgrid[:40, :50]
    alpha = np.clip(18 - np.hypot(y - 20, x - 25), 0, 4) / 4
    image = np.zeros((40, 50, 4))
    image[alpha > 0] = (0.2, 0.5, 1, 0)
    image[..., 3] = alpha
    return np.rint(image * np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize("suffix", [*LOSSLESS, ".jpg"])
def test_gray_stays_gray(tmp_path: Path, photo: Photo, suffix: str) -> None:
    gray = photo(30, 40)[..., 1]
    write_image(tmp_path / "a.png", gray)
    assert load_image(tmp_path / "a.png").mode == "gray"
    made = result(tmp_path / "a.png", tmp_path / f"b{suffix}")
    assert (made.shape, made.dtype) == ((120, 160), np.uint8)
    expected = cv2.resize(gray, (160, 120), interpolation=cv2.INTER_CUBIC)
    assert np.abs(made.astype(int) - expected).mean() < (2 if suffix == ".jpg" else 0.01)


@pytest.mark.parametrize("channels", [1, 2])
def test_gray_of_one_column_in_three_channels(tmp_path: Path, channels: int) -> None:
    image = np.array([[[10, 255]], [[90, 128]], [[200, 1]]], np.uint8)[..., :channels]
    pixels = image[..., 0] if channels == 1 else image
    found = fit_band(pixels, Layout(1, 3, channels), Layout(1, 3, channels + 2))
    np.testing.assert_array_equal(found, image[..., [0, 0, 0, 1][: channels + 2]])
    plan_result(tmp_path / "a.webp", Layout.of(pixels)).write([pixels])
    assert load_image(tmp_path / "a.webp").size == (1, 3)


def test_gray_through_a_network_is_its_luma(tmp_path: Path, photo: Photo, toy_bundle: Path) -> None:
    write_image(tmp_path / "a.png", photo(30, 40)[..., 1])
    loaded = load_image(tmp_path / "a.png")
    with SuperResolver.load(toy_bundle, threads=1) as resolver:
        coloured = resolver(loaded.pixels)
        enlarge(loaded, plan_enlarged(loaded, (160, 120), tmp_path / "b.png"), resolver)
    luma = cv2.cvtColor(coloured, cv2.COLOR_BGR2GRAY)
    assert np.array_equal(read_image(tmp_path / "b.png")[..., 0], luma)
    assert not np.array_equal(luma, coloured[..., 0])  # the network colours gray


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_stay_sixteen(tmp_path: Path, suffix: str, channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 65536, (20, 30, channels)).astype(np.uint16)
    image = image[..., 0] if channels == 1 else image
    write_image(tmp_path / "a.png", image)
    made = result(tmp_path / "a.png", tmp_path / f"b{suffix}")
    expected = cv2.resize(image, (120, 80), interpolation=cv2.INTER_CUBIC)
    assert (made.dtype, made.shape) == (np.uint16, expected.shape)
    assert np.abs(made.astype(int) - expected)[..., -1].max() <= 1  # gray is weighed of three equal channels


@pytest.mark.parametrize(("suffix", "name"), [(".jpg", "JPEG"), (".webp", "WebP"), (".bmp", "BMP")])
def test_formats_of_eight_bits_say_so(tmp_path: Path, photo: Photo, suffix: str, name: str) -> None:
    write_image(tmp_path / "a.png", photo(30, 40).astype(np.uint16) * 257)
    plan = plan_enlarged(load_image(tmp_path / "a.png"), (160, 120), tmp_path / f"b{suffix}")
    assert plan.notes == (f"16 bits per channel reduced to 8, because {name} holds no more",)
    made = result(tmp_path / "a.png", tmp_path / f"b{suffix}")
    assert made.dtype == np.uint8
    # Of eight-bit pixels the same enlargement, but for the rounding of every one and what the lossy formats add.
    expected = cv2.resize(photo(30, 40), (160, 120), interpolation=cv2.INTER_CUBIC)
    assert np.abs(made.astype(int) - expected).mean() < (5 if suffix != ".bmp" else 0.6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparency_is_kept_without_a_halo(tmp_path: Path, dtype: type) -> None:
    source = disc(dtype)
    write_image(tmp_path / "a.png", source)
    made = result(tmp_path / "a.png", tmp_path / "b.png")
    assert made.dtype == dtype
    np.testing.assert_array_equal(made[..., 3], cv2.resize(source[..., 3], (200, 160), interpolation=cv2.INTER_CUBIC))
    assert made[..., 3].min() == 0
    assert made[..., 3].max() == np.iinfo(dtype).max  # bicubic overshoots; it is clipped, not wrapped round
    visible = made[made[..., 3] > 0]
    orange = source[source[..., 3] > 0][0]
    # The colour is the same wherever anything is seen. Mixed with the black beside it, it would be half as bright.
    assert (visible[:, :3] == orange[:3]).all()


def test_transparency_of_gray(tmp_path: Path) -> None:
    pair = disc()[..., 2:]
    write_image(tmp_path / "a.png", pair)
    loaded = load_image(tmp_path / "a.png")
    assert (loaded.mode, loaded.alpha is not None) == ("gray", True)
    result(tmp_path / "a.png", tmp_path / "b.png")
    again = load_image(tmp_path / "b.png")
    assert (again.mode, again.alpha is not None) == ("gray", True)
    assert (again.pixels[again.alpha > 0] == 255).all()


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
@pytest.mark.parametrize("channels", [slice(0, 4), slice(2, 4)])
def test_transparency_is_laid_over_white_where_it_cannot_be_kept(tmp_path: Path, suffix: str, channels: slice) -> None:
    write_image(tmp_path / "a.png", disc()[..., channels])
    plan = plan_enlarged(load_image(tmp_path / "a.png"), (200, 160), tmp_path / f"b{suffix}")
    assert [note.partition(",")[0] for note in plan.notes] == ["transparency laid over white"]
    made = result(tmp_path / "a.png", tmp_path / f"b{suffix}")
    assert made.ndim == (3 if channels.start == 0 else 2)
    assert made[:20, :20].min() > 250
    assert made[80, 100].min() == (pytest.approx(51, abs=4) if made.ndim == 3 else pytest.approx(255, abs=4))


def test_webp_keeps_transparency(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", disc())
    made = result(tmp_path / "a.png", tmp_path / "b.webp")
    alpha = cv2.resize(disc()[..., 3], (200, 160), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(made[..., 3], alpha)  # which WebP does not lose at any quality


def test_a_band_may_be_overwritten_when_the_next_is_asked_for(tmp_path: Path, photo: Photo) -> None:
    image, buffer = photo(900, 2000), np.empty((300, 2000, 3), np.uint8)

    def bands() -> Bands:
        for top in range(0, 900, 300):
            buffer[:] = image[top : top + 300]
            yield buffer

    plan = plan_result(tmp_path / "a.png", Layout.of(image))
    plan.write(bands())
    assert np.array_equal(read_image(plan.path), image)


def test_invisible_pixels_take_the_nearest_colour() -> None:
    pixels = np.zeros((1, 6, 3), np.uint8)
    pixels[0, 2], pixels[0, 5] = 10, 20
    alpha = np.array([[0, 0, 1, 0, 0, 255]], np.uint8)
    assert spread_colours(pixels, alpha)[0, :, 0].tolist() == [10, 10, 10, 10, 20, 20]
    assert pixels[0, 0, 0] == 0  # the source is not changed
    for nothing_to_do in (np.zeros_like(alpha), np.full_like(alpha, 255)):
        assert spread_colours(pixels, nothing_to_do) is pixels


@pytest.mark.parametrize("size", [(200, 160), (100, 80), (173, 111)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_rows_of_a_plane_are_those_of_the_whole(size: tuple[int, int], dtype: type) -> None:
    plane = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (40, 50)).astype(dtype)
    enlarged = cv2.resize(plane, (200, 160), interpolation=cv2.INTER_CUBIC)
    whole = AreaReduction((160, 200), size[::-1]).reduce(enlarged, 0, 0, size[1])
    edges = [0, 1, 2, 30, 31, 77, size[1]]
    parts = [enlarge_rows(plane, size, start, stop) for start, stop in pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_palettes_are_expanded(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes([0b00011011]) for _ in range(3))  # four pixels of two bits: 0 1 2 3
    body = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 3, 2, 3, 0, 0, 0)) + chunk(b"PLTE", bytes(range(12)))
    opaque = body + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    clear = body + chunk(b"tRNS", b"\0\x80") + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + opaque)
    loaded = load_image(tmp_path / "a.png")
    assert (loaded.mode, loaded.bits, loaded.alpha) == ("palette", 8, None)
    assert loaded.pixels[0].tolist() == [[2, 1, 0], [5, 4, 3], [8, 7, 6], [11, 10, 9]]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + clear)
    transparent = load_image(tmp_path / "a.png").alpha
    assert transparent is not None
    assert transparent[0].tolist() == [0, 128, 255, 255]


@pytest.mark.parametrize(
    ("suffix", "dtype", "channels"),
    [
        *((suffix, dtype, n) for suffix in (".png", ".tif") for dtype in (np.uint8, np.uint16) for n in (1, 2, 3, 4)),
        (".bmp", np.uint8, 1),
        (".bmp", np.uint8, 3),
    ],
)
def test_bands_make_the_file_that_the_whole_makes(
    tmp_path: Path, suffix: str, dtype: type, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (29, 31, channels)).astype(dtype)
    image = image[..., 0] if channels == 1 else image
    plan = plan_result(tmp_path / f"a{suffix}", Layout.of(image))
    monkeypatch.setattr(encoders, "_BAND_BYTES", 4 * Layout.of(image).row_bytes)
    plan.write([image])
    whole = plan.path.read_bytes()
    for edges in ([0, 1, 2, 3, 29], [0, 4, 12, 29], [0, 7, 8, 20, 29]):
        plan.write(image[start:stop] for start, stop in pairwise(edges))
        assert plan.path.read_bytes() == whole
    if channels != 2 or suffix == ".png":  # OpenCV does not read gray TIFF files with transparency
        loaded = load_image(plan.path)
        expected = image.reshape(29, 31, -1)
        colours = expected[..., :1] if channels < 3 else expected[..., :3]
        if not (suffix == ".tif" and channels == 4 and dtype == np.uint8):  # libtiff multiplies by alpha
            assert (loaded.pixels == colours).all()
        assert (loaded.alpha is not None) == (channels in (2, 4))
        assert loaded.alpha is None or (loaded.alpha == expected[..., -1]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("marked", [1, 2])
def test_colours_that_are_multiplied_by_alpha_are_divided_again(tmp_path: Path, dtype: type, marked: int) -> None:
    """By libtiff, for 8 bits, or by who wrote the file and marked it so."""
    most = np.iinfo(dtype).max
    source = disc(dtype)
    if marked == 1:
        source[..., :3] = np.rint(source[..., :3] * (source[..., 3:] / most)).astype(dtype)
    path = tmp_path / "a.tif"
    write_image(path, source)
    mark = struct.pack("<HHI", 338, 3, 1)
    data = path.read_bytes()
    path.write_bytes(data.replace(mark + b"\2", mark + bytes([marked])))
    loaded = load_image(path)
    assert loaded.alpha is not None
    # Of a colour that is stored as a share of itself, that share is what is left of its precision.
    error = np.abs(loaded.pixels.astype(float) - disc(dtype)[..., :3]) * (loaded.alpha[..., None] / most)
    assert error[loaded.alpha > 0].max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tiff_orientation_is_applied_once(tmp_path: Path, orientation: int, dtype: type, channels: int) -> None:
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (5, 7, channels)).astype(dtype)
    if channels == 4:
        image[..., 3] = np.iinfo(dtype).max
    path = tmp_path / "a.tif"
    write_image(path, image[..., 0] if channels == 1 else image)
    tag = struct.pack("<HHI", 274, 3, 1)
    path.write_bytes(path.read_bytes().replace(tag + b"\1", tag + bytes([orientation])))
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90,
    }
    loaded = load_image(path)
    assert (loaded.pixels == turns[orientation](image)[..., :3]).all()
    assert loaded.header.metadata.orientation == orientation
    plan = plan_enlarged(loaded, loaded.size, tmp_path / "b.png")
    assert plan.metadata.orientation == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_whose_zero_is_white(tmp_path: Path, photo: Photo, dtype: type) -> None:
    gray = photo(5, 7)[..., 0].astype(dtype)
    write_image(tmp_path / "a.tif", gray)
    tag = struct.pack("<HHI", 262, 3, 1)
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data.replace(tag + b"\1", tag + b"\0"))
    assert (load_image(tmp_path / "a.tif").pixels[..., 0] == np.iinfo(dtype).max - gray).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({262: 5, 277: 4}, "is a CMYK TIFF file; convert it to RGB"),
        ({262: 8}, "is a Lab TIFF file; convert it to RGB"),
        ({262: 77}, "is a colour model 77 TIFF file"),
        ({339: 2}, "is a signed TIFF file; convert it to unsigned"),
        ({277: 5}, "is a TIFF file of 5 channels; convert it to gray, RGB or RGBA"),
        ({262: 1, 277: 2}, "is a gray or palette TIFF file with transparency; convert it to PNG"),
        ({258: 12}, "is a TIFF file of 12 bits per channel"),
    ],
)
def test_tiff_files_that_would_be_misread_are_refused_by_name(
    tmp_path: Path, fields: dict[int, int], message: str
) -> None:
    values = {256: 2, 257: 1, 258: 8, 262: 2, 273: 8, 277: 3, 279: 10, **fields}
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in sorted(values.items()))
    directory = struct.pack("<H", len(values)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(struct.pack("<2sHI", b"II", 42, 18) + bytes(10) + directory)
    with pytest.raises(ImageReadError, match=message):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(("adobe", "name"), [(b"", "CMYK"), (b"\0", "CMYK"), (b"\2", "YCCK")])
def test_cmyk_jpeg_is_refused_by_name(tmp_path: Path, adobe: bytes, name: str) -> None:
    marker = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + adobe if adobe else b""
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 20, 8, 8, 8, 4) + bytes(12)
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8" + marker + frame + b"\xff\xd9")
    with pytest.raises(ImageReadError, match=f"is a {name} JPEG file; convert it to RGB"):
        read_image(tmp_path / "a.jpg")


def test_animated_webp_is_refused_by_name(tmp_path: Path) -> None:
    body = b"WEBPVP8X" + struct.pack("<II", 10, 2) + bytes(6)
    (tmp_path / "a.webp").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    with pytest.raises(ImageReadError, match="is an animated WebP file; extract its frames first"):
        read_image(tmp_path / "a.webp")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("a.jpg", (65501, 1), "65501x1 is beyond the 65500 pixels of .jpg; use .png"),
        ("a.webp", (16384, 1), "16384x1 is beyond the 16383 pixels of .webp; use .png"),
        ("a.jpeg", (20000, 20000), "is more than the 268 megapixels kept for .jpg; use .png"),
        ("a.bmp", (40000, 40000), "BMP cannot hold 40000x40000 pixels; use .png"),
        ("a.tiff", (40000, 40000), "TIFF may not hold 40000x40000 pixels in 4 GB; use .png"),
    ],
)
def test_results_that_are_too_large_are_refused_before_any_work(
    tmp_path: Path, name: str, size: tuple[int, int], message: str
) -> None:
    with pytest.raises(OutputError, match=message) as caught:
        plan_result(tmp_path / name, Layout(*size))
    assert str(caught.value).startswith(f"cannot write {tmp_path / name}: ")


def test_an_error_while_it_is_made_leaves_nothing(tmp_path: Path, photo: Photo) -> None:
    def bands(error: Exception) -> object:
        yield photo(4, 8)
        raise error

    for suffix in (".png", ".tif", ".bmp", ".jpg", ".webp"):
        plan = plan_result(tmp_path / f"a{suffix}", Layout(8, 8))
        with pytest.raises(ZeroDivisionError):
            plan.write(bands(ZeroDivisionError()))
    assert list(tmp_path.iterdir()) == []
