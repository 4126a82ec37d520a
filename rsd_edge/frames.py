"""Colour order, value range and bit depth: the only code that converts between frames and what networks see.

A frame is uint8 (h, w, 3), BGR, as OpenCV reads it. The model range is float32 (3, h, w), RGB, in [-1, 1]. Detail, the
network's output, is float32 (4h, 4w, 3), BGR like the frame that it is added to, in units of the model range: 2 / 255
of it is one grey level.
"""

from __future__ import annotations

from concurrent.futures import Executor, wait
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsd_edge.errors import InputError
from rsd_edge.opencv import cv2

SCALE = 4
GREY_LEVELS_PER_UNIT = 127.5

_CUBIC_REACH = 2
"""LR pixels beyond a region that its bicubic enlargement reads on each side."""

_ROWS_FOR_A_THREAD = 40
"""With fewer LR rows in a share, what every share pays again (cv2.resize begins slowly) eats up what it saves."""


@dataclass(frozen=True)
class Region:
    """A rectangle of LR pixels: rows y0 to y1 - 1, columns x0 to x1 - 1."""

    y0: int
    y1: int
    x0: int
    x1: int


def check_frame(image: object) -> NDArray[np.uint8]:
    """The image itself if it is uint8 (h, w, 3) with at least one pixel, contiguous; a copy if only the last is amiss.

    Raises InputError that says how to convert anything else.
    """
    if not isinstance(image, np.ndarray):
        raise InputError(f"image is a {type(image).__name__}; pass a NumPy array of uint8 (h, w, 3) in BGR order")
    if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1):
        raise InputError(
            f"image of shape {image.shape} is gray; convert it with cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) first"
        )
    if image.ndim == 3 and image.shape[2] == 4:
        raise InputError(
            f"image of shape {image.shape} has an alpha channel; "
            "convert it with cv2.cvtColor(image, cv2.COLOR_BGRA2BGR) first"
        )
    if image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"image has shape {image.shape}; it must be (h, w, 3) in BGR order")
    if image.dtype != np.uint8:
        raise InputError(f"image has dtype {image.dtype}; scale it to 0..255 and convert it with .astype(np.uint8)")
    if 0 in image.shape:
        raise InputError(f"image has shape {image.shape}; it must hold at least one pixel")
    return np.ascontiguousarray(image)


def check_out(out: object, frame: NDArray[np.uint8], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """`out` if a result of that shape can be written into it, or a new array if it is None.

    Raises InputError if `out` has another shape or dtype, is read-only or not contiguous, or overlaps the frame.
    """
    if out is None:
        return np.empty(shape, np.uint8)
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != np.uint8:
        found = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise InputError(f"out is {found}; this frame needs uint8 {shape}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise InputError("out must be C-contiguous and writeable; pass np.empty(shape, np.uint8)")
    if np.may_share_memory(out, frame):
        raise InputError("out overlaps the input image; pass an array of its own")
    return out


def to_model(pixels: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """uint8 BGR (h, w, 3) to float32 RGB (3, h, w) in [-1, 1], written into `out`."""
    np.copyto(out, pixels[..., ::-1].transpose(2, 0, 1))
    out /= GREY_LEVELS_PER_UNIT
    out -= 1.0


def bicubic_x4(frame: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Pixels, bicubically enlarged four times, in 8 bits; of a whole frame, the result at strength 0."""
    cv2.resize(frame, out.shape[1::-1], dst=out, interpolation=cv2.INTER_CUBIC)


def shrink(image: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Resample by area averaging to the smaller or equal size of `out`; both uint8 (h, w, 3)."""
    cv2.resize(image, out.shape[1::-1], dst=out, interpolation=cv2.INTER_AREA)


class DetailCompositor:
    """Adds detail to the bicubic enlargement of its part of the frame: base + strength * detail, rounded to 8 bits.

    The base of a region is computed from the frame with two pixels of surroundings, and so equals the same region of
    the enlarged whole frame, which is the result at strength 0. Scratch memory is kept for the largest region
    announced; serves one thread at a time.
    """

    def __init__(self, max_height: int, max_width: int) -> None:
        padded_h, padded_w = max_height + 2 * _CUBIC_REACH, max_width + 2 * _CUBIC_REACH
        self._base = np.empty(3 * SCALE**2 * padded_h * padded_w, np.uint8)

    def base(self, frame: NDArray[np.uint8], region: Region) -> NDArray[np.uint8]:
        """Bicubic x4 enlargement of a region, (4h, 4w, 3) in the frame's order; the next call overwrites it."""
        height, width = frame.shape[:2]
        top, left = max(0, region.y0 - _CUBIC_REACH), max(0, region.x0 - _CUBIC_REACH)
        bottom, right = min(height, region.y1 + _CUBIC_REACH), min(width, region.x1 + _CUBIC_REACH)
        h, w = SCALE * (bottom - top), SCALE * (right - left)
        enlarged = self._base[: 3 * h * w].reshape(h, w, 3)
        bicubic_x4(frame[top:bottom, left:right], enlarged)
        rows = slice(SCALE * (region.y0 - top), SCALE * (region.y1 - top))
        return enlarged[rows, SCALE * (region.x0 - left) : SCALE * (region.x1 - left)]

    def add(
        self,
        frame: NDArray[np.uint8],
        region: Region,
        detail: NDArray[np.float32],
        strength: float,
        out: NDArray[np.uint8],
    ) -> None:
        """Write one region of the result.

        frame: uint8 BGR (h, w, 3), C-contiguous. detail: float32 BGR (4h, 4w, 3) of the region in model units.
        out: the whole result, uint8 BGR.
        """
        target = out[SCALE * region.y0 : SCALE * region.y1, SCALE * region.x0 : SCALE * region.x1]
        # One pass that adds in float32, rounds to nearest and saturates.
        gain = strength * GREY_LEVELS_PER_UNIT
        cv2.addWeighted(detail, gain, self.base(frame, region), 1.0, 0.0, dst=target, dtype=cv2.CV_8U)


class ParallelCompositor:
    """A DetailCompositor that shares out the rows of each region between threads; serves one caller at a time."""

    def __init__(self, max_height: int, max_width: int, pool: Executor, threads: int) -> None:
        """threads: those of the pool and the caller's own, in all."""
        self._pool = pool
        count = max(1, min(threads, max_height // _ROWS_FOR_A_THREAD))
        self._compositors = [DetailCompositor(-(-max_height // count), max_width) for _ in range(count)]

    def add(
        self,
        frame: NDArray[np.uint8],
        region: Region,
        detail: NDArray[np.float32],
        strength: float,
        out: NDArray[np.uint8],
    ) -> None:
        """See DetailCompositor."""
        height, count = region.y1 - region.y0, len(self._compositors)
        edges = [height * i // count for i in range(count + 1)]

        def add_share(i: int) -> None:
            top, bottom = edges[i : i + 2]
            if top < bottom:
                share = Region(region.y0 + top, region.y0 + bottom, region.x0, region.x1)
                self._compositors[i].add(frame, share, detail[SCALE * top : SCALE * bottom], strength, out)

        others = [self._pool.submit(add_share, i) for i in range(1, count)]
        try:
            add_share(0)
        finally:
            wait(others)  # whatever happens here, nothing may go on writing into the caller's arrays
        for other in others:
            other.result()
