"""What of a film's past is kept in each frame: where the next frame comes from, and how far it is the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_edge.live.frames import Picture
from rsd_edge.live.motion import CUT_LEVELS, SMALLEST, carried
from rsd_edge.opencv import cv2

_KEPT = 0.95
"""Of the detail so far, where a frame shows what the average was made of: an average over some twenty frames. On four
films, 0.9 left up to 0.01 more of the warped error."""
_TRUSTED_LEVELS = 16.0
"""Grey levels of difference at which 1/e of that is kept: noise of a sensor is below, another thing above. On the four
films 10 left up to 0.1 more of the warped error, and 25 took up to a tenth more of the texture."""
_STEADIED = 0.7
"""Of the bicubic part so far, likewise. Detail answers to the noise of the input and partly undoes it; averaged alone,
it leaves that noise as it is, and films flicker more than their bicubic enlargement. On four films 0.6 left up to 0.02
more of the warped error."""
_NOISE_LEVELS = 3.0
"""Grey levels of difference at which 1/e of that is kept: a sensor's noise, a codec's flicker."""
_RESTS = 24
"""Frames without any change for which the average is left alone: what does not change says nothing new, and a codec
that renews a still picture would make it another one each time."""
_SETTLES = 16
_SETTLING = 0.8
"""Then, what is shown turns into what single frames show, and stays: so nothing that has passed by, and changed what
the network saw around it, leaves a trace for good. After 16 frames 3 % are left."""
_SEEN_AT_ONCE = np.ones((2 * 14 + 1, 2 * 14 + 1), np.uint8)
"""Around a pixel, what the networks look at."""
_SAME_LEVELS = 3.0
"""Difference up to which the average is one of what is shown, and may rest: after a fade it is not."""
_BLOCK = 3
"""A side over which the difference is averaged."""
_CUBIC = 0.75
"""Share of cubic interpolation in what moves pixels; the rest is linear. OpenCV's cubic one alone strengthens fine
detail by up to 2.9 % along each axis, without end in an average that goes from frame to frame. With this share an
average gains at most 10 % (half a pixel along both axes in every frame, period 12) and loses 31 % of a period of 6."""
WEIGHT = np.float32(1024)
"""`cv2.blendLinear` divides by the sum of the weights and 0.00001, which is no more than rounding beside this, and
nothing beside a power of two."""
_NO_MAP = np.empty(0, np.float32)
"""The first map has x and y."""


@dataclass(frozen=True)
class Carry:
    """From one frame to the next, at the size of the frames."""

    flow: NDArray[np.float32]
    """(h, w, 2): x and y from each pixel to its place in the frame before, in pixels."""
    still: NDArray[np.bool_]
    """(h, w): where nothing has changed, around the pixel either."""


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
        if float(cv2.absdiff(picture, carried(last, np.stack([x, y], axis=-1))).mean()) > CUT_LEVELS:
            return None
        change = cv2.dilate(_largest(cv2.absdiff(picture, last)), np.ones((_BLOCK, _BLOCK), np.uint8))
        still = np.asarray(change == 0)
        flow[still] = 0
        return Carry(flow, still)

    def _between(self, picture: Picture, last: Picture) -> NDArray[np.float32]:
        nothing = np.zeros((*picture.shape[:2], 2), np.float32)
        if min(picture.shape[:2]) < SMALLEST or np.array_equal(picture, last):
            return nothing
        now, before = (cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in (picture, last))
        return np.asarray(self._flow.calc(now, before, nothing), np.float32)


def _largest(difference: NDArray[Any]) -> NDArray[Any]:
    """Of each pixel, the largest of its three channels."""
    b, g, r = cv2.split(difference)
    return np.asarray(cv2.max(cv2.max(b, g), r))


class Trust:
    """Decides at the size of frames how much of an average is kept; serves one thread.

    A frame is compared with the average of those that the detail comes from, moved along like it. Differences from the
    frame before would be small in every frame of a fade, and the detail of one scene would stay over another.
    """

    def __init__(self, height: int, width: int, unit: float) -> None:
        """unit: values of a frame that are one grey level of 255."""
        self._unit = unit
        self._move = Mover(height, width)
        self.seen: NDArray[np.float32] | None = None
        """(h, w, 3): frames, averaged like the detail."""
        self.steady: NDArray[np.float32] | None = None
        """(h, w, 3): frames, averaged over a few."""
        self.resting: NDArray[np.uint8] | None = None
        """(h, w): frames since the last change, up to when the average has settled."""

    @property
    def settled(self) -> bool:
        """Whether another frame that is the same will change nothing."""
        return self.resting is None or int(self.resting.min()) >= _RESTS + _SETTLES

    def begin(self, now: NDArray[np.float32]) -> None:
        """A film, or another scene of it."""
        self.seen = self.steady = now
        self.resting = np.full(now.shape[:2], _RESTS + _SETTLES, np.uint8)

    def judge(self, now: NDArray[np.float32], carry: Carry, origin: NDArray[np.float32]) -> NDArray[np.float32]:
        """(h, w): share of the detail that is kept. origin: (h, w, 2), the places that the frame's pixels come from."""
        assert self.seen is not None
        assert self.steady is not None
        assert self.resting is not None
        seen, steady = (self._move(values, origin, np.empty_like(values)) for values in (self.seen, self.steady))
        off, noise = (self._levels(now, values) for values in (seen, steady))
        quiet = cv2.erode(carry.still.astype(np.uint8), _SEEN_AT_ONCE)
        resting = np.where(quiet, np.minimum(self.resting, _RESTS + _SETTLES - 1) + 1, 0).astype(np.uint8)
        settling = (resting >= _RESTS) & (self.resting < _RESTS + _SETTLES)
        rests = carry.still & ~settling & (off < _SAME_LEVELS)
        kept = _share(_KEPT, off / _TRUSTED_LEVELS)
        kept[settling] = _SETTLING
        kept[rests] = 1
        steadied = _share(_STEADIED, noise / _NOISE_LEVELS)
        steadied[rests] = 1
        self.seen, self.steady = _blended(seen, now, kept), _blended(steady, now, steadied)
        self.resting = resting
        return kept

    def _levels(self, one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
        change = _largest(cv2.absdiff(one, other))
        return np.asarray(cv2.boxFilter(change, cv2.CV_32F, (_BLOCK, _BLOCK)), np.float32) / np.float32(self._unit)


def _share(most: float, change: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.float32(most) * np.asarray(cv2.exp(-(change**2)), np.float32)


class Mover:
    """Takes each pixel from the place that it comes from. Linear interpolation would blur what is carried through many
    frames, and cubic alone would sharpen it. Serves one thread."""

    def __init__(self, height: int, width: int) -> None:
        """Of at most so many pixels at once, for which memory is kept."""
        self._linear = np.empty((height, width, 3), np.float32)
        self._places = np.empty((height, width, 2), np.int16), np.empty((height, width), np.uint16)

    def __call__(
        self, values: NDArray[np.float32], origin: NDArray[np.float32], out: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """values: (h, w, 3). origin: (rows, columns, 2), x and y of places in them; beyond the edge lies what is at it.
        Returns `out`, (rows, columns, 3)."""
        rows = len(origin)
        whole, parts = self._places[0][:rows], self._places[1][:rows]
        cv2.convertMaps(origin, _NO_MAP, cv2.CV_16SC2, dstmap1=whole, dstmap2=parts)
        linear = self._linear[:rows]
        for interpolation, target in ((cv2.INTER_CUBIC, out), (cv2.INTER_LINEAR, linear)):
            cv2.remap(values, whole, parts, interpolation, dst=target, borderMode=cv2.BORDER_REPLICATE)
        cv2.addWeighted(out, _CUBIC, linear, 1 - _CUBIC, 0, dst=out)
        return out


def _blended(before: NDArray[np.float32], now: NDArray[np.float32], kept: NDArray[np.float32]) -> NDArray[np.float32]:
    """`kept` of what was before, and the rest of what is now."""
    share = WEIGHT * kept
    return np.asarray(cv2.blendLinear(before, now, share, WEIGHT - share), np.float32)
