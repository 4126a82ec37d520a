"""The frames of one film, averaged along what moves."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_edge.frames import SCALE, PixelT
from rsd_edge.live.blend import FilmAverage
from rsd_edge.live.trust import Follower
from rsd_edge.resample import AreaReduction, collect, reduce_bands, result_size
from rsd_edge.video.journal import State


class Steadier:
    """Averages the fourfold results of a film, frame by frame in their order; serves one thread.

    A film goes on in another process with `checkpoint` and `resume`, and its frames are the same to the byte.
    """

    def __init__(self, scale: float) -> None:
        """scale: of the frames that are wanted, 1 to 4."""
        self._scale = scale
        self._follower = Follower()
        self._average: FilmAverage | None = None
        self._kind: tuple[Any, ...] = ()
        self._reduced: NDArray[Any] = np.empty(0, np.uint8)

    def __call__(self, pixels: NDArray[PixelT], result: NDArray[PixelT]) -> NDArray[PixelT]:
        """The next frame of a film.

        pixels: BGR (h, w, 3), uint8 or uint16. result: what an engine made of them, (4h, 4w, 3) of the same dtype; it
        is overwritten. Returns (round(scale * h), round(scale * w), 3), which at a scale of 4 is `result`, and below is
        overwritten by the next call. Another size than before begins another film.
        """
        if self._average is None or self._kind != (pixels.shape, pixels.dtype):
            self._average = self._begin(pixels.shape, pixels.dtype)
        carry = self._follower.advance(_bytes(pixels), anew=False)
        self._average.add(pixels, result, carry, result)
        if self._scale == SCALE:
            return result
        reduction = AreaReduction(result.shape[:2], self._reduced.shape[:2])
        collect(reduce_bands((part for part in (result,)), reduction), self._reduced)
        return self._reduced

    def checkpoint(self) -> State:
        """All that the next frame depends on, by name."""
        if self._average is None or self._follower.last is None:
            return {}
        return {"last": self._follower.last, **self._average.checkpoint()}

    def resume(self, state: State, dtype: np.dtype[Any]) -> None:
        """Go on from a checkpoint. dtype: of the frames."""
        self._average = self._begin(state["last"].shape, dtype)
        self._average.resume(state)
        self._follower.last = state["last"]

    def _begin(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> FilmAverage:
        height, width = shape[:2]
        new_width, new_height = result_size((width, height), self._scale)
        self._follower, self._kind = Follower(), (shape, dtype)
        if self._scale != SCALE:
            self._reduced = np.empty((new_height, new_width, 3), dtype)
        return FilmAverage(height, width, dtype)


def _bytes(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """For motion, 8 bits are enough."""
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
