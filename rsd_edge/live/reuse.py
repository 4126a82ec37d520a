"""Which tiles of a frame have to be computed, and which are still what they were."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rsd_edge.live.motion import TileNoise
from rsd_edge.live.settings import StreamSettings
from rsd_edge.opencv import cv2
from rsd_edge.tiling import TilePlan, TileReader

_BLOCK = 8
"""A side of the smallest thing whose change counts: sensor noise averages out over it, a finger does not."""
_CALM = 0.75
"""Of the threshold: below, a tile that was computed with every frame is at rest again."""


class TileReuse:
    """Remembers the input of each tile, halo included, as it was when the tile was last computed; serves one thread."""

    def __init__(self, plan: TilePlan, settings: StreamSettings) -> None:
        self._plan, self._settings = plan, settings
        self._inputs: list[NDArray[np.uint8] | None] = [None] * plan.count
        self._moving = [True] * plan.count
        self._frame = -1

    def choose(self, reader: TileReader, noise: TileNoise) -> list[int]:
        """The tiles of the frame that `reader` holds that have to be computed, in raster order."""
        self._frame += 1
        return [index for index in range(self._plan.count) if self._changed(index, reader, noise)]

    def _changed(self, index: int, reader: TileReader, noise: TileNoise) -> bool:
        if not self._settings.reuse:
            return True
        pixels = np.asarray(reader.pixels(index), np.uint8)
        known = self._inputs[index]
        if known is None:
            self._inputs[index] = pixels.copy()
            return True
        if self._settings.reuse_threshold:
            changed = self._beyond_threshold(index, pixels, known) or self._refresh_due(index)
        else:
            changed = noise.moved(index) or not np.array_equal(pixels, known)
        if changed:
            np.copyto(known, pixels)
        return changed

    def _beyond_threshold(self, index: int, pixels: NDArray[np.uint8], known: NDArray[np.uint8]) -> bool:
        limit = self._settings.reuse_threshold * (_CALM if self._moving[index] else 1.0)
        self._moving[index] = largest_change(pixels, known) > limit
        return self._moving[index]

    def _refresh_due(self, index: int) -> bool:
        """In turns, so that no frame has to do all."""
        period = self._settings.refresh
        return (self._frame + index * period // self._plan.count) % period == 0


def largest_change(pixels: NDArray[np.uint8], known: NDArray[np.uint8]) -> float:
    """Grey levels by which the 8x8 pixels that changed most differ on average, in the channel where it is most.

    pixels, known: (3, h, w).
    """
    differences = (cv2.absdiff(new, old) for new, old in zip(pixels, known, strict=True))
    return max(float(np.max(cv2.boxFilter(plane, cv2.CV_32F, (_BLOCK, _BLOCK)))) for plane in differences)
