"""Detail averaged along what moves: the network answers to every small change of its input, and the eye sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsd_edge.frames import SCALE, DetailCompositor, DType, PixelT, Region
from rsd_edge.live.frames import Picture
from rsd_edge.live.motion import CUT_LEVELS, SMALLEST, carried
from rsd_edge.opencv import cv2

_KEPT = 0.95
"""Of the detail so far, where a frame is what the one before was, moved: an average over some twenty frames. On
four films 0.9 left a warped error of 1.04 to 1.17 times bicubic's, and this one of 1.04 to 1.16; with weights that drew
less texture, 0.5 left 1.09 to 1.47 and 0.75 left 1.05 to 1.29."""
_TRUSTED_LEVELS = 10.0
"""Grey levels of difference at which 1/e of that is kept: noise of a sensor is below, another thing above. On the four
films 8 left up to 0.06 more of the warped error, and 16 took up to a tenth of the texture."""
_STEADIED = 0.5
"""Of the bicubic part so far, likewise. Detail answers to the noise of the input and partly undoes it; averaged alone,
it leaves that noise as it is, and films flicker more than their bicubic enlargement."""
_NOISE_LEVELS = 3.0
"""Grey levels of difference at which 1/e of that is kept: a sensor's noise, a codec's flicker. What changes steadily,
such as a fade, comes late by one level at most."""
_BLOCK = 3
"""A side over which the difference is averaged."""
_BYTES = np.dtype(np.uint8)
_ROWS = 16
"""Of a frame at once: what they make at four times the size stays in a cache."""
_PAD = 1
"""Pixels that linear interpolation reaches to each side."""
_WEIGHT = np.float32(1024)
"""`cv2.blendLinear` divides by the sum of the weights and 0.00001, which is no more than rounding beside this, and
nothing beside a power of two."""
_INNER = (slice(_PAD, -_PAD), slice(_PAD, -_PAD))
_NO_MAP = np.empty(0, np.float32)
"""The first map has x and y."""


@dataclass(frozen=True)
class Carry:
    """From one frame to the next, at the size of the frames."""

    flow: NDArray[np.float32]
    """(h, w, 2): x and y from each pixel to its place in the frame before, in pixels."""
    kept: NDArray[np.float32]
    """(h, w): share of the detail that comes from there, 0 to 0.95, and 1 where nothing has changed."""
    steadied: NDArray[np.float32]
    """(h, w): share of the rest that comes from there, 0 to 0.5, and 1 where nothing has changed."""


class Follower:
    """Finds out what moved whereto; serves one thread."""

    def __init__(self) -> None:
        self.last: Picture | None = None
        """The frame that the next one is compared with; all that is remembered."""
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def advance(self, picture: Picture, *, anew: bool) -> Carry | None:
        """Go on to a frame; None where it has nothing to do with the one before: at the beginning, at a cut, or if
        `anew`."""
        last, self.last = self.last, picture.copy()  # callers of `SuperResolver.stream` may fill one array again
        if anew or last is None or last.shape != picture.shape:
            return None
        flow = self._between(picture, last)
        height, width = flow.shape[:2]
        x = flow[..., 0] + np.arange(width, dtype=np.float32)
        y = flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]
        unexplained = _difference(picture, carried(last, np.stack([x, y], axis=-1)))
        if cv2.mean(unexplained)[0] > CUT_LEVELS:
            return None
        change = np.asarray(cv2.boxFilter(unexplained, cv2.CV_32F, (_BLOCK, _BLOCK)), np.float32)
        # What has not changed at all says nothing new, and results that went on settling there would cost an encoder.
        still = np.asarray(cv2.dilate(_difference(picture, last), np.ones((_BLOCK, _BLOCK), np.uint8)) == 0)
        flow[still] = 0
        inside = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
        kept, steadied = (
            np.where(still, np.float32(1), np.where(inside, most * cv2.exp(-((change / levels) ** 2)), np.float32(0)))
            for most, levels in ((_KEPT, _TRUSTED_LEVELS), (_STEADIED, _NOISE_LEVELS))
        )
        return Carry(flow, kept, steadied)

    def _between(self, picture: Picture, last: Picture) -> NDArray[np.float32]:
        nothing = np.zeros((*picture.shape[:2], 2), np.float32)
        if min(picture.shape[:2]) < SMALLEST or np.array_equal(picture, last):
            return nothing
        now, before = (cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in (picture, last))
        return np.asarray(self._flow.calc(now, before, nothing), np.float32)


def _difference(one: Picture, other: Picture) -> Picture:
    """Of each pixel, the largest of its channels."""
    b, g, r = cv2.split(cv2.absdiff(one, other))
    return np.asarray(cv2.max(cv2.max(b, g), r), np.uint8)


class FilmAverage:
    """Results averaged over the frames of one film: what they have beyond the bicubic enlargement over many, so that
    texture stays, and the enlargement itself over a few and only as far as noise changes it. Serves one thread.

    Two arrays of float32 at the size of results are kept, and no other array is as large.
    """

    def __init__(self, height: int, width: int, dtype: DType = _BYTES) -> None:
        """dtype: of frames and results, uint8 or uint16."""
        self._regions = [Region(top, min(top + _ROWS, height), 0, width) for top in range(0, height, _ROWS)]
        self._base = DetailCompositor(min(_ROWS, height), width, dtype)
        y, x = np.mgrid[-_PAD : height + _PAD, -_PAD : width + _PAD].astype(np.float32)
        self._grid = np.stack([x, y], axis=-1)
        self._depth = cv2.CV_8U if dtype == _BYTES else cv2.CV_16U
        self._scratch = _Scratch(min(_ROWS, height), width)
        self._spare = np.empty((SCALE * height, SCALE * width, 3), np.float32)
        self.detail: NDArray[np.float32] | None = None
        """(4h, 4w, 3); with `picture`, all that is remembered."""
        self.picture: NDArray[np.float32] | None = None
        """(h, w, 3): the frames, averaged."""

    def add(
        self, pixels: NDArray[PixelT], result: NDArray[PixelT], carry: Carry | None, out: NDArray[PixelT]
    ) -> NDArray[PixelT]:
        """The result with averages in place of its own parts.

        pixels: BGR (h, w, 3), what `result`, (4h, 4w, 3), was made from. carry: None to begin anew. out: of the size of
        the result, which it may be. Returns `out`, or `result` where nothing came before.
        """
        before, picture, now = self.detail, self.picture, pixels.astype(np.float32)
        if carry is None or before is None or picture is None:
            detail = np.empty_like(self._spare) if before is None else before
            for region in self._regions:
                part = _enlarged(region)
                cv2.subtract(result[part], self._base.base(pixels, region), dst=detail[part], dtype=cv2.CV_32F)
            self.detail, self.picture = detail, now
            return result
        origin = cv2.add(_padded(carry.flow), self._grid)
        moved = cv2.remap(picture, origin[_INNER], _NO_MAP, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        share = _WEIGHT * carry.steadied
        self.picture = np.asarray(cv2.blendLinear(moved, now, share, _WEIGHT - share), np.float32)
        # Of the size of noise, so that little is lost where it is moved at LR resolution and enlarged linearly.
        change = _padded(self.picture - now)
        # Pixel x of a frame is x0 = 4 x + 1.5 of its enlargement.
        places, share = SCALE * origin + np.float32(1.5), _WEIGHT * _padded(carry.kept)
        for region in self._regions:
            part, scratch = _enlarged(region), self._scratch
            base, detail = self._base.base(pixels, region), self._spare[part]
            scratch.fill(region, places, share, change)
            own = cv2.subtract(result[part], base, dst=scratch.detail[: len(base)], dtype=cv2.CV_32F)
            # Cubic: linear interpolation would blur what is carried through many frames.
            cv2.remap(
                before, scratch.places, _NO_MAP, cv2.INTER_CUBIC, dst=scratch.moved[: len(base)],
                borderMode=cv2.BORDER_REPLICATE,
            )  # fmt: skip
            cv2.blendLinear(scratch.moved[: len(base)], own, scratch.share, _WEIGHT - scratch.share, dst=detail)
            cv2.add(base, cv2.add(detail, scratch.change, dst=own), dst=out[part], dtype=self._depth)
        self.detail, self._spare = self._spare, before
        return out


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
