"""Detail averaged along what moves: the network answers to every small change of its input, and the eye sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_edge.errors import InputError
from rsd_edge.frames import SCALE, DetailCompositor, DType, PixelT, Region
from rsd_edge.live.trust import WEIGHT, Carry, Mover, Trust
from rsd_edge.opencv import cv2

_BYTES = np.dtype(np.uint8)
_ROWS = 16
"""Of a frame at once: what they make at four times the size stays in a cache."""
_PAD = 1
"""Pixels that linear interpolation reaches to each side."""
_INNER = (slice(_PAD, -_PAD), slice(_PAD, -_PAD))
_STORED = 64 * 255
"""What the largest detail becomes where 16 bits have to hold it."""
LARGEST_SIDE = 8191
"""Of a frame: OpenCV moves pixels of images with sides below 32767."""


class FilmAverage:
    """Results averaged over the frames of one film: what they have beyond the bicubic enlargement over many, so that
    texture stays, and the enlargement itself over a few and only as far as noise changes it. Serves one thread.

    Two arrays of float32 at the size of results are kept, and no other array is as large.
    """

    def __init__(self, height: int, width: int, dtype: DType = _BYTES) -> None:
        """dtype: of frames and results, uint8 or uint16. Raises InputError for frames that are too large."""
        if max(height, width) > LARGEST_SIDE:
            raise InputError(
                f"frames of {width}x{height} cannot be averaged, since a side has more than {LARGEST_SIDE} pixels; "
                "give --temporal fixed"
            )
        self._regions = [Region(top, min(top + _ROWS, height), 0, width) for top in range(0, height, _ROWS)]
        self._base = DetailCompositor(min(_ROWS, height), width, dtype)
        y, x = np.mgrid[-_PAD : height + _PAD, -_PAD : width + _PAD].astype(np.float32)
        self._grid = np.stack([x, y], axis=-1)
        self._depth = cv2.CV_8U if dtype == _BYTES else cv2.CV_16U
        self._scratch = _Scratch(min(_ROWS, height), width)
        self._move = Mover(SCALE * min(_ROWS, height), SCALE * width)
        self._spare = np.empty((SCALE * height, SCALE * width, 3), np.float32)
        self._detail: NDArray[np.float32] | None = None
        self._trust = Trust(height, width, unit=np.iinfo(dtype).max / 255)
        self._quantum = np.iinfo(dtype).max / _STORED

    @property
    def settled(self) -> bool:
        """Whether another frame that is the same, with the same result, will change nothing."""
        return self._detail is None or self._trust.settled

    def add(
        self, pixels: NDArray[PixelT], result: NDArray[PixelT], carry: Carry | None, out: NDArray[PixelT]
    ) -> NDArray[PixelT]:
        """The result with averages in place of its own parts.

        pixels: BGR (h, w, 3), what `result`, (4h, 4w, 3), was made from. carry: None to begin anew. out: of the size of
        the result, which it may be. Returns `out`, or `result` where nothing came before.
        """
        before, now = self._detail, pixels.astype(np.float32)
        if carry is None or before is None:
            self._detail = np.empty_like(self._spare) if before is None else before
            for region in self._regions:
                part = _enlarged(region)
                base = self._base.base(pixels, region)
                cv2.subtract(result[part], base, dst=self._detail[part], dtype=cv2.CV_32F)
            self._trust.begin(now)
            return result
        origin = cv2.add(_padded(carry.flow), self._grid)
        kept = self._trust.judge(now, carry, np.asarray(origin[_INNER], np.float32))
        assert self._trust.steady is not None
        # Of the size of noise, so that little is lost where it is moved at LR resolution and enlarged linearly.
        change = _padded(self._trust.steady - now)
        # Pixel x of a frame is x0 = 4 x + 1.5 of its enlargement.
        places, share = SCALE * origin + np.float32(1.5), WEIGHT * _padded(kept)
        for region in self._regions:
            part, scratch = _enlarged(region), self._scratch
            base, detail = self._base.base(pixels, region), self._spare[part]
            scratch.fill(region, places, share, change)
            own, moved = scratch.detail[: len(base)], before[part]
            cv2.subtract(result[part], base, dst=own, dtype=cv2.CV_32F)
            if carry.flow[max(0, region.y0 - _PAD) : region.y1 + _PAD].any():
                moved = self._move(before, scratch.places, out=scratch.moved[: len(base)])
            cv2.blendLinear(moved, own, scratch.share, WEIGHT - scratch.share, dst=detail)
            cv2.add(base, cv2.add(detail, scratch.change, dst=own), dst=out[part], dtype=self._depth)
        self._detail, self._spare = self._spare, before
        return out

    def checkpoint(self) -> dict[str, NDArray[Any]]:
        """All that the next frame depends on, by name. From here on, this average goes on as if it had been resumed
        from it: its detail is rounded to a 64th of a grey level, and takes half the room."""
        trust = self._trust
        if self._detail is None or trust.seen is None or trust.steady is None or trust.resting is None:
            return {}
        stored = np.empty(self._detail.shape, np.int16)
        for region in self._regions:
            part = _enlarged(region)
            np.rint(self._detail[part] / self._quantum, out=stored[part], casting="unsafe")
        self._restore(stored)
        return {"detail": stored, "seen": trust.seen, "steady": trust.steady, "resting": trust.resting}

    def resume(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a checkpoint."""
        self._detail = np.empty_like(self._spare)
        self._restore(state["detail"])
        self._trust.seen, self._trust.steady = state["seen"], state["steady"]
        self._trust.resting = state["resting"]

    def _restore(self, stored: NDArray[np.int16]) -> None:
        assert self._detail is not None
        for region in self._regions:
            part = _enlarged(region)
            np.multiply(stored[part], np.float32(self._quantum), out=self._detail[part])


class _Scratch:
    """What some rows of a frame make at four times the size, small enough for a cache; allocated once."""

    def __init__(self, rows: int, width: int) -> None:
        padded = (SCALE * (rows + 2 * _PAD), SCALE * (width + 2 * _PAD))
        self._places, self._share, self._change = (np.empty((*padded, depth), np.float32) for depth in (2, 1, 3))
        self.detail, self.moved = (np.empty((SCALE * rows, SCALE * width, 3), np.float32) for _ in range(2))

    def fill(self, region: Region, *padded: NDArray[np.float32]) -> None:
        """Enlarge rows of places, shares and changes: the same rows of the whole, to the bit."""
        self.places, self.share, self.change = (
            _rows(values, region, buffer)
            for values, buffer in zip(padded, (self._places, self._share, self._change), strict=True)
        )


def _rows(padded: NDArray[np.float32], region: Region, buffer: NDArray[np.float32]) -> NDArray[np.float32]:
    rows = padded[region.y0 : region.y1 + 2 * _PAD]
    height, width = SCALE * rows.shape[0], SCALE * rows.shape[1]
    large = cv2.resize(rows, (width, height), dst=buffer[:height], interpolation=cv2.INTER_LINEAR)
    edge = SCALE * _PAD
    return np.asarray(large[edge:-edge, edge:-edge], np.float32)


def _padded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """With as much around it as interpolation reaches."""
    return np.asarray(cv2.copyMakeBorder(values, _PAD, _PAD, _PAD, _PAD, cv2.BORDER_REPLICATE), np.float32)


def _enlarged(region: Region) -> slice:
    return slice(SCALE * region.y0, SCALE * region.y1)
