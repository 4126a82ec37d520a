"""Sizes below x4: the fourfold result is reduced by area averaging, whole or band by band with the same bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rsd_edge.arguments import check_real
from rsd_edge.errors import InputError
from rsd_edge.frames import SCALE, Frame
from rsd_edge.opencv import cv2

Size = tuple[int, int]
Bands: TypeAlias = Generator[NDArray[Any], None, None]
"""Whole rows of an image, in order. To be closed by who stops before the end: the maker may hold a lock."""

_CHUNK_BYTES = 1 << 22
"""Of float32 rows at once."""


def check_scale(scale: float) -> None:
    """Raises InputError if a scale is not between 1 and 4."""
    check_real("scale", scale)
    if not 1.0 <= scale <= SCALE:
        raise InputError(f"scale is {scale:.12g}; it must lie between 1 and {SCALE}")


def result_size(size: Size, scale: float = 4.0, wanted: Size | None = None) -> Size:
    """(width, height) of the result for an image of that (width, height): `wanted` itself, or the rounded multiple.

    Raises InputError for a scale outside 1 to 4, and for a wanted size below that of the image or above four times it.
    """
    if wanted is None:
        check_scale(scale)
        return round(size[0] * scale), round(size[1] * scale)
    width, height = size
    if wanted[0] < width or wanted[1] < height:
        raise InputError(
            f"size {wanted[0]}x{wanted[1]} is smaller than the image of {width}x{height}; "
            "choose a larger one, or reduce the image with another tool"
        )
    if wanted[0] > SCALE * width or wanted[1] > SCALE * height:
        raise InputError(
            f"size {wanted[0]}x{wanted[1]} is more than {SCALE} times the image of {width}x{height}; "
            f"choose at most {SCALE * width}x{SCALE * height}"
        )
    return wanted


class AreaReduction:
    """Area averaging of images of one size to another, smaller or equal; sizes are (height, width).

    Each row of the result depends on the rows that it covers and on nothing else, so strips give the bytes of the whole
    however it is cut.
    """

    def __init__(self, source: Size, target: Size) -> None:
        self.source, self.target = source, target
        self._whole_cells = source[0] % target[0] == 0 and source[1] % target[1] == 0
        a_row = 4 * 3 * source[1] * (source[0] // target[0] + 1)
        self.rows_at_once = max(1, _CHUNK_BYTES // a_row)
        """Rows of the result that are made at once, so that what it takes in float32 stays small."""

    def source_rows(self, start: int, stop: int) -> tuple[int, int]:
        """The source rows, from the first to after the last, that the result rows start to stop - 1 cover."""
        height, new_height = self.source[0], self.target[0]
        return start * height // new_height, -(-stop * height // new_height)

    def complete_rows(self, rows: int) -> int:
        """How many rows of the result the first `rows` rows of the source decide."""
        return rows * self.target[0] // self.source[0]

    def reduce(self, strip: NDArray[Any], top: int, start: int, stop: int) -> NDArray[Any]:
        """Rows start to stop - 1 of the result, of the strip's dtype.

        strip: uint8 or uint16 (rows, width) or (rows, width, channels), the source from row `top` on.
        """
        out = np.empty((stop - start, self.target[1], *strip.shape[2:]), strip.dtype)
        if self._whole_cells:
            first, last = self.source_rows(start, stop)
            size = (self.target[1], stop - start)
            cv2.resize(strip[first - top : last - top], size, dst=out, interpolation=cv2.INTER_AREA)
            return out
        step = self.rows_at_once
        for begin in range(start, stop, step):
            end = min(begin + step, stop)
            first, last = self.source_rows(begin, end)
            self._average(strip[first - top : last - top], begin, out[begin - start : end - start])
        return out

    def _average(self, strip: Frame, start: int, out: Frame) -> None:
        """Result rows from `start` on, from exactly the source rows that they cover.

        OpenCV averages along the rows. Down the columns its weights depend on where a strip begins; these do not.
        """
        (height, _), (new_height, new_width) = self.source, self.target
        wide = cv2.resize(strip.astype(np.float32), (new_width, len(strip)), interpolation=cv2.INTER_AREA)
        wide = wide.reshape(len(strip), *out.shape[1:])
        rows = np.arange(start, start + len(out))
        first = rows * height // new_height
        total: NDArray[np.float32] = np.zeros(out.shape, np.float32)
        for tap in range(height // new_height + 2):
            row = first + tap
            # In units of 1 / new_height of a source row: what the two rows share.
            shared = np.minimum((row + 1) * new_height, (rows + 1) * height) - np.maximum(
                row * new_height, rows * height
            )
            weight = (np.maximum(shared, 0) / height).astype(np.float32)
            share = wide[np.minimum(row - first[0], len(strip) - 1)]
            share *= weight.reshape(-1, *[1] * (out.ndim - 1))
            total += share
        np.rint(total, out=total)
        np.minimum(total, np.iinfo(out.dtype).max, out=total)  # weights may add up to a little more than 1
        np.copyto(out, total, casting="unsafe")


def shrink(image: Frame, out: Frame) -> None:
    """Resample by area averaging to the smaller or equal size of `out`; both (h, w, 3) of one dtype."""
    out[:] = AreaReduction(image.shape[:2], out.shape[:2]).reduce(image, 0, 0, len(out))


def reduce_bands(bands: Bands, reduction: AreaReduction) -> Bands:
    """Reduce an image that arrives as bands of rows from top to bottom; the result leaves in the same way.

    When the result is closed, so are the bands. Everything large is allocated once or in pieces of one size: bands of
    several sizes, allocated and freed in turns, would leave holes, and memory would grow with the image after all.
    """
    with contextlib.closing(bands):
        strip: NDArray[Any] | None = None
        top = done = filled = 0
        for band in bands:
            strip = _with_room(strip, filled, band)
            strip[filled : filled + len(band)] = band
            filled += len(band)
            stop = reduction.complete_rows(top + filled)
            for begin in range(done, stop, reduction.rows_at_once):
                yield reduction.reduce(strip[:filled], top, begin, min(begin + reduction.rows_at_once, stop))
            first = reduction.source_rows(stop, stop)[0]
            filled -= first - top
            strip[:filled] = strip[first - top : first - top + filled]  # NumPy copies what overlaps
            top, done = first, stop


def collect(bands: Bands, out: NDArray[Any]) -> None:
    """Write bands of rows into an image from top to bottom."""
    done = 0
    for band in bands:
        out[done : done + len(band)] = band
        done += len(band)


def _with_room(strip: NDArray[Any] | None, filled: int, band: NDArray[Any]) -> NDArray[Any]:
    """A strip whose first `filled` rows are those of this one, with room for the band below them."""
    if strip is not None and len(strip) >= filled + len(band):
        return strip
    larger = np.empty((2 * (filled + len(band)), *band.shape[1:]), band.dtype)  # pages that are not used cost nothing
    if strip is not None:
        larger[:filled] = strip[:filled]
    return larger
