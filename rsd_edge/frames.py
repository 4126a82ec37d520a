"""Colour order, value range and bit depth: the only code that converts between frames and what networks see.

A frame is uint8 or uint16 (h, w, 3), BGR, as OpenCV reads it; the result has its dtype. The model range is float32
(3, h, w), RGB, in [-1, 1]. Detail, the network's output, is float32 (4h, 4w, 3), BGR like the frame that it is added
to, in units of the model range: 2 / 255 of it is one grey level of 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Executor, wait
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from rsd_edge.errors import InputError
from rsd_edge.opencv import cv2

SCALE = 4
GREY_LEVELS_PER_UNIT = 127.5
"""Of 8 bits: half of 255, because the model range is 2 wide."""

Frame: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
DType: TypeAlias = np.dtype[np.uint8] | np.dtype[np.uint16]
PixelT = TypeVar("PixelT", np.uint8, np.uint16)

_OPENCV_DEPTHS = {np.uint8: cv2.CV_8U, np.uint16: cv2.CV_16U}

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


def levels_per_unit(dtype: DType) -> float:
    """Grey levels of a dtype that one unit of the model range stands for."""
    return np.iinfo(dtype).max / 2


def check_frame(image: NDArray[PixelT]) -> NDArray[PixelT]:
    """The image itself if it is uint8 or uint16 (h, w, 3) with at least one pixel, contiguous; a copy if it is not.

    Raises InputError that says how to convert anything else.
    """
    if not isinstance(image, np.ndarray):
        raise InputError(
            f"image is a {type(image).__name__}; pass a NumPy array of uint8 or uint16 (h, w, 3) in BGR order"
        )
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
    if image.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"image has dtype {image.dtype}; scale it to 0..255 and convert it with .astype(np.uint8), "
            "or to 0..65535 and np.uint16"
        )
    if 0 in image.shape:
        raise InputError(f"image has shape {image.shape}; it must hold at least one pixel")
    return np.ascontiguousarray(image)


def check_out(out: object, frame: NDArray[PixelT], shape: tuple[int, int, int]) -> NDArray[PixelT]:
    """`out` if a result of that shape, with the frame's dtype, can be written into it, or a new array if it is None.

    Raises InputError if `out` has another shape or dtype, is read-only or not contiguous, or overlaps the frame.
    """
    if out is None:
        return np.empty(shape, frame.dtype)
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != frame.dtype:
        found = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise InputError(f"out is {found}; this frame needs {frame.dtype} {shape}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise InputError("out must be C-contiguous and writeable; pass np.empty(shape, image.dtype)")
    if np.may_share_memory(out, frame):
        raise InputError("out overlaps the input image; pass an array of its own")
    return out


def to_model(pixels: Frame, out: NDArray[np.float32]) -> None:
    """BGR (h, w, 3) to float32 RGB (3, h, w) in [-1, 1], written into `out`."""
    np.copyto(out, pixels[..., ::-1].transpose(2, 0, 1))
    out /= levels_per_unit(pixels.dtype)
    out -= 1.0


def bicubic_x4(frame: Frame, out: Frame) -> None:
    """Pixels, bicubically enlarged four times, in their own dtype; of a whole frame, the result at strength 0."""
    cv2.resize(frame, out.shape[1::-1], dst=out, interpolation=cv2.INTER_CUBIC)


def bicubic_bands(
    frame: Frame, rows: int, progress: Callable[[int, int], None] | None
) -> Generator[NDArray[Any], None, None]:
    """The rows of `bicubic_x4` from top to bottom, from that many rows of the frame at once; one overwrites another."""
    height, width = frame.shape[:2]
    rows = min(height, rows)
    enlarger = DetailCompositor(rows, width, frame.dtype)
    for top in range(0, height, rows):
        yield enlarger.base(frame, Region(top, min(top + rows, height), 0, width))
    if progress is not None:
        progress(1, 1)


class DetailCompositor:
    """Adds detail to the bicubic enlargement of its part of the frame: base + strength * detail, rounded to the dtype.

    The base of a region is computed from the frame with two pixels of surroundings, and so equals the same region of
    the enlarged whole frame, which is the result at strength 0. Scratch memory is kept for the largest region
    announced; serves one thread at a time.
    """

    def __init__(self, max_height: int, max_width: int, dtype: DType) -> None:
        padded_h, padded_w = max_height + 2 * _CUBIC_REACH, max_width + 2 * _CUBIC_REACH
        self._base: Frame = np.empty(3 * SCALE**2 * padded_h * padded_w, dtype)

    def base(self, frame: Frame, region: Region) -> Frame:
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
        frame: Frame,
        region: Region,
        detail: NDArray[np.float32],
        strength: float,
        out: Frame,
        top: int = 0,
    ) -> None:
        """Write one region of the result.

        frame: BGR (h, w, 3), C-contiguous, of the dtype announced, as is `out`, the whole result or a band of it that
        begins with the enlargement of row `top` of the frame.
        detail: float32 BGR (4h, 4w, 3) of the region in model units.
        """
        target = out[SCALE * (region.y0 - top) : SCALE * (region.y1 - top), SCALE * region.x0 : SCALE * region.x1]
        # One pass that adds in float32, rounds to nearest and saturates.
        gain, depth = strength * levels_per_unit(out.dtype), _OPENCV_DEPTHS[out.dtype.type]
        cv2.addWeighted(detail, gain, self.base(frame, region), 1.0, 0.0, dst=target, dtype=depth)


class ParallelCompositor:
    """A DetailCompositor that shares out the rows of each region between threads; serves one caller at a time."""

    def __init__(self, max_height: int, max_width: int, dtype: DType, pool: Executor, threads: int) -> None:
        """threads: those of the pool and the caller's own, in all."""
        self._pool = pool
        count = max(1, min(threads, max_height // _ROWS_FOR_A_THREAD))
        self._compositors = [DetailCompositor(-(-max_height // count), max_width, dtype) for _ in range(count)]

    def add(
        self,
        frame: Frame,
        region: Region,
        detail: NDArray[np.float32],
        strength: float,
        out: Frame,
        top: int = 0,
    ) -> None:
        """See DetailCompositor."""
        height, count = region.y1 - region.y0, len(self._compositors)
        edges = [height * i // count for i in range(count + 1)]

        def add_share(i: int) -> None:
            begin, end = edges[i : i + 2]
            if begin < end:
                share = Region(region.y0 + begin, region.y0 + end, region.x0, region.x1)
                self._compositors[i].add(frame, share, detail[SCALE * begin : SCALE * end], strength, out, top)

        others = [self._pool.submit(add_share, i) for i in range(1, count)]
        try:
            add_share(0)
        finally:
            wait(others)  # whatever happens here, nothing may go on writing into the caller's arrays
        for other in others:
            other.result()
