from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from rsd_edge.errors import InputError
from rsd_edge.frames import (
    DetailCompositor,
    ParallelCompositor,
    Region,
    bicubic_x4,
    check_frame,
    check_out,
    to_model,
)
from rsd_edge.opencv import cv2

Photo = Callable[[int, int], NDArray[np.uint8]]


def test_model_range() -> None:
    pixels = np.array([[[0, 51, 255], [255, 204, 127]]], np.uint8)
    out = np.empty((3, 1, 2), np.float32)
    to_model(pixels, out)
    expected = [[[1.0, -1 / 255]], [[-0.6, 0.6]], [[-1.0, 1.0]]]
    np.testing.assert_allclose(out, expected, rtol=0, atol=1.2e-7)  # one float32 rounding at 2 and one at 1


def enlarged(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = frame.shape[:2]
    return cv2.resize(frame, (4 * width, 4 * height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize(
    ("shape", "region"),
    [
        ((1, 1), Region(0, 1, 0, 1)),
        ((1, 50), Region(0, 1, 7, 33)),
        ((50, 1), Region(49, 50, 0, 1)),
        ((37, 53), Region(0, 37, 0, 53)),
        ((37, 53), Region(1, 20, 2, 31)),
        ((37, 53), Region(2, 3, 50, 51)),
        ((37, 53), Region(20, 37, 30, 53)),
    ],
)
def test_base_of_a_region_is_that_part_of_the_enlarged_frame(
    photo: Photo, shape: tuple[int, int], region: Region
) -> None:
    frame = photo(*shape)
    base = DetailCompositor(37, 53, frame.dtype).base(frame, region)
    expected = enlarged(frame)[4 * region.y0 : 4 * region.y1, 4 * region.x0 : 4 * region.x1]
    np.testing.assert_array_equal(base, expected)


def test_base_is_the_bicubic_of_the_method(photo: Photo) -> None:
    """a = -0.75, half-pixel centres, edge pixels repeated: written out, because OpenCV is used on both sides above."""

    def kernel(x: NDArray[np.float64], a: float = -0.75) -> NDArray[np.float64]:
        x = np.abs(x)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        return np.where(x <= 1, near, np.where(x < 2, a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a, 0.0))

    def matrix(length: int) -> NDArray[np.float64]:
        centres = (np.arange(4 * length) + 0.5) / 4 - 0.5
        taps = np.floor(centres)[:, None] + np.arange(-1, 3)
        weights = np.zeros((4 * length, length))
        np.add.at(
            weights,
            (np.arange(4 * length)[:, None], np.clip(taps, 0, length - 1).astype(int)),
            kernel(centres[:, None] - taps),
        )
        return weights

    frame = photo(9, 14)
    expected = np.einsum("yh,xw,hwc->yxc", matrix(9), matrix(14), frame.astype(np.float64))
    base = DetailCompositor(9, 14, frame.dtype).base(frame, Region(0, 9, 0, 14))
    # Rounded to the nearest grey level, with weights that OpenCV rounds to 2^-11 and that add up to 1.7 in magnitude.
    np.testing.assert_allclose(base, expected.clip(0, 255), rtol=0, atol=0.5 + 0.2)


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_detail_is_added_in_grey_levels_and_rounded(photo: Photo, strength: float) -> None:
    frame = photo(24, 31)
    region = Region(5, 20, 0, 31)
    detail = np.random.default_rng(1).normal(0, 0.5, (4 * 15, 4 * 31, 3)).astype(np.float32)
    out = np.zeros((96, 124, 3), np.uint8)
    DetailCompositor(24, 31, frame.dtype).add(frame, region, detail, strength, out)
    exact = enlarged(frame)[20:80] + strength * 127.5 * detail
    assert exact.min() < -20 and exact.max() > 275  # both ends are cut  # noqa: PT018
    error = np.abs(out[20:80] - np.clip(exact, 0, 255))
    assert error.max() <= 0.5 + 1e-4  # rounding to the nearest grey level, and a few in float32 at 255
    assert not out[:20].any()
    assert not out[80:].any()


@pytest.mark.parametrize(
    ("threads", "region"),
    [
        (1, Region(0, 200, 0, 40)),
        (2, Region(3, 200, 5, 40)),
        (3, Region(0, 200, 0, 40)),
        (64, Region(1, 198, 2, 39)),
        (3, Region(50, 51, 0, 1)),
    ],
)
def test_threads_share_the_rows_of_a_region(photo: Photo, threads: int, region: Region) -> None:
    """Which thread computes a row does not change it: the same bytes, and nothing beside the region is touched."""
    frame = photo(200, 40)
    h, w = 4 * (region.y1 - region.y0), 4 * (region.x1 - region.x0)
    detail = np.random.default_rng(2).normal(0, 0.3, (h, w, 3)).astype(np.float32)
    expected, result = np.full((2, 800, 160, 3), 7, np.uint8)
    DetailCompositor(200, 40, frame.dtype).add(frame, region, detail, 0.5, expected)
    with ThreadPoolExecutor(2) as pool:
        compositor = ParallelCompositor(200, 40, frame.dtype, pool, threads)
        for _ in range(3):
            compositor.add(frame, region, detail, 0.5, result)
            np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failing_share_is_raised_when_the_others_are_done(monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    """The caller may reuse its arrays at once."""
    ended = []

    def add(self: DetailCompositor, frame: object, region: Region, *_: object) -> None:
        if (region.y0 > 0) == failing:
            raise MemoryError
        time.sleep(0.1)
        ended.append(region)

    monkeypatch.setattr(DetailCompositor, "add", add)
    frame, detail, out = np.zeros((200, 40, 3), np.uint8), np.zeros((800, 160, 3), np.float32), np.zeros(0, np.uint8)
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(MemoryError):
            ParallelCompositor(200, 40, frame.dtype, pool, 2).add(frame, Region(0, 200, 0, 40), detail, 1.0, out)
        assert ended == [Region(0, 100, 0, 40) if failing else Region(100, 200, 0, 40)]


def test_whole_frame_bicubic_is_opencvs_own(photo: Photo) -> None:
    frame = photo(17, 23)
    out = np.empty((68, 92, 3), np.uint8)
    bicubic_x4(frame, out)
    np.testing.assert_array_equal(out, cv2.resize(frame, (92, 68), interpolation=cv2.INTER_CUBIC))


@pytest.mark.parametrize(
    ("image", "cure"),
    [
        ([[0]], "pass a NumPy array"),
        (np.zeros((4, 5), np.uint8), "COLOR_GRAY2BGR"),
        (np.zeros((4, 5, 1), np.uint8), "COLOR_GRAY2BGR"),
        (np.zeros((4, 5, 4), np.uint8), "COLOR_BGRA2BGR"),
        (np.zeros((3, 4, 5), np.uint8), r"must be \(h, w, 3\)"),
        (np.zeros((1, 4, 5, 3), np.uint8), r"must be \(h, w, 3\)"),
        (np.zeros((4, 5, 3), np.float32), "dtype float32"),
        (np.zeros((4, 5, 3), np.int16), "dtype int16"),
        (np.zeros((0, 5, 3), np.uint8), "at least one pixel"),
    ],
)
def test_other_images_are_refused_with_the_cure(image: object, cure: str) -> None:
    with pytest.raises(InputError, match=cure):
        check_frame(image)


def test_a_good_frame_is_not_copied_and_a_flipped_one_is(photo: Photo) -> None:
    frame = photo(5, 6)
    assert check_frame(frame) is frame
    flipped = check_frame(frame[::-1, :, ::-1])
    assert flipped.flags.c_contiguous
    np.testing.assert_array_equal(flipped, frame[::-1, :, ::-1])


def test_out_is_used_or_made(photo: Photo) -> None:
    frame = photo(5, 6)
    out = np.empty((20, 24, 3), np.uint8)
    assert check_out(out, frame, (20, 24, 3)) is out
    assert check_out(None, frame, (20, 24, 3)).shape == (20, 24, 3)


def test_an_out_that_cannot_be_written_is_refused(photo: Photo) -> None:
    frame = photo(5, 6)
    read_only = np.empty((20, 24, 3), np.uint8)
    read_only.flags.writeable = False
    for out, reason in [
        (np.empty((24, 20, 3), np.uint8), "needs uint8"),
        (np.empty((20, 24, 3), np.float32), "needs uint8"),
        (np.empty((20, 48, 3), np.uint8)[:, ::2], "contiguous"),
        (read_only, "writeable"),
    ]:
        with pytest.raises(InputError, match=reason):
            check_out(out, frame, (20, 24, 3))
    with pytest.raises(InputError, match="overlaps"):
        check_out(frame, frame[:4], frame.shape)
