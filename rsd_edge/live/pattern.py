"""A test pattern that moves: a source for trying things out without a camera."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rsd_edge.live.clock import Clock, sleep
from rsd_edge.live.frames import Picture
from rsd_edge.opencv import cv2

_BARS = ((235, 235, 235), (16, 235, 235), (235, 235, 16), (16, 235, 16), (235, 16, 235), (16, 16, 235), (235, 16, 16))
"""BGR."""
_TURN = 96
"""Frames for one round of what moves."""


class PatternSource:
    """Colour bars, a zone plate, fine lines, a ball that circles and the number of the frame."""

    def __init__(self, clock: Clock, width: int = 160, height: int = 90, rate: float = 24.0) -> None:
        self.name = f"test:{width}x{height}@{rate:g}"
        self._clock, self._rate = clock, rate
        self._background = _background(width, height)

    def open(self) -> PatternCapture:
        """See Source; always works."""
        return PatternCapture(self._clock, self._background, self._rate)


class PatternCapture:
    """Hands out frames at their times."""

    damaged = 0

    def __init__(self, clock: Clock, background: Picture, rate: float) -> None:
        self._clock, self._background, self._rate = clock, background, rate
        self._due = clock.now()
        self._index = -1
        self._closed = False

    def read(self) -> Picture | None:
        """See Capture. Nothing is left out: for a reader who comes late the rest of the film is later as well."""
        now = self._clock.now()
        self._due = max(self._due + 1 / self._rate, now)
        self._index += 1
        if not sleep(self._clock, self._due - now, lambda: self._closed):
            return None
        return draw(self._background, self._index)

    def interrupt(self) -> None:
        """See Capture."""
        with self._clock.changing():
            self._closed = True

    def close(self) -> None:
        """See Capture."""
        self._closed = True


def draw(background: Picture, index: int) -> Picture:
    """Frame number `index` on a copy of the background."""
    picture = background.copy()
    height, width = picture.shape[:2]
    angle = 2 * np.pi * index / _TURN
    radius = max(2, min(width, height) // 12)
    centre = (round(width * (0.5 + 0.3 * np.cos(angle))), round(height * (0.55 + 0.22 * np.sin(angle))))
    cv2.circle(picture, centre, radius, (20, 120, 250), -1, cv2.LINE_AA)
    cv2.circle(picture, centre, radius, (250, 250, 250), 1, cv2.LINE_AA)
    size = height / 240
    cv2.putText(
        picture,
        f"{index:06d}",
        (width // 24, height - height // 16),
        cv2.FONT_HERSHEY_SIMPLEX,
        max(0.3, size),
        (250, 250, 250),
        1,
        cv2.LINE_AA,
    )
    return picture


def _background(width: int, height: int) -> Picture:
    y, x = np.mgrid[:height, :width].astype(np.float64)
    picture: NDArray[np.float64] = np.repeat((40 + 60 * y / height)[..., None], 3, axis=2)
    edges = np.linspace(0, width, len(_BARS) + 1).astype(int)
    bars = height // 5
    for colour, left, right in zip(_BARS, edges, edges[1:], strict=False):
        picture[:bars, left:right] = colour
    # Rings that grow finer outwards, and lines: what a picture has that enlarging finds hard.
    squared = (x - width / 2) ** 2 + (y - 0.55 * height) ** 2
    plate = squared < (0.3 * height) ** 2
    picture[plate] = (128 + 90 * np.cos(squared / (0.55 * height)))[plate, None]
    lines = (x > 0.82 * width) & (y > bars + height / 12)
    picture[lines] = (128 + 90 * np.sign(np.sin(np.pi * y / (1 + 3 * y / height))))[lines, None]
    return np.clip(picture, 0, 255).astype(np.uint8)
