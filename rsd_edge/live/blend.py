"""Detail averaged along what moves: the network answers to every small change of its input, and the eye sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsd_edge.frames import SCALE, bicubic_x4
from rsd_edge.live.frames import Picture
from rsd_edge.live.motion import CUT_LEVELS, SMALLEST, carried
from rsd_edge.opencv import cv2

_KEPT = 0.95
"""Of the detail so far, where a frame is what the one before was, moved: an average over some twenty frames. On
four films 0.9 left a warped error of 1.04 to 1.17 times bicubic's, and this one of 1.04 to 1.16; with weights that drew
less texture, 0.5 left 1.09 to 1.47 and 0.75 left 1.05 to 1.29."""
_TRUSTED_LEVELS = 8.0
"""Grey levels of difference at which 1/e of that is kept: noise of a sensor is below, another thing above. 16 took more
of the texture and left hardly less flicker."""
_BLOCK = 3
"""A side over which the difference is averaged."""
_NO_MAP = np.empty(0, np.float32)
"""The first map has x and y."""


@dataclass(frozen=True)
class Carry:
    """From one frame to the next, at the size of the frames."""

    flow: NDArray[np.float32]
    """(h, w, 2): x and y from each pixel to its place in the frame before, in pixels."""
    kept: NDArray[np.float32]
    """(h, w): share of the detail that comes from there, 0 to 0.95."""


class Follower:
    """Finds out what moved whereto; serves one thread."""

    def __init__(self) -> None:
        self._last: Picture | None = None
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def advance(self, picture: Picture, *, anew: bool) -> Carry | None:
        """Go on to a frame; None where it has nothing to do with the one before: at the beginning, at a cut, or if
        `anew`."""
        last, self._last = self._last, picture.copy()  # callers of `SuperResolver.stream` may fill one array again
        if anew or last is None or last.shape != picture.shape:
            return None
        flow = self._between(picture, last)
        height, width = flow.shape[:2]
        y, x = np.mgrid[:height, :width].astype(np.float32)
        origin = flow + np.stack([x, y], axis=-1)
        change = cv2.absdiff(picture, carried(last, origin)).max(axis=2).astype(np.float32)
        if float(change.mean()) > CUT_LEVELS:
            return None
        change = cv2.boxFilter(change, cv2.CV_32F, (_BLOCK, _BLOCK))
        inside = (origin > -0.5).all(axis=-1) & (origin < (width - 0.5, height - 0.5)).all(axis=-1)
        kept = np.where(inside, _KEPT * np.exp(-np.square(change / _TRUSTED_LEVELS)), 0)
        return Carry(flow, kept.astype(np.float32))

    def _between(self, picture: Picture, last: Picture) -> NDArray[np.float32]:
        nothing = np.zeros((*picture.shape[:2], 2), np.float32)
        if min(picture.shape[:2]) < SMALLEST or np.array_equal(picture, last):
            return nothing
        now, before = (cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in (picture, last))
        return np.asarray(self._flow.calc(now, before, nothing), np.float32)


class DetailAverage:
    """What results have beyond the bicubic enlargement, averaged over the frames of one film; serves one thread."""

    def __init__(self, height: int, width: int) -> None:
        y, x = np.mgrid[: SCALE * height, : SCALE * width].astype(np.float32)
        self._grid = np.stack([x, y], axis=-1)
        self._base = np.empty((SCALE * height, SCALE * width, 3), np.uint8)
        self._average: NDArray[np.float32] | None = None

    def add(self, pixels: Picture, result: Picture, carry: Carry | None) -> Picture:
        """The result with the average in place of its own detail.

        pixels: BGR (h, w, 3), what `result`, (4h, 4w, 3), was made from. carry: None to begin anew.
        """
        bicubic_x4(pixels, self._base)
        detail = np.asarray(cv2.subtract(result, self._base, dtype=cv2.CV_32F), np.float32)
        if carry is None or self._average is None:
            self._average = detail
            return result
        size = self._base.shape[1::-1]
        flow = cv2.resize(carry.flow, size, interpolation=cv2.INTER_LINEAR)
        origin = cv2.scaleAdd(flow, SCALE, self._grid)
        kept = np.asarray(cv2.resize(carry.kept, size, interpolation=cv2.INTER_LINEAR), np.float32)
        # Cubic: linear interpolation would blur what is carried through many frames.
        before = cv2.remap(self._average, origin, _NO_MAP, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        self._average = np.asarray(cv2.blendLinear(before, detail, kept, 1 - kept), np.float32)
        return np.asarray(cv2.add(self._base, self._average, dtype=cv2.CV_8U), np.uint8)
