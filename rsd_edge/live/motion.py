"""The noise of a film: fixed in the image, or carried along by what moves in it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rsd_edge.live.frames import Picture
from rsd_edge.noise import NoiseField
from rsd_edge.opencv import cv2
from rsd_edge.tiling import TilePlan

_FRESH_ROWS = 1 << 20
"""Rows of the field from which noise is taken that nothing else uses."""
_STILL_PIXELS = 0.3
_STILL_LEVELS = 4.0
"""A place that moves by less and changes by less stands still: flow trembles with the noise of a sensor."""
_EXPLAINED = 0.35
"""Share of a place's change that motion has to leave, or less, to be believed: on flat ground flow fits the noise of a
sensor, and explains little of it."""
_TINY_PIXELS = 0.02
_BLOCK = 9
CUT_LEVELS = 20.0
"""Grey levels by which a frame differs on average from the last one, moved to match: another scene differs by 34 and
more, the same one by less than 9 (a film, two cameras that stand and one that drives)."""
SMALLEST = 16
"""Pixels of a side that the flow needs."""


class TileNoise(Protocol):
    """Noise for the tiles of one frame after the other; serves one thread."""

    def advance(self, picture: Picture, *, anew: bool) -> None:
        """Go on to a frame; `anew` if it has nothing to do with the one before."""

    def moved(self, index: int) -> bool:
        """True if the tile's noise is not what `take` gave last."""

    def take(self, index: int) -> NDArray[np.float32]:
        """Standard normal (channels, tile_h, tile_w), read-only for the caller."""


class FixedNoise:
    """The field of a seed, the same for every frame."""

    def __init__(self, field: NoiseField, channels: int, plan: TilePlan) -> None:
        self._field, self._channels, self._plan = field, channels, plan
        self._tiles: dict[int, NDArray[np.float32]] = {}

    def advance(self, picture: Picture, *, anew: bool) -> None:
        """See TileNoise."""

    def moved(self, index: int) -> bool:
        """See TileNoise."""
        return False

    def take(self, index: int) -> NDArray[np.float32]:
        """See TileNoise."""
        if index not in self._tiles:
            plan = self._plan
            self._tiles[index] = self._field.normal(self._channels, *plan.origin(index), plan.tile_h, plan.tile_w)
        return self._tiles[index]


class FlowNoise:
    """The same field, of which each pixel keeps its sample while it moves.

    The displacements of all frames since the last cut are added up, and samples are looked up and never mixed: the
    noise stays white with variance 1. Where the picture stretches and neighbours would share a sample, one of them
    gets a fresh one.
    """

    def __init__(self, field: NoiseField, channels: int, plan: TilePlan) -> None:
        self._plan = plan
        height, width = plan.y.extent, plan.x.extent
        self._shape = (height, width)
        samples = (
            field.normal(channels, origin, -plan.x.halo, height, width) for origin in (-plan.y.halo, _FRESH_ROWS)
        )
        self._samples = np.concatenate([plane.reshape(channels, -1) for plane in samples], axis=1)
        y, x = np.mgrid[: plan.y.length, : plan.x.length].astype(np.float32)
        self._grid = np.stack([x, y], axis=-1)
        self._shift = np.zeros_like(self._grid)
        self._last: NDArray[np.uint8] | None = None
        # The faster presets are off by a tenth of a pixel in every frame, which adds up.
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._addresses = self._look_up()
        self._taken: dict[int, NDArray[np.int64]] = {}

    def advance(self, picture: Picture, *, anew: bool) -> None:
        """See TileNoise."""
        gray = np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), np.uint8)
        last, self._last = self._last, gray
        if last is None or min(gray.shape) < SMALLEST:
            return
        if anew or not self._follow(gray, last):
            self._shift[:] = 0
        self._addresses = self._look_up()

    def moved(self, index: int) -> bool:
        """See TileNoise."""
        known = self._taken.get(index)
        return known is None or not np.array_equal(known, self._of_tile(index))

    def take(self, index: int) -> NDArray[np.float32]:
        """See TileNoise."""
        addresses = self._of_tile(index)
        self._taken[index] = addresses.copy()
        return np.take(self._samples, addresses, axis=1)

    def _follow(self, gray: NDArray[np.uint8], last: NDArray[np.uint8]) -> bool:
        """Add this frame's motion; False at a cut."""
        change = cv2.boxFilter(cv2.absdiff(gray, last), cv2.CV_32F, (_BLOCK, _BLOCK))
        if not change.any():
            return True
        flow = self._flow.calc(gray, last, np.zeros_like(self._grid))
        origin = np.asarray(self._grid + flow, np.float32)
        matched = carried(last, origin)
        left = cv2.absdiff(gray, matched)
        if float(np.mean(left)) > CUT_LEVELS:
            return False
        length = np.hypot(flow[..., 0], flow[..., 1])
        unexplained = cv2.boxFilter(left, cv2.CV_32F, (_BLOCK, _BLOCK)) > _EXPLAINED * change
        still = (length < _TINY_PIXELS) | unexplained
        still |= (length < _STILL_PIXELS) & (change < _STILL_LEVELS)
        self._shift = np.where(still[..., None], self._shift, carried(self._shift, origin) + flow)
        return True

    def _look_up(self) -> NDArray[np.int64]:
        """For each pixel of all tiles, halos included, which of the samples it has."""
        plan, (height, width) = self._plan, self._shift.shape[:2]
        whole = np.rint(self._shift).astype(np.int64)
        top, left = plan.y.halo, plan.x.halo
        below, right = self._shape[0] - top - height, self._shape[1] - left - width
        whole = np.pad(whole, ((top, below), (left, right), (0, 0)), mode="edge")
        y = (np.arange(self._shape[0])[:, None] + whole[..., 1]) % self._shape[0]
        x = (np.arange(self._shape[1])[None, :] + whole[..., 0]) % self._shape[1]
        addresses: NDArray[np.int64] = y * self._shape[1] + x
        shared = np.zeros(self._shape, bool)
        shared[:, 1:] |= addresses[:, 1:] == addresses[:, :-1]
        shared[1:] |= addresses[1:] == addresses[:-1]
        shared[1:, 1:] |= addresses[1:, 1:] == addresses[:-1, :-1]
        shared[1:, :-1] |= addresses[1:, :-1] == addresses[:-1, 1:]
        # Fresh samples lie behind the others. They belong to the place: of all that share one, none would be alike.
        return np.where(shared, addresses.size + np.arange(addresses.size).reshape(self._shape), addresses)

    def _of_tile(self, index: int) -> NDArray[np.int64]:
        y, x = self._plan.origin(index)
        top, left = y + self._plan.y.halo, x + self._plan.x.halo
        return self._addresses[top : top + self._plan.tile_h, left : left + self._plan.tile_w]


def carried(values: NDArray[Any], origin: NDArray[np.float32]) -> NDArray[Any]:
    """For each pixel, the value at the place (x, y) that it comes from; beyond the edge, that at the edge."""
    x, y = np.ascontiguousarray(origin[..., 0]), np.ascontiguousarray(origin[..., 1])
    return np.asarray(cv2.remap(values, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
